"""The IDX format of MNIST and Fashion-MNIST: a big-endian header (type, rank, sizes), then unsigned bytes.

The format is described on the MNIST page (LeCun, Cortes & Burges). Only the unsigned-byte type occurs here.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

from alignlab.training.errors import DataError

__all__ = ["Pixels", "pack", "parse"]

Pixels = npt.NDArray[np.uint8]

_UNSIGNED_BYTE = 0x08


def parse(content: bytes, name: str) -> Pixels:
    """The array in an uncompressed IDX file's `content`; `name` is what an error calls the file.

    Raises DataError where the header is not that of unsigned bytes or promises another length than there is.

    >>> parse(pack(np.array([[1, 2, 3]], dtype=np.uint8)), "toy")
    array([[1, 2, 3]], dtype=uint8)
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DataError(f"{name} is no IDX file of unsigned bytes: it starts with {content[:4]!r}")
    rank = content[3]
    header = 4 + 4 * rank
    if rank == 0 or len(content) < header:
        raise DataError(f"{name}: the IDX header of rank {rank} is cut short at {len(content)} bytes")
    shape = struct.unpack(f">{rank}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(f"{name}: the header promises {shape} bytes, but {len(content) - header} follow it")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def pack(array: Pixels) -> bytes:
    """The IDX file of a uint8 `array`, uncompressed: the inverse of `parse`."""
    if array.dtype != np.uint8:
        raise DataError(f"IDX files here hold uint8, not {array.dtype}: convert the array first")
    header = struct.pack(f">4B{array.ndim}I", 0, 0, _UNSIGNED_BYTE, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array).tobytes()
