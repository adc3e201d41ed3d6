"""The rows of a compaction as the runs that they were.

Joined runs are padded to each other's steps, layers, modes and variables, and integers that not all of them have become
floats. What a run had of its own is its *form*: noted when it is compacted, it makes a row the run again, so that rows
and segments join as all of the segments would.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from alignlab.store import promotion
from alignlab.store.chunking import everything
from alignlab.store.joining import Layout, Runs, plan
from alignlab.store.pieces import Array, Piece, trimmed
from alignlab.store.record import Field, Record
from alignlab.store.zarrs import Zarr

Form = dict[str, Any]


def forms(runs: Runs, layout: Layout) -> dict[str, Any]:
    """The notes that tell each run's form: all forms that occur, and the number of each run's own."""
    known: dict[Any, int] = {}  # most runs are alike, and a form takes longer to find out than to recognise
    kinds: list[Form] = []
    numbers = []
    for told in runs:
        pieces = trimmed(told)
        likeness = tuple(map(_likeness, pieces))
        if likeness not in known:
            known[likeness] = len(kinds)
            kinds.append(_form(pieces, layout))
        numbers.append(known[likeness])
    return {"forms": kinds, "form": numbers}


def runs_of(
    zarr: Zarr, source: str, rows: Sequence[int] | None = None, only: Collection[str] | None = ()
) -> list[Piece]:
    """The runs in some rows of a compaction, or in all, with the values of `only` some variables, or of all (None)."""
    record, arrays = zarr
    wanted = [name for name in arrays if only is None or name in only]
    if not record.fields["run_id"].dims:
        whole = {name: arrays[name].read(everything(arrays[name].shape)) for name in wanted}
        fields = {
            name: field._replace(data=whole.get(name, field.data)) for name, field in record.fields.items()
        }
        return [Piece(Record(fields, record.coords, record.attrs, record.notes), source)]
    rows = range(record.fields["run_id"].data.size) if rows is None else rows
    first, last = (min(rows), max(rows) + 1) if len(rows) else (0, 0)
    values = {
        name: arrays[name].read((slice(first, last), *everything(arrays[name].shape[1:]))) for name in wanted
    }
    numbers = record.notes["form"]
    frames = {n: _Frame(record, record.notes["forms"][n]) for n in set(numbers)}
    records = [
        frames[numbers[i]].row(i, {name: block[i - first] for name, block in values.items()}) for i in rows
    ]
    promotion.demote(records, record.notes, rows)
    return [Piece(row, source) for row in records]


def _likeness(piece: Piece) -> tuple[Any, ...]:
    """All that a form depends on."""
    fields = piece.record.fields
    axes = (fields[dim].data for dim in ("step", "layer", "mode") if dim in fields)
    return (
        *((axis.dtype.str, axis.tobytes()) for axis in axes),
        *(
            (name, f.dims, f.data.dtype.str if f.data.dtype.kind != "U" else "U")
            for name, f in fields.items()
        ),
    )


def _form(told: Sequence[Piece], layout: Layout) -> Form:
    """What a run has not, where along the axes it lies, and its types, as far as it differs from all runs joined."""
    own, joined = plan([told]).record.fields, layout.record
    shared = [name for name in joined.fields if name not in joined.notes["promoted"]]
    form: Form = {"without": [name for name in shared if name not in own]}
    for dim, axis in layout.axes.values.items():
        place = layout.axes.place(dim, own[dim].data) if dim in own else np.arange(0)
        if place.size < axis.size:
            form[dim] = np.sort(place).tolist()
    form["dtypes"] = {
        name: field.data.dtype.str
        for name, field in own.items()
        if field.data.dtype.kind != "U" and field.data.dtype != joined.fields[name].data.dtype
    }
    return form


class _Frame:
    """What all runs of one form have in common, out of which a row is made."""

    def __init__(self, record: Record, form: Form) -> None:
        self._record, self._form = record, form
        fields = {name: field for name, field in record.fields.items() if name not in form["without"]}
        outlined = set(record.outlinable)
        self._own = [name for name, f in fields.items() if f.dims[:1] == ("run",) and name not in outlined]
        self._shared = {
            name: self._outline(name, field) if name in outlined else self._restricted(name, field.data)
            for name, field in fields.items()
            if name not in self._own
        }

    def row(self, i: int, values: Mapping[str, Array]) -> Record:
        """The i-th row, with the values of some variables."""
        fields = dict(self._shared)
        for name in self._own:
            fields[name] = self._restricted(name, self._record.fields[name].data[i, ...])
        for name in values.keys() & fields.keys():
            fields[name] = self._restricted(name, values[name])
        record = self._record
        return Record(fields, record.coords & fields.keys(), dict(record.attrs), record.notes)

    def _outline(self, name: str, field: Field) -> Field:
        return Field.outline(field.dims[1:], self._form["dtypes"].get(name, field.data.dtype), field.attrs)

    def _restricted(self, name: str, data: Array) -> Field:
        """Of a variable what the run has of it, in its own type."""
        dims, _, attrs = self._record.fields[name]
        dims = tuple(dim for dim in dims if dim != "run")
        for axis, dim in enumerate(dims):
            if dim in self._form:
                data = np.take(data, np.asarray(self._form[dim], dtype=np.intp), axis)
        return Field(dims, data.astype(self._form["dtypes"].get(name, data.dtype), copy=False), attrs)
