"""What was recorded of many runs together, as a dataset of each.

The same as ``recorded.isel(run=k)`` up to the run's last step, merged with what was evaluated (an outer join on step). But
xarray would align every variable of every run anew, which costs more than the training of a small run; here they are arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import xarray as xr

Array = npt.NDArray[Any]


class Apart:
    """The runs in a dataset with the dimensions (run, step, …); variables without a run are those of each."""

    def __init__(self, recorded: xr.Dataset) -> None:
        runs = recorded["run"].values if "run" in recorded.coords else range(recorded.sizes.get("run", 0))
        self._place = {int(run): place for place, run in enumerate(runs)}
        self._steps = recorded["step"].values
        self._attrs = recorded.attrs
        kept = {str(name): v for name, v in recorded.variables.items() if name not in ("run", "step")}
        self._variables = {name: (v.dims, v.values, v.attrs) for name, v in kept.items()}
        self._coords = [name for name in kept if name in recorded.coords]
        self._described = [name for name in self._coords if "mode" not in kept[name].dims]

    def run(
        self,
        number: int,
        last_step: int,
        evaluated: xr.Dataset,
        coords: Mapping[str, object],
        attrs: Mapping[str, object],
    ) -> xr.Dataset:
        """The run of this ``number``: what was recorded of it before its ``last_step``, and what was ``evaluated``; with
        ``coords`` and ``attrs`` of its own, which come before those of all.

        A run that ended before anything was measured has what was evaluated, and no attributes but its own: as where it is
        trained alone, nobody then knows what would have been measured.
        """
        import xarray as xr

        own = self._steps[(self._steps < last_step) & (number in self._place)]
        looks = evaluated["step"].values
        steps = np.union1d(own, looks)
        here, there = np.searchsorted(steps, own), np.searchsorted(steps, looks)
        names, common = (self._variables, self._attrs) if len(own) else (self._described, {})
        found = {name: self._variable(name, number, here, len(steps)) for name in names}
        for name, v in evaluated.data_vars.items():
            found[str(name)] = (v.dims, _placed(v.values, there, len(steps)), v.attrs)
        shared = {name: found.pop(name) for name in self._coords if name in found}
        return xr.Dataset(found, {"step": steps, **shared, **coords}, {**common, **attrs})

    def _variable(
        self, name: str, number: int, at: Array, steps: int
    ) -> tuple[Any, Array, Mapping[Any, Any]]:
        dims, values, attrs = self._variables[name]
        if dims[:1] == ("run",):
            values, dims = values[self._place[number]], dims[1:]
        if dims[:1] == ("step",):
            values = _placed(values[: len(at)], at, steps)
        return dims, values, attrs


def _placed(values: Array, at: Array, steps: int) -> Array:
    """``values`` at these places of so many steps, NaN at the others; integers become floats where there are others."""
    if len(at) == steps:
        return values
    dtype = values.dtype if values.dtype.kind == "f" else np.dtype(float)
    out = np.full((steps, *values.shape[1:]), np.nan, dtype)
    out[at] = values
    return out
