"""Pieces of runs: what one segment, or one row of a compaction, tells about one run.

Segments of one run follow each other in the order in which they were written. Where they overlap, the later one speaks for
its variables at its steps. Where a later one tells an earlier last step, the run was taken up again from there, as from a
checkpoint: what lay beyond is of an attempt that came to nothing, and does not count.

A recorder notes in its segments the tokens of all who recorded the run so far, its own last. It takes up those of the store's
last segment, so that in one recording the tokens of each segment begin with those of the one before, however often it was
taken up. Where they do not, files of two recordings lie among each other, or of two that went on from one checkpoint in
two copies of a store. Segments without tokens (a sweep's, which are whole runs, a user's own, those of older versions) go
with any.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignlab.store.errors import StoreError
from alignlab.store.record import Field, Record
from alignlab.store.schema import run_coords

Array = npt.NDArray[Any]
IDENTITY = tuple(name for name in run_coords if name not in ("run_id", "status", "last_step"))


@dataclass(frozen=True)
class Piece:
    """What one source tells about one run: a record without the dim run."""

    record: Record
    source: str

    @property
    def run_id(self) -> str:
        return str(self.record.fields["run_id"].data)

    @property
    def status(self) -> str:
        return str(self.record.fields["status"].data)

    @property
    def last_step(self) -> int:
        return int(self.record.fields["last_step"].data)

    @property
    def tokens(self) -> list[str]:
        """Of those who recorded the run up to here, the first one's first; none where nothing was noted."""
        return list(self.record.notes.get("tokens", ()))

    def until(self, last_step: int) -> Piece:
        """The piece without steps after `last_step`."""
        steps = self.record.fields["step"].data
        n = int(np.searchsorted(steps, last_step, side="right"))
        if n == steps.size:
            return self
        fields = {
            name: Field(f.dims, f.data[:n], f.attrs) if f.dims[:1] == ("step",) else f
            for name, f in self.record.fields.items()
        }
        record = self.record
        return Piece(Record(fields, record.coords, record.attrs, record.notes), self.source)


def trimmed(told: Sequence[Piece]) -> list[Piece]:
    """The pieces of one run, in order, without what lies beyond the step from which a later one took the run up again."""
    last, found = told[-1].last_step, list[Piece]()
    for piece in reversed(told):
        last = min(last, piece.last_step)
        left = piece.until(last)
        if piece.last_step == last or left.record.fields["step"].data.size:
            found.append(left)
    return found[::-1]


def split(record: Record, source: str) -> list[Piece]:
    """The runs of a segment, each by itself."""
    if not record.fields["run_id"].dims:
        return [Piece(record, source)]
    return [Piece(row(record, i), source) for i in range(record.fields["run_id"].data.size)]


def row(record: Record, i: int) -> Record:
    """The i-th run of a record; what is outlined stays so."""
    fields = {name: _row(field, i) for name, field in record.fields.items()}
    return Record(fields, set(record.coords), dict(record.attrs), dict(record.notes))


def _row(field: Field, i: int) -> Field:
    if field.dims[:1] != ("run",):
        return field
    if field.is_outline:
        return Field.outline(field.dims[1:], field.data.dtype, field.attrs)
    return Field(field.dims[1:], field.data[i, ...], field.attrs)


def by_run(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """The pieces of each run in the order in which they were written; runs sorted by their id.

    Raises:
        StoreError: where pieces of one run_id are of different runs or recordings, or one segment is there twice.
    """
    runs: dict[str, list[Piece]] = {}
    for piece in pieces:
        runs.setdefault(piece.run_id, []).append(piece)
    for told in runs.values():
        numbered = all(piece.record.notes.get("sequence") is not None for piece in told)
        key = "sequence" if numbered else "written"
        told.sort(key=lambda piece: piece.record.notes.get(key) or 0)
        _check_copies(told)
        _check_identity(told)
        _check_recording(told)
    return dict(sorted(runs.items()))


def _check_copies(told: Sequence[Piece]) -> None:
    """A copy that lies in the place of another segment would hide that another is missing."""
    for pair in pairwise(told):
        if pair[0].record.notes == pair[1].record.notes:
            copy, original = (piece.source for piece in sorted(pair, key=_has_its_own_name))
            raise StoreError(
                f"{copy} is a copy of {original}, where another segment may have been: remove it to open the rest; a sweep "
                "then computes again what is missing"
            )


def _has_its_own_name(piece: Piece) -> bool:
    """Whether the segment is called as its writer, a sweep or a recorder, calls segments of this run."""
    numbered = f"{piece.run_id}-{piece.record.notes.get('sequence') or 0:06d}"
    return Path(piece.source).stem in (piece.run_id, numbered)


def _check_identity(told: Sequence[Piece]) -> None:
    first = told[0]
    for piece in told[1:]:
        for name in IDENTITY:
            a, b = first.record.fields.get(name), piece.record.fields.get(name)
            if a is not None and b is not None and not equal(a.data, b.data).all():
                raise StoreError(
                    f"run {piece.run_id!r} is two runs: {name} is {a.data} in {first.source} and {b.data} in "
                    f"{piece.source}; give each run its own run_id, or keep them in separate folders"
                )


def _check_recording(told: Sequence[Piece]) -> None:
    """Files of two recordings among each other would be one run whose steps are of both."""
    for before, piece in pairwise([piece for piece in told if piece.tokens]):
        if piece.tokens[: len(before.tokens)] != before.tokens:
            raise StoreError(
                f"run {piece.run_id!r} is two recordings, as of stores copied over each other: {piece.source} does not go on "
                f"with what {before.source} tells. Copy each recording again, to a folder of its own, or move the files of "
                "one out of this folder; then record under no run_id, or under one of each run's own"
            )


def equal(a: Array, b: Array) -> Array:
    """Elementwise equality, NaN being equal to NaN."""
    same = a == b
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        same = same | (np.isnan(a) & np.isnan(b))
    return np.asarray(same)
