"""How arrays are cut into chunks: whole runs, as many as fit into 4 MiB; and boxes, one slice for each dim."""

from __future__ import annotations

import math
from collections.abc import Iterable

Box = tuple[slice, ...]
CHUNK_BYTES = 4 << 20


def chunks(shape: tuple[int, ...], itemsize: int, most: int | None = None) -> tuple[int, ...]:
    """A chunk's shape: along the leading dim a power of two such that a chunk has at most 4 MiB, and `most` at the most.

    Where one index of the leading dim alone has more, as a very long run, a chunk is cut along the following dims too.

    >>> chunks((1000, 200, 4), 4), chunks((1000, 200, 4, 64), 4), chunks((30, 10**7), 4)
    ((1000, 200, 4), (16, 200, 4, 64), (1, 1048576))
    """
    if not shape:
        return ()
    inner = itemsize * math.prod(max(1, n) for n in shape[1:])
    if inner > CHUNK_BYTES:
        return (1, *chunks(shape[1:], itemsize))
    leading = power_of_two(CHUNK_BYTES // inner)
    return (max(1, min(shape[0], leading, most or leading)), *(max(1, n) for n in shape[1:]))


def everything(shape: tuple[int, ...]) -> Box:
    """The box that is all of an array."""
    return tuple(slice(0, n) for n in shape)


def power_of_two(n: int) -> int:
    """The largest that is not above n, 1 at least."""
    return 1 << max(0, int(n).bit_length() - 1)


def place(where: tuple[int, ...], chunk: tuple[int, ...], shape: tuple[int, ...]) -> Box:
    """The box of the chunk ``where`` among all, in an array of this shape."""
    return tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(where, chunk, shape, strict=True))


def shifted(box: Iterable[slice], origin: Box) -> Box:
    """A box as seen from the first corner of another."""
    return tuple(slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, origin, strict=True))
