"""`compact`: the segments of a store as one zarr, which opens many runs in a fraction of a second."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from alignlab.store import atomic, reading, zarrs
from alignlab.store.errors import StoreError
from alignlab.store.joining import join
from alignlab.store.pieces import by_run
from alignlab.store.record import Record
from alignlab.store.segments import Segments


def compact(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write all runs of the store `path` into one zarr and return where: `out`, or ``compact.zarr`` in the store.

    The segments stay, and stay the truth: `open_runs` on the store takes from the zarr what is still as it was
    compacted, and reads the rest from the segments. Where the zarr is up to date nothing is written.

    Raises:
        StoreError: where the store cannot be read, or `out` cannot be written or is something else.
    """
    source = Path(path)
    default = source if zarrs.is_zarr(source) else source / reading.COMPACTION
    target = default if out is None else Path(out)
    names = [] if zarrs.is_zarr(source) else Segments(source).names()
    if _up_to_date(target, source, names):
        return target
    record = _joined(source, names) if names else reading.load(source)
    atomic.make_folder(target.parent)
    atomic.sweep(target.parent)
    try:
        zarrs.write(target, record)
    except OSError as error:
        raise atomic.cannot_write(target, error) from error
    return target


def _up_to_date(target: Path, source: Path, names: Sequence[str]) -> bool:
    if not (target.exists() or target.is_symlink()):
        return False
    if not zarrs.is_zarr(target):
        raise StoreError(f"{target} exists and is no compaction; choose another out")
    old = reading.read_compaction(target)
    if not names:  # nothing but a compaction to read from: the target itself, or one that it may be a copy of
        return target == source or target.parent == source or old.notes == reading.load(source).notes
    return reading.holds(old, source, names) and set(names) == set(old.notes["segments"])


def _joined(source: Path, names: Sequence[str]) -> Record:
    """All segments joined, with a note of what they were."""
    stamps = {name: reading.stamp(source, name) for name in names}
    pieces = reading.segment_pieces(source, names)
    written = {piece.source: piece.record.notes["written"] for piece in pieces}
    runs: dict[str, list[str]] = {}
    for piece in pieces:
        runs.setdefault(piece.source, []).append(piece.run_id)
    record = join(list(by_run(pieces).values()))
    files = {name: str(Segments(source).file(name)) for name in names}
    record.notes["segments"] = {
        name: {"runs": runs[file], "written": written[file], "stamp": stamps[name]}
        for name, file in files.items()
    }
    return record
