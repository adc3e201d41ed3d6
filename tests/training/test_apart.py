"""A run taken out of what was recorded of many is what xarray takes out of it, run by run."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from alignlab.training.apart import Apart

STEPS = np.array([0, 10, 20, 30])
COORDS = {"seed": 7, "status": "finished"}
ATTRS = {"task": "toy", "device": "cpu"}


def recorded(runs: list[int] | None) -> xr.Dataset:
    """Of five runs, or of those named, with variables of all kinds."""
    rng, k = np.random.default_rng(0), 5 if runs is None else len(runs)
    table = {
        "angle": (("run", "step", "layer"), rng.normal(size=(k, 4, 2)).astype(np.float32), {"units": "°"}),
        "real": (("run", "step", "layer", "mode"), rng.normal(size=(k, 4, 2, 3)).astype(np.float32)),
        "loss": (("run", "step"), rng.normal(size=(k, 4))),
        "samples_seen": ("step", 8 * STEPS),
    }
    coords = {
        "step": STEPS,
        "layer": ["a", "b"],
        "mode": np.arange(3),
        "kind": ("layer", ["Linear", "Linear"]),
    }
    found = xr.Dataset(table, coords, {"device": "of all", "rule": "fa"})
    return found if runs is None else found.assign_coords(run=runs)


def evaluated(steps: list[int]) -> xr.Dataset:
    values = np.arange(len(steps), dtype=np.float32)
    return xr.Dataset({"test_loss": ("step", values, {"units": "nat"})}, {"step": steps})


def by_xarray(whole: xr.Dataset, number: int, last_step: int, looks: xr.Dataset) -> xr.Dataset:
    there = "run" not in whole.coords or number in whole["run"]
    own = whole.isel(step=(whole["step"].values < last_step) & there)
    if not own.sizes["step"]:
        own = xr.Dataset(coords=own.coords).drop_vars(["run", "mode"], errors="ignore")
    elif "run" in own.coords:
        own = own.sel(run=number).drop_vars("run")
    elif "run" in own.dims:
        own = own.isel(run=number)
    both = own.merge(looks, join="outer", combine_attrs="override")
    return both.assign_coords(COORDS).assign_attrs(ATTRS)


@pytest.mark.parametrize("runs", [None, [0, 2, 5]])
@pytest.mark.parametrize("number", [0, 2, 4])
@pytest.mark.parametrize(
    ("last_step", "looks"), [(40, [0, 40]), (31, [0, 10, 20, 30]), (20, [0, 20]), (13, [0, 13]), (0, [0])]
)
def test_a_run_is_what_xarray_takes_out(
    runs: list[int] | None, number: int, last_step: int, looks: list[int]
) -> None:
    whole, table = recorded(runs), evaluated(looks)
    found = Apart(whole).run(number, last_step, table, COORDS, ATTRS)
    expected = by_xarray(whole, number, last_step, table)
    xr.testing.assert_identical(found, expected)
    assert {name: v.dtype for name, v in found.variables.items()} == {
        name: v.dtype for name, v in expected.variables.items()
    }


def test_what_nothing_was_recorded_of_has_what_was_evaluated() -> None:
    nothing = xr.Dataset(coords={"step": np.arange(0), "layer": ["a"]})
    found = Apart(nothing).run(3, 20, evaluated([0, 20]), COORDS, ATTRS)
    xr.testing.assert_identical(found, by_xarray(nothing, 3, 20, evaluated([0, 20])))
