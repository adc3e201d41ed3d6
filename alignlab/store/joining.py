"""Runs put together: everything that is told of each, placed along `run` in arrays that span all steps, layers and modes.

Everything is one operation: each piece is placed at its steps, layers and modes (an outer join), one variable at a time.
It has two halves, so that runs which do not fit into memory can be joined too. A :class:`Layout` is what follows from
coordinates and attributes alone; with it the values of any block of runs can be placed by themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from alignlab.store import promotion
from alignlab.store.errors import StoreError
from alignlab.store.pieces import Piece, equal, row, trimmed
from alignlab.store.record import Field, Record

Array = npt.NDArray[Any]
Runs = Sequence[Sequence[Piece]]  # the pieces of each run, in order
Place = tuple[int, Piece, dict[str, Array]]  # number of the run, piece, where it lies along each dim
AXES = ("step", "layer", "mode")


@dataclass(frozen=True)
class Axes:
    """All values along each dim, and where those of a piece lie among them."""

    values: dict[str, Array]
    _known: dict[tuple[str, str, bytes], Array] = field(default_factory=dict)

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> Axes:
        """Sorted numbers, or layers in their runs' order, and else in that in which they first come."""
        found: dict[str, dict[bytes, Array]] = {}  # most runs have the same steps
        for piece in pieces:
            for dim in AXES:
                if dim in piece.record.fields:
                    values = piece.record.fields[dim].data
                    found.setdefault(dim, {}).setdefault(values.dtype.str.encode() + values.tobytes(), values)
        return cls({dim: _union(dim, list(found[dim].values())) for dim in AXES if dim in found})

    def sizes(self, runs: int) -> dict[str, int]:
        return {"run": runs, **{dim: axis.size for dim, axis in self.values.items()}}

    def places(self, piece: Piece) -> dict[str, Array]:
        return {
            dim: self.place(dim, piece.record.fields[dim].data)
            for dim in self.values
            if dim in piece.record.fields
        }

    def place(self, dim: str, values: Array) -> Array:
        """Where values lie along a dim."""
        key = (dim, values.dtype.str, values.tobytes())
        if key not in self._known:
            axis = self.values[dim]
            order = np.argsort(axis, kind="stable")
            found = order[np.searchsorted(axis, values, sorter=order)] if values.size else np.arange(0)
            self._known[key] = found
        return self._known[key]


def _union(dim: str, values: Sequence[Array]) -> Array:
    if dim != "layer":
        return np.unique(np.concatenate(values))
    found: list[str] = []
    for names in sorted(
        values, key=len, reverse=True
    ):  # the whole net first, which has the order of its parts
        at = len(found)
        for name in reversed(names.tolist()):  # each before the layer that follows it in its run
            if name in found:
                at = found.index(name)
            else:
                found.insert(at, name)
    return np.array(found, dtype=str)


@dataclass(frozen=True)
class Layout:
    """What is known of joined runs before any values: `record` has all but those of variables, which are outlined."""

    axes: Axes
    record: Record

    def block(self, runs: Runs, only: Collection[str] | None = None) -> dict[str, Array]:
        """The values of all outlined variables, or `only` some, of some of the runs: (run, ...) with run = len(runs)."""
        placed = _placed([trimmed(told) for told in runs], self.axes)
        sizes = self.axes.sizes(len(runs))
        blocks = {}
        for name in self.record.outlinable:
            if only is None or name in only:
                outline = self.record.fields[name]
                values = _empty([sizes[dim] for dim in ("run", *outline.dims[1:])], outline.data.dtype)
                _fill(name, values, outline.dims[1:], placed)
                blocks[name] = values
        return blocks


def join(runs: Runs) -> Record:
    """One record of all runs, given as the pieces of each in order; without the dim run where there is one run."""
    layout = plan(runs)
    record = layout.record
    for name, values in layout.block(runs).items():
        record.fields[name] = record.fields[name]._replace(data=values)
    return record if len(runs) > 1 else row(record, 0)


def plan(runs: Runs) -> Layout:
    """The layout of joined runs, of which only the coordinates' values are needed."""
    runs = [trimmed(told) for told in runs]
    axes = Axes.of(piece for told in runs for piece in told)
    placed = _placed(runs, axes)
    sizes = axes.sizes(len(runs))
    coords = set().union(*(piece.record.coords for _, piece, _ in placed))
    parts: dict[str, list[Place]] = {}
    for place in placed:
        for name in place[1].record.fields:
            parts.setdefault(name, []).append(place)
    fields = {}
    for name, told in parts.items():
        _check_alike(name, told)
        dims = told[0][1].record.fields[name].dims
        if name in axes.values:
            fields[name] = Field((name,), axes.values[name], {})
        elif name in coords or not dims:
            fields[name] = _joined(name, told, sizes, collapse=dims != ())
        else:
            dtype = _dtype(name, told)
            if dtype.kind in "biu" and not _whole(told, dims, sizes):
                dtype = np.dtype(np.float64)
            fields[name] = Field.outline(("run", *dims), dtype, {})
    record = Record(fields, coords, {})
    promotion.promote(record, [[piece.record for piece in pieces] for pieces in runs])
    return Layout(axes, record)


def _placed(runs: Runs, axes: Axes) -> list[Place]:
    return [(i, piece, axes.places(piece)) for i, told in enumerate(runs) for piece in told]


def _joined(name: str, parts: Sequence[Place], sizes: dict[str, int], collapse: bool) -> Field:
    """One variable of all pieces, led by the dim run; without it where `collapse` and no two runs differ."""
    dims = parts[0][1].record.fields[name].dims
    shape = (sizes["run"], *(sizes[dim] for dim in dims))
    dtype = _dtype(name, parts)
    values = _empty(shape, dtype)
    covered: Array | None = np.zeros(shape, dtype=bool) if collapse or dtype.kind in "biu" else None
    _fill(name, values, dims, parts, covered)
    leading: tuple[str, ...] = ("run",)
    if collapse and covered is not None and _agree(values, covered):
        values, covered, leading = _first(values, covered), np.asarray(covered.any(axis=0)), ()
    if covered is not None and dtype.kind in "biu" and not covered.all():
        values = np.where(covered, values.astype(np.float64), np.nan)
    return Field((*leading, *dims), values, {})


def _empty(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    return np.full(shape, {"f": np.nan, "U": ""}.get(dtype.kind, 0), dtype=dtype)


def _fill(
    name: str, values: Array, dims: Sequence[str], parts: Sequence[Place], covered: Array | None = None
) -> None:
    """Put what the parts tell of a variable where it lies, the last word last."""
    for run, piece, places in parts:
        if name not in piece.record.fields:
            continue
        own = [places[dim] for dim in dims]
        where = (run, *_where(own))
        data = piece.record.fields[name].data
        if data.shape != tuple(place.size for place in own):  # an outline
            raise StoreError(
                f"{name!r} is a variable in {piece.source} and a coordinate elsewhere; open these runs separately"
            )
        values[where] = data
        if covered is not None:
            covered[where] = True


def _where(places: Sequence[Array]) -> tuple[Any, ...]:
    """Places along each dim as an index: slices where they are without gaps, which numpy takes much faster."""
    if all(place.size and np.array_equal(place, np.arange(place[0], place[-1] + 1)) for place in places):
        return tuple(slice(int(place[0]), int(place[-1]) + 1) for place in places)
    return np.ix_(*places)


def _dtype(name: str, parts: Sequence[Place]) -> np.dtype[Any]:
    return np.result_type(*{piece.record.fields[name].data.dtype for _, piece, _ in parts})


def _whole(parts: Sequence[Place], dims: Sequence[str], sizes: dict[str, int]) -> bool:
    """Whether every run has the variable at all steps, layers and modes."""
    shape = tuple(sizes[dim] for dim in dims)
    covered: dict[int, Array] = {}
    for run, _, places in parts:
        told = covered.setdefault(run, np.zeros(shape, dtype=bool))
        told[_where([places[dim] for dim in dims])] = True
    return len(covered) == sizes["run"] and all(told.all() for told in covered.values())


def _check_alike(name: str, parts: Sequence[Place]) -> None:
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
    return bool((equal(values, _first(values, covered)) | ~covered).all())


def _first(values: Array, covered: Array) -> Array:
    """The value of the first run that has one, for each cell."""
    return np.asarray(np.take_along_axis(values, covered.argmax(axis=0)[None], axis=0)[0])
