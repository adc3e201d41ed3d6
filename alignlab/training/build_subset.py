"""Builds the embedded MNIST subset byte for byte: `python -m alignlab.training.build_subset SOURCE OUT`.

Of a class with n images, image number floor(i·n/k) in file order is taken for i = 0 … k−1: k images, evenly
spread over the file. No random numbers, and no bias from the file's order (the first half of MNIST's test
file is the easier one). The images keep their file order.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alignlab.training import datafiles, idx
from alignlab.training.embedded import CHECKSUMS, IDX_NAMES
from alignlab.training.errors import DataError

__all__ = ["build", "evenly_spread", "main"]

_TRAIN_PER_CLASS, _TEST_PER_CLASS = 1000, 200


def evenly_spread(labels: idx.Pixels, per_class: int) -> npt.NDArray[np.intp]:
    """Indices, ascending, of `per_class` images of every class, evenly spread over the file.

    >>> evenly_spread(np.array([0, 1, 0, 0, 1, 0], dtype=np.uint8), 2)
    array([0, 1, 3, 4])
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise DataError(f"class {label} has {len(members)} images, fewer than the {per_class} asked for")
        chosen.append(members[np.arange(per_class) * len(members) // per_class])
    return np.sort(np.concatenate(chosen))


def build(
    files: Mapping[str, bytes],
    out: Path,
    train_per_class: int = _TRAIN_PER_CLASS,
    test_per_class: int = _TEST_PER_CLASS,
) -> list[Path]:
    """Write the subset of the IDX `files` into `out`, with its SHA256SUMS, and return what was written.

    `files` maps the names in IDX_NAMES to uncompressed contents. Raises DataError where a class is too small.
    """
    out.mkdir(parents=True, exist_ok=True)
    written, sums = [], []
    for images, labels, per_class in (
        (*IDX_NAMES[:2], train_per_class),
        (*IDX_NAMES[2:], test_per_class),
    ):
        chosen = evenly_spread(idx.parse(files[labels], labels), per_class)
        for name in (images, labels):
            packed = _compress(idx.pack(idx.parse(files[name], name)[chosen]))
            path = out / f"{name}.xz"
            path.write_bytes(packed)
            written.append(path)
            sums.append(f"{hashlib.sha256(packed).hexdigest()}  {path.name}\n")
    checksums = out / CHECKSUMS
    checksums.write_bytes("".join(sums).encode())
    return [*written, checksums]


def _compress(content: bytes) -> bytes:
    """xz: smallest of the standard encodings here, and it holds no timestamp and no file name."""
    # every parameter that shapes the stream is spelt out, so that the bytes stay what they are
    lzma2 = {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 1 << 24,
        "lc": 4,
        "lp": 0,
        "pb": 0,
    }
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=[lzma2])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 on success, 2 (and one line on standard error) where the source is not MNIST."""
    parser = argparse.ArgumentParser(prog="python -m alignlab.training.build_subset", description=__doc__)
    parser.add_argument("source", type=Path, help="folder with MNIST's four IDX files, gzipped or not")
    parser.add_argument("out", type=Path, help="folder to write into: data/mnist_small")
    options = parser.parse_args(arguments)
    try:
        written = build(datafiles.read_folder("mnist", options.source), options.out)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"{path} ({path.stat().st_size} bytes)" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
