"""Reading data files so that only the right bytes come through: each is checked against its checksum."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

from alignlab.training.catalogue import DataFile
from alignlab.training.errors import DataError

__all__ = ["checksum", "gunzip", "read_bytes", "read_verified"]


def read_verified(file: DataFile, path: Path, way_out: str = "") -> bytes:
    """The uncompressed contents of `file`, which lies at `path`, once they agree with its checksum.

    Raises DataError, ending in `way_out`, where the file cannot be read or is not the right one.
    """
    raw = read_bytes(path, way_out)
    content = gunzip(raw) if file.gz else raw
    found = "no whole gzip file" if content is None else checksum(content, file)
    if content is None or found != file.checksum:
        raise DataError(
            f"{path} is corrupt: its contents are {found}, not {file.checksum}. {way_out}".rstrip()
        )
    return content


def read_bytes(path: Path, way_out: str = "") -> bytes:
    """The file's bytes; a DataError, ending in `way_out`, where they cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. {way_out}".rstrip()) from error


def gunzip(raw: bytes) -> bytes | None:
    """`raw` unpacked where it is gzip, else as it is (some servers unpack on the way).

    None where it is broken.
    """
    if not raw.startswith(b"\x1f\x8b"):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error):
        return None


def checksum(content: bytes, file: DataFile) -> str:
    """`content`'s checksum by the algorithm that the catalogue uses for `file`, written as there."""
    algorithm = file.checksum.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"
