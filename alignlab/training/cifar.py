"""CIFAR-10 (Krizhevsky 2009) as it circulates: the python archive, its unpacked batches, the binary archive.

The python batches are pickles. They are checked against their checksum before they get here, and read all the
same by an unpickler that can build numpy arrays and nothing else, so that no file can run code.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignlab.training.errors import DataError
from alignlab.training.idx import Pixels

__all__ = ["read"]

_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST = ("test_batch",)
_IMAGE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # of the binary batches: one label byte, then the pixels

_SAFE_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def read(files: Mapping[str, bytes]) -> tuple[Pixels, Pixels, Pixels, Pixels]:
    """(train images, train labels, test images, test labels) from the contents of files, by name.

    Images are (N, 3, 32, 32) uint8, labels (N,) uint8. Raises DataError naming the file that is not what its
    name says.
    """
    batches = dict(files)
    for name, content in files.items():
        if name.endswith(".tar.gz"):
            batches = _members(content, name)
    batches = {name.rpartition("/")[2].removesuffix(".bin"): data for name, data in batches.items()}
    train, test = _join(batches, _TRAIN), _join(batches, _TEST)
    return (*train, *test)


def _members(archive: bytes, name: str) -> dict[str, bytes]:
    """Every regular file in the archive; nothing is written to disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            handles = {m.name: tar.extractfile(m) for m in tar.getmembers() if m.isfile()}
            return {path: handle.read() for path, handle in handles.items() if handle is not None}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{name} is no readable tar.gz archive: {error}") from error


def _join(batches: Mapping[str, bytes], names: tuple[str, ...]) -> tuple[Pixels, Pixels]:
    absent = [name for name in names if name not in batches]
    if absent:
        raise DataError(f"CIFAR-10: no {', '.join(absent)} among {', '.join(sorted(batches)) or 'no files'}")
    parts = [_batch(batches[name], name) for name in names]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _batch(content: bytes, name: str) -> tuple[Pixels, Pixels]:
    """One batch, pickled (a pickle of protocol 2 starts with 0x80; a label byte is below 10) or binary."""
    if content[:1] == b"\x80":
        return _python_batch(content, name)
    if not content or len(content) % _RECORD:
        raise DataError(
            f"CIFAR-10 {name}: {len(content)} bytes are no whole number of {_RECORD}-byte records"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, *_IMAGE), records[:, 0]


def _python_batch(content: bytes, name: str) -> tuple[Pixels, Pixels]:
    try:
        batch = _NumpyUnpickler(io.BytesIO(content), encoding="bytes").load()
        images = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, *_IMAGE)
        labels = np.asarray(batch[b"labels"], dtype=np.uint8)
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
    ) as error:
        raise DataError(f"CIFAR-10 {name} is no readable python batch: {error}") from error
    if len(images) != len(labels):
        raise DataError(f"CIFAR-10 {name}: {len(images)} images, but {len(labels)} labels")
    return images, labels


class _NumpyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _SAFE_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are allowed")
        if name == "_reconstruct":  # numpy 2 moved it; the old path only warns
            return np.empty(0).__reduce__()[0]
        return super().find_class(module, name)
