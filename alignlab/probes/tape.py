"""The tape: measurements as they come in, on the device they were made on, and their transfer to a dataset at a flush.

A row's numbers are copied into one tensor as it is added, so that nothing that a probe returned can change afterwards, and
stay on their device until :meth:`Tape.flush` moves them, many rows at once: nothing waits for the device in between.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from alignlab.measures.quantities import QUANTITIES
from alignlab.probes import geometry
from alignlab.probes.kept import Found, Kept
from alignlab.probes.uses import weight_of

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray as xr

Value = Tensor | float
Key = tuple[str, str | None]  # variable and layer; no layer for what is of the whole step
Table = tuple[list[int], dict[Key, Tensor]]  # rows, and for each variable a number or a vector a row
Variable = tuple[tuple[str, ...], "npt.NDArray[Any]", dict[str, Any]]

EXACT = ("samples_seen",)  # float32 counts to 16.7 million only


@dataclass
class Row:
    """One step's measurements: plain numbers, the scalar tensors of each device as one, and vectors along ``mode``."""

    step: int
    numbers: dict[Key, float] = field(default_factory=dict)
    scalars: list[tuple[tuple[Key, ...], Tensor]] = field(default_factory=list)
    vectors: dict[Key, Tensor] = field(default_factory=dict)


class Tape:
    """Rows of measurements over ``layers``."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        runs = next(iter({geometry.runs(layer) for layer in layers.values()}), None)
        self._runs = None if runs is None else np.arange(runs)  # their numbers, where there are several
        self._rows: list[Row] = []
        self._kept = Kept(self.lead)
        self._tables: list[Table] = []  # what became of it

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lead(self) -> tuple[int, ...]:
        """The shape of every value, before a mode."""
        return () if self._runs is None else self._runs.shape

    def narrow(self, rows: Tensor) -> None:
        """What comes from here on is of these ``rows`` of the runs alone; after a flush."""
        assert self._runs is not None
        self._runs = self._runs[rows.numpy(force=True)]
        self._kept.lead = self.lead

    def add(
        self,
        step: int,
        by_layer: Mapping[str, Mapping[str, Value]],
        by_step: Mapping[str, Value],
        kept: Sequence[Found] = (),
    ) -> None:
        """One step's measurements: ``by_layer[layer][variable]``, ``by_step[variable]``, and what two-stage probes kept."""
        row = Row(step)
        scalars: dict[torch.device, dict[Key, Tensor]] = defaultdict(dict)
        for key, value in _entries(by_layer, by_step):
            if not isinstance(value, Tensor):
                row.numbers[key] = float(value)
            elif value.shape == self.lead:
                scalars[value.device][key] = value.detach()
            else:
                row.vectors[key] = value.detach().clone()
        row.scalars = [(tuple(found), _stacked(list(found.values()))) for found in scalars.values()]
        self._kept.add(len(self._rows), kept)
        self._rows.append(row)
        if self._kept.is_large:
            self._finish()

    def _finish(self) -> None:
        """Apply the formulas to what was kept."""
        for indices, layer, values in self._kept.finish():
            self._tables.append((indices, {(name, layer): value.detach() for name, value in values.items()}))

    def flush(self) -> xr.Dataset:
        """Everything since the last flush as a dataset on (step, layer, mode); empties the tape."""
        import xarray as xr

        self._finish()
        rows, self._rows, tables, self._tables = self._rows, [], self._tables, []
        columns = _columns(rows, tables, self.lead)
        vectors = [column for column in columns.values() if column.ndim == 2 + len(self.lead)]
        modes = max((column.shape[-1] for column in vectors), default=0)
        names = sorted({name for name, _ in columns})
        with np.errstate(
            over="ignore"
        ):  # norms of a run that diverges may leave float32: they are infinite there
            variables = {name: self._variable(name, columns, len(rows), modes) for name in names}
        steps = np.asarray([row.step for row in rows], dtype=np.int64)
        coords: dict[str, Any] = {"step": steps, **self._layer_coords()}
        found = xr.Dataset(variables, coords | ({"mode": np.arange(modes)} if modes else {}))
        return found.assign_coords(run=self._runs).transpose("run", ...) if "run" in found.dims else found

    def _variable(
        self, name: str, columns: Mapping[Key, npt.NDArray[Any]], rows: int, modes: int
    ) -> Variable:
        attrs = QUANTITIES[name].attrs() if name in QUANTITIES else {}
        dtype = np.float64 if name in EXACT else np.float32
        dims = ("step", "run")[: 1 + len(self.lead)]
        if (name, None) in columns:
            return dims, columns[name, None].astype(dtype), attrs
        there = {i: columns[name, layer] for i, layer in enumerate(self._layers) if (name, layer) in columns}
        per_mode = any(column.ndim > len(dims) for column in there.values())
        table = np.full((rows, *self.lead, len(self._layers), *[modes] * per_mode), np.nan, dtype=dtype)
        for i, column in there.items():
            place: Any = (..., i, *[slice(column.shape[-1])] * per_mode)
            table[place] = column
        return (*dims, "layer", *["mode"] * per_mode), table, attrs

    def _layer_coords(self) -> dict[str, Any]:
        kinds = [geometry.kind(layer) for layer in self._layers.values()]
        fans = [geometry.fans(layer, weight_of(layer)) for layer in self._layers.values()]
        return {
            "layer": np.asarray(list(self._layers), dtype=str),
            "kind": ("layer", np.asarray(kinds, dtype=str)),
            "fan_in": ("layer", np.asarray([below for below, _ in fans], dtype=np.int64)),
            "fan_out": ("layer", np.asarray([above for _, above in fans], dtype=np.int64)),
        }


def _entries(
    by_layer: Mapping[str, Mapping[str, Value]], by_step: Mapping[str, Value]
) -> Iterable[tuple[Key, Value]]:
    yield from (((name, None), value) for name, value in by_step.items())
    yield from (((name, layer), value) for layer, found in by_layer.items() for name, value in found.items())


def _stacked(values: list[Tensor]) -> Tensor:
    wide = torch.float32 if values[0].device.type == "mps" else torch.float64
    return torch.stack([value if value.dtype == wide else value.to(wide) for value in values])


def _columns(
    rows: list[Row], tables: Sequence[Table], lead: tuple[int, ...]
) -> dict[Key, npt.NDArray[np.float64]]:
    """Each key's values over the rows, (rows, *lead) or (rows, *lead, modes), NaN where there is none."""
    found: dict[Key, dict[int, Any]] = defaultdict(dict)
    alike: dict[tuple[Key, ...], list[tuple[int, Tensor]]] = defaultdict(list)
    for i, row in enumerate(rows):
        for key, number in row.numbers.items():
            found[key][i] = number
        for key, vector in row.vectors.items():
            found[key][i] = vector.double().cpu().numpy()
        for keys, stacked in row.scalars:
            alike[keys].append((i, stacked))
    for keys, stacks in alike.items():  # one transfer for all of them
        whole = torch.stack([stacked for _, stacked in stacks])
        _fill(found, [i for i, _ in stacks], dict(zip(keys, whole.unbind(1), strict=True)), len(lead))
    for indices, columns in tables:
        _fill(found, indices, columns, len(lead))
    return {key: _column(by_row, len(rows), lead) for key, by_row in found.items()}


def _fill(
    found: dict[Key, dict[int, Any]], indices: Sequence[int], columns: Mapping[Key, Tensor], leading: int
) -> None:
    """Move columns to the host, all numbers at once, and note them by row."""
    numbers = {key: column for key, column in columns.items() if column.dim() == 1 + leading}
    if numbers:
        table = _stacked(list(numbers.values())).double().cpu().numpy()
        for key, column in zip(numbers, table, strict=True):
            found[key] |= dict(zip(indices, column, strict=True))
    for key in columns.keys() - numbers.keys():
        found[key] |= dict(zip(indices, columns[key].double().cpu().numpy(), strict=True))


def _column(by_row: Mapping[int, Any], rows: int, lead: tuple[int, ...]) -> npt.NDArray[np.float64]:
    modes = [np.shape(value)[-1] for value in by_row.values() if np.ndim(value) > len(lead)]
    column = np.full((rows, *lead, *([max(modes)] if modes else [])), np.nan)
    for i, value in by_row.items():
        column[(i, ..., slice(np.shape(value)[-1])) if modes else i] = value
    return column
