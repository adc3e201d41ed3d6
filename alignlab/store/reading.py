"""`open_runs`: all runs of a store as one dataset.

Each file is small, so each is read at once into plain arrays, and these are joined variable by variable. The folder's
segments are the truth: a compaction in it stands in for the segments that it was made from as long as they are
still the same, and no further.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.store import zarrs
from alignlab.store.errors import StoreError
from alignlab.store.joining import join
from alignlab.store.pieces import Piece, by_run, split
from alignlab.store.record import Damaged, NewerSchema, Record
from alignlab.store.segments import Segments

if TYPE_CHECKING:
    import xarray as xr

COMPACTION = "compact.zarr"
PathLike = str | os.PathLike[str]


def open_runs(path: PathLike | Iterable[PathLike]) -> xr.Dataset:
    """The runs in a store: a folder of segments, a compaction (zarr), a folder that holds both, or a list of these.

    One run has dims (step, layer, mode) and its coordinates (run_id, rule, lr, ...) are scalars; several have the
    leading dim `run`, sorted by run_id, steps, layers and modes being joined and missing values NaN. Segments of one
    run follow each other; where they overlap, the later one counts, and so do its `status` and `last_step`. A run
    whose last segment says "running" may still go on or may have been killed. Attributes in which runs differ become
    coordinates on `run`, as text. Everything is loaded into memory.

    Raises:
        StoreError: where there is no store, nothing in it, a damaged or newer file, or one run_id for two runs.
    """
    paths = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(p) for p in path]
    if not paths:
        raise StoreError("no store to open: the list of paths is empty")
    if len(paths) == 1:
        return load(paths[0]).to_dataset()
    stores = {p: by_run(pieces(p)) for p in dict.fromkeys(paths)}
    owner: dict[str, Path] = {}
    for store, runs in stores.items():
        for run_id in runs:
            if owner.setdefault(run_id, store) != store:
                raise StoreError(
                    f"run {run_id!r} is in {owner[run_id]} and in {store}; open these stores separately"
                )
    told = {run_id: run for runs in stores.values() for run_id, run in runs.items()}
    return join([told[run_id] for run_id in sorted(told)]).to_dataset()


def open_segments(path: PathLike, names: Iterable[str]) -> xr.Dataset:
    """The runs in the named segments of one folder, as :func:`open_runs` gives those of all."""
    return join(list(by_run(segment_pieces(Path(path), names)).values())).to_dataset()


def load(path: Path) -> Record:
    """The runs of one store, joined; see `open_runs`."""
    compaction, new = survey(path)
    if compaction is not None and not new:
        return compaction
    return join(list(by_run(_pieces(path, compaction, new)).values()))


def pieces(path: Path) -> list[Piece]:
    """The runs of one store, piece by piece."""
    return _pieces(path, *survey(path))


def survey(path: Path) -> tuple[Record | None, list[str]]:
    """The compaction of a store where it has one that still holds, and the names of the segments that are not in it.

    Raises:
        StoreError: where there is no store, it is empty, or segments that were compacted are no longer there.
    """
    if zarrs.is_zarr(path):
        return read_compaction(path), []
    _check_folder(path)
    names = Segments(path).names()
    if zarrs.is_zarr(path / COMPACTION):
        try:
            compaction = read_compaction(path / COMPACTION)
        except StoreError:
            if not names or zarrs.is_zarr(path / COMPACTION):
                raise
            return None, names  # it is being replaced at this moment, and the segments are the truth
        if holds(compaction, path, names):
            return compaction, [name for name in names if name not in compaction.notes["segments"]]
    if not names:
        raise _empty(path)
    return None, names


def holds(compaction: Record, path: Path, names: Sequence[str]) -> bool:
    """Whether all that was compacted is unchanged in the folder, or the compaction is all there is."""
    compacted = compaction.notes["segments"]
    missing = sorted(set(compacted) - set(names))
    if names and missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise StoreError(
            f"{path} has a compaction of segments that are no longer there: {missing[0]!r}{others}; put them back, "
            "or move the compaction away"
        )
    return not names or all(unchanged(path, name, note) for name, note in compacted.items())


def unchanged(path: Path, name: str, note: Mapping[str, Any]) -> bool:
    """Whether a segment is the one that was compacted, by the file's size and time or else by what is in it."""
    if stamp(path, name) == note["stamp"]:
        return True
    return bool(Segments(path).read_record(name, only=()).notes["written"] == note["written"])


def stamp(path: Path, name: str) -> list[int]:
    """Size and modification time (ns) of a segment's file."""
    status = Segments(path).file(name).stat()
    return [status.st_size, status.st_mtime_ns]


def segment_pieces(path: Path, names: Iterable[str]) -> list[Piece]:
    """What the named segments of a folder tell of their runs."""
    segments = Segments(path)
    return [piece for n in names for piece in split(segments.read_record(n), str(segments.file(n)))]


def read_compaction(path: Path) -> Record:
    """The record in a zarr. Raises StoreError where it is none of ours, damaged, or of a newer schema."""
    try:
        return zarrs.read(path)
    except NewerSchema as error:
        raise StoreError(f"cannot read {path}: {error}; upgrade alignlab") from error
    except (OSError, Damaged, ValueError) as error:
        way_out = "remove it and compact again, or restore it from a copy"
        raise StoreError(
            f"cannot read {path}: damaged, or no compaction of alignlab ({error}); {way_out}"
        ) from error


def _pieces(path: Path, compaction: Record | None, new: list[str]) -> list[Piece]:
    told = segment_pieces(path, new)
    if compaction is None:
        return told
    # a run that went on is read anew from all its segments: in the compaction it is padded to the others' steps
    going_on = {piece.run_id for piece in told}
    compacted = compaction.notes["segments"]
    told += segment_pieces(path, [name for name, note in compacted.items() if going_on & set(note["runs"])])
    rows = split(compaction, str(path / COMPACTION))
    return [p for p in told if p.run_id in going_on] + [row for row in rows if row.run_id not in going_on]


def _check_folder(path: Path) -> None:
    if not path.exists():
        raise StoreError(
            f"no store at {path}: there is no such folder; check the path, or record a run there first"
        )
    if not path.is_dir():
        raise StoreError(f"no store at {path}: it is a file; give the folder that holds the segments")


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
