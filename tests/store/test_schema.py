"""A dataset keeps the contract, or is refused with the name of the variable that breaks it."""

import numpy as np
import pytest
import xarray as xr

from alignlab.measures.quantities import QUANTITIES
from alignlab.store.schema import ContractError, check, plain, run_coords
from alignlab.testing.synthetic import synthetic_run, synthetic_runs


def with_values(name, value):
    def change(run):
        run[name].values.flat[0] = value
        return run

    return change


def renamed_layer(run):
    return run.assign_coords(layer=["fc1", "fc1"])


BROKEN = {
    "an unknown dim": (lambda r: r.assign(extra=("epoch", [1.0])), "extra", "epoch"),
    "no step at all": (lambda r: r.isel(step=0).drop_vars("step"), "step", "no such dim"),
    "steps without numbers": (lambda r: r.drop_vars("step"), "step", "without a coordinate"),
    "steps that go back": (lambda r: r.assign_coords(step=[0, 20, 10]), "step", "10 follows 20"),
    "a step twice": (lambda r: r.assign_coords(step=[0, 10, 10]), "step", "10 follows 10"),
    "unsigned steps that go back": (
        lambda r: r.assign_coords(step=np.array([0, 20, 10], np.uint64)),
        "step",
        "10 follows 20",
    ),
    "a step below zero": (lambda r: r.assign_coords(step=[-1, 0, 10]), "step", "-1"),
    "steps that are floats": (lambda r: r.assign_coords(step=[0.0, 1.0, 2.0]), "step", "float64"),
    "a layer twice": (renamed_layer, "layer", "'fc1' occurs 2 times"),
    "layers by number": (lambda r: r.assign_coords(layer=[0, 1]), "layer", "int64"),
    "no run_id": (lambda r: r.drop_vars("run_id"), "run_id", "missing"),
    "no status": (lambda r: r.drop_vars("status"), "status", "missing"),
    "no last_step": (lambda r: r.drop_vars("last_step"), "last_step", "missing"),
    "an empty run_id": (lambda r: r.assign_coords(run_id=""), "run_id", "empty"),
    "an unknown status": (lambda r: r.assign_coords(status="done"), "status", "'done'"),
    "a seed that is text": (lambda r: r.assign_coords(seed="one"), "seed", "number"),
    "a rule that is None": (lambda r: r.assign_coords(rule=None), "rule", "str"),
    "a fan_in that is text": (lambda r: r.assign_coords(fan_in=("layer", ["a", "b"])), "fan_in", "number"),
    "a kind of the run": (lambda r: r.drop_vars("kind").assign_coords(kind="Linear"), "kind", "layer"),
    "a quantity on the wrong dims": (lambda r: r.assign(loss=r.gradient_angle), "loss", "('step',)"),
    "a quantity without its layers": (lambda r: r.assign(gradient_angle=r.loss), "gradient_angle", "layer"),
    "a quantity as coordinate": (lambda r: r.set_coords("loss"), "loss", "data variable"),
    "a coordinate as variable": (lambda r: r.reset_coords("rule"), "rule", "coordinate"),
    "half precision": (lambda r: r.assign(loss=r.loss.astype(np.float16)), "loss", "float16"),
    "whole degrees": (
        lambda r: r.assign(gradient_angle=r.gradient_angle.astype(int)),
        "gradient_angle",
        "int64",
    ),
    "complex values": (lambda r: r.assign(mine=r.loss.astype(complex)), "mine", "complex128"),
    "text as data": (lambda r: r.assign(mine=("step", ["a", "b", "c"])), "mine", "dtype"),
    "dates": (lambda r: r.assign_coords(day=("step", np.zeros(3, "M8[ns]"))), "day", "datetime64"),
    "an angle above 180": (with_values("gradient_angle", 180.1), "gradient_angle", "180.1"),
    "an angle above 180 by more than rounding": (
        with_values("gradient_angle", 180.01),
        "gradient_angle",
        "180.0",
    ),
    "an angle below 0": (with_values("gradient_angle", -0.1), "gradient_angle", "-0.1"),
    "an infinite angle": (with_values("gradient_angle", np.inf), "gradient_angle", "inf"),
    "an infinite clock": (lambda r: r.assign(wall_time=("step", [0.0, 1.0, np.inf])), "wall_time", "inf"),
    "values after the end": (lambda r: r.assign_coords(last_step=19), "loss", "last_step up to 19"),
    "an attribute that is an object": (lambda r: r.assign_attrs(probe=object()), "dataset", "probe"),
    "an attribute of netCDF's own": (lambda r: r.assign_attrs(_FillValue=0), "dataset", "_FillValue"),
    "an attribute of xarray's own": (lambda r: r.assign_attrs(coordinates="lr"), "dataset", "coordinates"),
    "another schema": (lambda r: r.assign_attrs(schema_version=99), "dataset", "99"),
    "a mode of the run": (lambda r: r.drop_dims("mode").assign_coords(mode="eager"), "mode", "not along"),
    "a layer of the run": (lambda r: r.drop_dims("layer").assign_coords(layer="0"), "layer", "not along"),
    "a name with a space": (lambda r: r.assign({"my loss": r.loss}), "my loss", "spaces"),
    "a name with a slash": (lambda r: r.assign({"my/loss": r.loss}), "my/loss", "slashes"),
    "text that is no Unicode": (lambda r: r.assign_coords(arm="\ud800"), "arm", "Unicode"),
    "text with NUL": (lambda r: r.assign_coords(arm=np.array("a\0b", dtype=object)), "arm", "NUL"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_breaks_the_contract_is_refused_by_name(make_run, what):
    change, name, detail = BROKEN[what]
    check(make_run())
    with pytest.raises(ContractError) as error:
        check(change(make_run()))
    message = str(error.value)
    assert message.strip("'").startswith(name), message
    assert detail in message
    assert "expected" in message
    assert "\n" not in message


ALLOWED = {
    "NaN where nothing is defined": with_values("gradient_angle", np.nan),
    "an infinite loss": with_values("loss", np.inf),
    "a negative loss": with_values("loss", -1.0),
    "an infinite eigenvalue": with_values("spectrum_real", -np.inf),
    "an infinite norm": lambda r: r.assign(gradient_norm=r.gradient_angle * np.inf),
    "float64": lambda r: r.assign(loss=r.loss.astype(np.float64)),
    "the rounding of 180 degrees": with_values(
        "gradient_angle", np.nextafter(np.float32(180), np.float32(181))
    ),
    "own variables": lambda r: r.assign(mine=("layer", [1, 2]), other=((), True)),
    "own coordinates": lambda r: r.assign_coords(epoch=("step", [0, 0, 1]), beta=0.9),
    "no layers": lambda r: r[["loss"]],
    "no steps yet": lambda r: r.isel(step=[]),
    "dims in another order": lambda r: r.transpose("mode", "layer", "step"),
    "numpy's scalars and arrays as attributes": lambda r: r.assign_attrs(
        n=np.int64(1), a=np.arange(3), b=np.True_
    ),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_the_contract_allows_passes(make_run, what):
    assert check(ALLOWED[what](make_run())) is None


def test_two_runs_of_one_id_are_refused(make_run):
    runs = xr.concat([make_run("a"), make_run("b")], dim="run")
    check(runs)
    with pytest.raises(ContractError, match="run_id: 'a' occurs 2 times"):
        check(runs.assign_coords(run_id=("run", ["a", "a"])))
    with pytest.raises(ContractError, match=r"run_id: dims \(\)"):
        check(runs.assign_coords(run_id="a"))


def test_values_after_the_end_of_one_of_two_runs_are_refused(make_run):
    runs = xr.concat([make_run("a"), make_run("b")], dim="run").drop_vars("samples_seen")
    runs = runs.assign_coords(last_step=("run", [20, 10]))
    with pytest.raises(ContractError, match="last_step"):
        check(runs)
    check(runs.where((runs.run_id == "a") | (runs.step <= 10)))


def test_several_runs_need_the_dim_run_on_every_quantity(make_run):
    runs = xr.concat([make_run("a"), make_run("b")], dim="run")
    with pytest.raises(ContractError, match="learning_rate"):
        check(runs.assign(learning_rate=("step", [0.1, 0.1, 0.1])))


def test_every_quantity_has_dims_of_the_contract():
    for quantity in QUANTITIES.values():
        assert quantity.dims in [("step",), ("step", "layer"), ("step", "layer", "mode")], quantity.name


def test_the_synthetic_runs_keep_the_contract():
    run = synthetic_run("fa", steps=50)
    assert set(run_coords) <= set(run.coords)
    check(run)
    check(synthetic_run("sign_sync", lr=10.0, steps=50))
    check(synthetic_runs(steps=50, seeds=range(2)))


def test_plain_values_are_what_json_gives_back():
    assert plain((1, np.float64(2.5), [None, {"a": np.bool_(True)}])) == [1, 2.5, [None, {"a": True}]]
    with pytest.raises(TypeError, match="dict"):
        plain({1: "a key that JSON would make text"})
