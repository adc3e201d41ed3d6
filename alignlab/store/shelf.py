"""The runs of one store, wherever they lie: what its compaction holds, and what newer segments tell.

The folder's segments are the truth: a compaction in it stands in for the segments that it was made from as long as they
are still the same, and no further. A run that went on since is read anew from all of its segments.
"""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from alignlab.store import rows, zarrs
from alignlab.store.errors import StoreError
from alignlab.store.pieces import Piece, by_run, split
from alignlab.store.record import Damaged, Field, NewerSchema
from alignlab.store.segments import SUFFIX, Segments
from alignlab.store.zarrs import Zarr

COMPACTION = "compact.zarr"
LOOKS = 5  # at a compaction that others replace while it is read
PAUSE = 0.02  # s; longer after each look
Notify = Callable[[int], None]
Phase = Callable[[str, int], AbstractContextManager[Notify]]  # what is done, how many there are
Notes = dict[str, dict[str, Any]]  # of each segment: its runs, when it was written, its file's size and time


class Shelf:
    """The runs of the store at `path`.

    Compacted runs have their variables outlined; so have those in segments where `outlined`, else they are all read.

    Raises:
        StoreError: where there is no store, it is empty or damaged, or segments that were compacted are no longer there.
    """

    def __init__(self, path: Path, *, outlined: bool = False, phase: Phase | None = None) -> None:
        self.path, self._outlined = path, outlined
        self.compaction, self._segments = survey(path)
        notes = {} if self.compaction is None else self.compaction.record.notes["segments"]
        new = [name for name in self._segments if name not in notes]
        stamps = {name: stamp(path, name) for name in self._segments} if outlined else {}
        common: dict[Any, Field] = {}
        with (phase or silent)("reading segments", len(new)) as notify:
            told = {name: _shared(_pieces(path, name, outlined, notify), common) for name in new}
        self.notes: Notes = {
            name: note | {"stamp": stamps.get(name, note["stamp"])} for name, note in notes.items()
        }
        self.notes |= {name: _note(pieces, stamps.get(name)) for name, pieces in told.items()}
        _warn_of_gaps(path, self.notes)
        going_on = {piece.run_id for pieces in told.values() for piece in pieces}
        for name, note in notes.items():
            if going_on & set(note["runs"]):
                told[name] = _pieces(path, name, outlined)
        self._told = by_run(p for pieces in told.values() for p in pieces if p.run_id in going_on)
        ids = [] if self.compaction is None else self.compaction.record.fields["run_id"].data.ravel().tolist()
        self._rows = {run_id: i for i, run_id in enumerate(ids) if run_id not in going_on}

    @functools.cached_property
    def runs(self) -> dict[str, list[Piece]]:
        """The pieces of each run by run_id, sorted."""
        return dict(sorted((self._told | self._compacted(list(self._rows), ())).items()))

    @property
    def is_compacted(self) -> bool:
        """Whether the compaction holds everything."""
        return self.compaction is not None and not self._told

    def values(self, run_ids: Sequence[str], only: Collection[str] | None = None) -> list[list[Piece]]:
        """The pieces of some runs with the values of all variables, or of `only` some."""
        told = {run_id: self._told[run_id] for run_id in run_ids if run_id in self._told}
        if self._outlined:
            files = dict.fromkeys(piece.source for pieces in told.values() for piece in pieces)
            names = [Path(file).stem for file in files]
            again = by_run(p for p in segment_pieces(self.path, names) if p.run_id in told)
            told = {run_id: again[run_id] for run_id in told}
        found = told | self._compacted([run_id for run_id in run_ids if run_id in self._rows], only)
        return [found[run_id] for run_id in run_ids]

    def _compacted(self, run_ids: Sequence[str], only: Collection[str] | None) -> dict[str, list[Piece]]:
        if self.compaction is None or not run_ids:
            return {}
        numbers = [self._rows[run_id] for run_id in run_ids]
        pieces = rows.runs_of(self.compaction, str(self.path), numbers, only)
        return dict(zip(run_ids, ([piece] for piece in pieces), strict=True))


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


def silent(what: str, total: int) -> AbstractContextManager[Notify]:
    """A phase that shows nothing."""
    return nullcontext(lambda n: None)


def segment_pieces(path: Path, names: Iterable[str]) -> list[Piece]:
    """What the named segments of a folder tell of their runs."""
    return [piece for name in names for piece in _pieces(path, name)]


def _pieces(path: Path, name: str, outlined: bool = False, notify: Notify = lambda n: None) -> list[Piece]:
    segments = Segments(path)
    pieces = split(segments.read_record(name, outlined=outlined), str(segments.file(name)))
    notify(1)
    return pieces


def _shared(pieces: list[Piece], common: dict[Any, Field]) -> list[Piece]:
    """The pieces, holding what is common to many only once: most runs have the same steps, layers and attributes."""
    for piece in pieces:
        fields = piece.record.fields
        for name, f in fields.items():
            if f.dims and (f.is_outline or name in piece.record.coords):
                key = (f.dims, f.data.dtype.str, f.data.shape, f.data.tobytes(), repr(f.attrs))
                fields[name] = common.setdefault(key, f)
    return pieces


def _note(pieces: Sequence[Piece], stamp: list[int] | None) -> dict[str, Any]:
    """What a compaction keeps of a segment, to know it again."""
    own = pieces[0].record.notes
    told = {"written": own["written"], "stamp": stamp, "sequence": own.get("sequence")}
    return {"runs": [piece.run_id for piece in pieces], **told}


def _warn_of_gaps(path: Path, notes: Notes) -> None:
    """Where segments of a run are missing before others, as of a copy that was broken off, its steps have holes."""
    numbers = defaultdict[str, set[int]](set)
    for note in notes.values():
        number = note.get("sequence", -1)  # not of a compaction of older versions
        if number is not None:
            numbers[note["runs"][0]].add(number)
    for run_id, known in numbers.items():
        missing = sorted(set(range(max(known))) - known) if -1 not in known else []
        if missing:
            warnings.warn(
                f"run {run_id!r} in {path} lacks {len(missing)} of its segments, {_counted(missing)}: what was measured in "
                "them is missing. Copy them there too, unless you moved them out",
                stacklevel=6,
            )


def _counted(numbers: Sequence[int]) -> str:
    return ", ".join(f"{n:06d}" for n in numbers[:5]) + (", ..." if len(numbers) > 5 else "")


def read_compaction(path: Path) -> Zarr:
    """What is in a zarr. Raises StoreError where it is none of ours, damaged, or of a newer schema."""
    try:
        return zarrs.read(path)
    except NewerSchema as error:
        raise StoreError(f"cannot read {path}: {error}; upgrade alignlab") from error
    except (OSError, Damaged, ValueError) as error:
        way_out = "remove it and compact again, or restore it from a copy"
        raise StoreError(
            f"cannot read {path}: damaged, or no compaction of alignlab ({error}); {way_out}"
        ) from error


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
