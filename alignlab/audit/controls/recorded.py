"""What controls read of a recorded run: a quantity as a table of steps and layers, and what is usual in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.training.spec import RunSpec

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray as xr

    Table = npt.NDArray[Any]  # of float64


def table(run: xr.Dataset, name: str) -> Table:
    """A quantity of one run, (steps, layers); NaN where it was not measured."""
    found: Table = run[name].transpose("step", "layer").values.astype(np.float64)
    return found


def medians(found: Table) -> list[float]:
    """Of a table, the median over the steps that have a value, of each layer that has one."""
    return [float(np.median(column[np.isfinite(column)])) for column in found.T if np.isfinite(column).any()]


def learning(run: xr.Dataset, spec: RunSpec) -> list[str]:
    """The layers that are not frozen."""
    return [name for name in run["layer"].values if not spec.freezes(f"{name}.weight")]
