"""The runs of one store, wherever they lie: what its compaction holds, and what newer segments tell.

The folder's segments are the truth: a compaction in it stands in for the segments that it was made from as long as they
are still the same, and no further. A run that went on since is read anew from all of its segments.
"""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from alignlab.store import rows
from alignlab.store.pieces import Piece, by_run, split
from alignlab.store.record import Field
from alignlab.store.segments import Segments
from alignlab.store.surveying import stamp, survey

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
