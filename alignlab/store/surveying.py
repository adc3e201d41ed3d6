"""What lies in a store: its compaction, where it has one that still holds, and the names of its segments.

Others may replace a compaction while it is read; then it is looked at again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.store import zarrs
from alignlab.store.errors import StoreError
from alignlab.store.record import reading
from alignlab.store.segments import SUFFIX, Segments
from alignlab.store.zarrs import Zarr

COMPACTION = "compact.zarr"
LOOKS = 5  # at a compaction that others replace while it is read
PAUSE = 0.02  # s; longer after each look


def survey(path: Path) -> tuple[Zarr | None, list[str]]:
    """The compaction of a store where it has one that still holds, and the names of its segments.

    Raises:
        StoreError: where there is no store, it is empty, or segments that were compacted are no longer there.
    """
    if zarrs.is_zarr(path):
        return read_settled(path) or read_compaction(path), []
    check_store(path)
    compaction = read_settled(path / COMPACTION)
    names = Segments(path).names()  # after it: what another compacted meanwhile is among them
    if compaction is not None and holds(compaction, path, names):
        return compaction, names
    if not names:
        raise _empty(path)
    return None, names  # the truth, also where the compaction is replaced all the time


def holds(compaction: Zarr, path: Path, names: Sequence[str]) -> bool:
    """Whether all that was compacted is unchanged in the folder, or the compaction is all there is."""
    compacted = compaction.record.notes["segments"]
    missing = sorted(set(compacted) - set(names))
    if names and missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise StoreError(
            f"{path} has a compaction of segments that are no longer there: {missing[0]!r}{others}; put them back, "
            "or move the compaction away"
        )
    return not names or all(_unchanged(path, name, note) for name, note in compacted.items())


def _unchanged(path: Path, name: str, note: Mapping[str, Any]) -> bool:
    """Whether a segment is the one that was compacted, by the file's size and time or else by what is in it."""
    if stamp(path, name) == note["stamp"]:
        return True
    return bool(Segments(path).read_record(name, only=()).notes["written"] == note["written"])


def stamp(path: Path, name: str) -> list[int]:
    """Size and modification time (ns) of a segment's file; nothing where it is gone, which its reader tells."""
    try:
        status = os.stat(f"{path}/{name}{SUFFIX}")  # many thousand times; a Path takes longer than the disk
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns]


def read_compaction(path: Path) -> Zarr:
    """What is in a zarr. Raises StoreError where it is none of ours, damaged, or of a newer schema."""
    way_out = "remove it and compact again, or restore it from a copy"
    with reading(path, "no compaction of alignlab", way_out):
        return zarrs.read(path)


def read_settled(path: Path) -> Zarr | None:
    """What is in a zarr that others may replace meanwhile; None where there is none, or another at every look.

    Raises:
        StoreError: where it cannot be read though nobody replaced it.
    """
    for look in range(LOOKS):
        time.sleep(PAUSE * look)
        before = _identity(path)
        if zarrs.is_zarr(path):
            try:
                return read_compaction(path)
            except StoreError:
                if _identity(path) == before:
                    raise
        elif look == 0:
            return None
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    """What a folder that takes another's name does not share with it."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def check_store(path: Path) -> None:
    """Raise StoreError where there is no store at `path`, or nothing in it."""
    if not os.path.exists(path):  # a Path raises where a name is too long
        raise StoreError(
            f"no store at {path}: there is no such folder; check the path, or record a run there first"
        )
    if not path.is_dir():
        raise StoreError(f"no store at {path}: it is a file; give the folder that holds the segments")
    if not (zarrs.is_zarr(path / COMPACTION) or Segments(path).names()):
        raise _empty(path)


def _empty(path: Path) -> StoreError:
    below = sorted(p.name for p in path.iterdir() if p.is_dir() and (zarrs.is_zarr(p) or Segments(p).names()))
    if below:
        listed = ", ".join(below[:5]) + (", ..." if len(below) > 5 else "")
        return StoreError(
            f"no segments in {path}, but in its folders {listed}: open one of them, or a list of them"
        )
    return StoreError(
        f"no segments in {path}: nothing was recorded there, or the run died before its first flush"
    )
