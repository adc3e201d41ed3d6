"""Pieces of runs put together: the segments of one run along `step`, and the runs along `run`.

Everything is one operation: each piece is placed at its steps, layers and modes in arrays that span them all (an
outer join), one variable at a time. Where segments of one run overlap, as after a resumption from an
earlier checkpoint, the later segment speaks for its variables at its steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alignlab.store import promotion
from alignlab.store.errors import StoreError
from alignlab.store.record import Field, Record
from alignlab.store.schema import run_coords

Array = npt.NDArray[Any]
Part = tuple[int, "Piece", dict[str, Array]]  # number of the run, piece, where it lies along each dim
AXES = ("step", "layer", "mode")
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


def split(record: Record, source: str) -> list[Piece]:
    """The runs of a record, each by itself."""
    if not record.fields["run_id"].dims:
        return [Piece(record, source)]
    rows = [_row(record, i) for i in range(record.fields["run_id"].data.size)]
    promotion.demote(rows, record.notes)
    return [Piece(row, source) for row in rows]


def _row(record: Record, i: int) -> Record:
    fields = {
        name: Field(f.dims[1:], f.data[i, ...], f.attrs) if f.dims[:1] == ("run",) else f
        for name, f in record.fields.items()
    }
    return Record(fields, set(record.coords), dict(record.attrs), dict(record.notes))


def by_run(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """The pieces of each run in the order in which they were written; runs sorted by their id.

    Raises:
        StoreError: where pieces of one run_id are of different runs.
    """
    runs: dict[str, list[Piece]] = {}
    for piece in pieces:
        runs.setdefault(piece.run_id, []).append(piece)
    for told in runs.values():
        numbered = all(piece.record.notes.get("sequence") is not None for piece in told)
        key = "sequence" if numbered else "written"
        told.sort(key=lambda piece: piece.record.notes.get(key) or 0)
        _check_identity(told)
    return dict(sorted(runs.items()))


def _check_identity(told: Sequence[Piece]) -> None:
    first = told[0]
    for piece in told[1:]:
        for name in IDENTITY:
            a, b = first.record.fields.get(name), piece.record.fields.get(name)
            if a is not None and b is not None and not _equal(a.data, b.data).all():
                raise StoreError(
                    f"run {piece.run_id!r} is two runs: {name} is {a.data} in {first.source} and {b.data} in "
                    f"{piece.source}; give each run its own run_id, or keep them in separate folders"
                )


def join(runs: Sequence[Sequence[Piece]]) -> Record:
    """One record of all runs, given as the pieces of each in order; without the dim run where there is one run."""
    pieces = [(i, _trimmed(piece, told[-1].last_step)) for i, told in enumerate(runs) for piece in told]
    axes = {dim: axis for dim in AXES if (axis := _axis(dim, [piece for _, piece in pieces])) is not None}
    places = [_places(piece, axes) for _, piece in pieces]
    sizes = {"run": len(runs), **{dim: axis.size for dim, axis in axes.items()}}
    names = dict.fromkeys(name for _, piece in pieces for name in piece.record.fields)
    coords = set().union(*(piece.record.coords for _, piece in pieces))

    fields = {}
    for name in names:
        parts = [
            (i, p, place) for (i, p), place in zip(pieces, places, strict=True) if name in p.record.fields
        ]
        if name in axes:
            fields[name] = Field((name,), axes[name], {})
        else:
            collapse = name in coords and parts[0][1].record.fields[name].dims != ()
            fields[name] = _place(name, parts, sizes, collapse)
    record = Record(fields, coords, {})
    promotion.promote(record, [[piece.record for piece in pieces] for pieces in runs])
    return record if len(runs) > 1 else _row(record, 0)


def _trimmed(piece: Piece, last_step: int) -> Piece:
    """A piece without steps after the run's last, left by an attempt that was taken up again before them."""
    steps = piece.record.fields["step"].data
    n = int(np.searchsorted(steps, last_step, side="right"))
    if n == steps.size:
        return piece
    fields = {
        name: Field(f.dims, f.data[:n], f.attrs) if f.dims[:1] == ("step",) else f
        for name, f in piece.record.fields.items()
    }
    record = piece.record
    return Piece(Record(fields, record.coords, record.attrs, record.notes), piece.source)


def _axis(dim: str, pieces: Sequence[Piece]) -> Array | None:
    """All values along a dim: sorted numbers, or layers in the order in which they first come."""
    values = [piece.record.fields[dim].data for piece in pieces if dim in piece.record.fields]
    if not values:
        return None
    if dim != "layer":
        return np.unique(np.concatenate(values))
    return np.array(list(dict.fromkeys(name for names in values for name in names.tolist())), dtype=str)


def _places(piece: Piece, axes: dict[str, Array]) -> dict[str, Array]:
    """Where the piece's steps, layers and modes lie along the axes of all."""
    places = {}
    for dim, axis in axes.items():
        if dim in piece.record.fields:
            values = piece.record.fields[dim].data
            order = np.argsort(axis, kind="stable")
            places[dim] = order[np.searchsorted(axis, values, sorter=order)] if values.size else np.arange(0)
    return places


def _place(name: str, parts: Sequence[Part], sizes: dict[str, int], collapse: bool) -> Field:
    """One variable of all pieces, led by the dim run; without it where `collapse` and no two runs differ."""
    fields = [piece.record.fields[name] for _, piece, _ in parts]
    _check_alike(name, parts)
    dims = fields[0].dims
    shape = (sizes["run"], *(sizes[dim] for dim in dims))
    dtype = np.result_type(*{field.data.dtype for field in fields})
    values = np.full(shape, {"f": np.nan, "U": ""}.get(dtype.kind, 0), dtype=dtype)
    covered: Array | None = np.zeros(shape, dtype=bool) if collapse or dtype.kind in "biu" else None
    for (run, _, places), field in zip(parts, fields, strict=True):
        where: Any = (run, *np.ix_(*(places[dim] for dim in dims))) if dims else (run,)
        values[where] = field.data
        if covered is not None:
            covered[where] = True
    leading: tuple[str, ...] = ("run",)
    if collapse and covered is not None and _agree(values, covered):
        values, covered, leading = _first(values, covered), np.asarray(covered.any(axis=0)), ()
    if covered is not None and dtype.kind in "biu" and not covered.all():
        values = np.where(covered, values.astype(np.float64), np.nan)
    return Field((*leading, *dims), values, {})


def _check_alike(name: str, parts: Sequence[Part]) -> None:
    first = parts[0][1]
    one = first.record.fields[name]
    for _, piece, _ in parts:
        other = piece.record.fields[name]
        if other.dims != one.dims or (other.data.dtype.kind == "U") != (one.data.dtype.kind == "U"):
            raise StoreError(
                f"{name!r} has dims {one.dims} and dtype {one.data.dtype} in {first.source}, but {other.dims} and "
                f"{other.data.dtype} in {piece.source}; open these runs separately"
            )


def _agree(values: Array, covered: Array) -> bool:
    """Whether no two runs differ where both have a value."""
    return bool((_equal(values, _first(values, covered)) | ~covered).all())


def _first(values: Array, covered: Array) -> Array:
    """The value of the first run that has one, for each cell."""
    return np.asarray(np.take_along_axis(values, covered.argmax(axis=0)[None], axis=0)[0])


def _equal(a: Array, b: Array) -> Array:
    """Elementwise equality, NaN being equal to NaN."""
    same = a == b
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        same = same | (np.isnan(a) & np.isnan(b))
    return np.asarray(same)
