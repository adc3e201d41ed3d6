"""A recorded run's angles, given to noise: the noisy run has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from training_runs import TINY

from alignlab.training import RunSpec, replayed_noise, replayed_sizes, train


def spec(**fields: Any) -> RunSpec:
    return RunSpec(
        **{"hidden": (9, 7), "batch_size": 8, "steps": 7, "record_every": 2, "evaluations": 3, **fields}
    )


def run(values: Any, steps: list[int], layers: list[str]) -> xr.Dataset:
    angles = xr.DataArray(np.asarray(values, float), {"step": steps, "layer": layers}, ("step", "layer"))
    return xr.Dataset({"gradient_angle": angles, "feedback_gain": angles / 10})


def test_a_rules_recorded_angles_and_gains_are_those_of_the_noisy_run() -> None:
    first = train(spec(rule="fa"), task=TINY)
    arguments = replayed_noise(first)
    noisy = train(spec(rule="noisy_backprop", rule_args=arguments), task=TINY)
    recorded = noisy.gradient_angle.dropna("step", how="all")
    assert recorded.step.values.tolist() == arguments["steps"] == [0, 2, 4, 6]
    np.testing.assert_allclose(recorded, first.gradient_angle.dropna("step", how="all"), atol=0.02)
    np.testing.assert_allclose(noisy.feedback_gain, first.feedback_gain, rtol=1e-4)
    assert float(recorded.max()) > 30


def test_between_recorded_steps_the_last_one_holds() -> None:
    arguments = replayed_noise(train(spec(rule="fa", record_every=3), task=TINY), gain=False)
    noisy = train(spec(rule="noisy_backprop", rule_args=arguments, record_every=1), task=TINY)
    found = noisy.gradient_angle.dropna("step", how="all").sel(layer="1").values
    np.testing.assert_allclose(found[[1, 2, 4, 5]], found[[0, 0, 3, 3]], atol=0.02)
    np.testing.assert_allclose(noisy.feedback_gain.dropna("step", how="all"), 1, rtol=1e-4)


def test_gaps_are_filled_from_before() -> None:
    nan = np.nan
    found = replayed_noise(
        run([[nan, 60, nan], [90, nan, nan], [nan, nan, nan], [60, 0, nan]], [0, 3, 4, 9], ["a", "b", "c"])
    )
    assert found["steps"] == [0, 3, 9]
    assert {k: pytest.approx(v, abs=1e-9) for k, v in found["cosine"].items()} == {
        "a": [0, 0, 0.5],
        "b": [0.5, 0.5, 1],
    }
    assert found["gain"]["b"] == pytest.approx([6, 6, 0])


def test_the_order_of_dims_does_not_matter_and_a_size_that_is_not_finite_is_a_gap() -> None:
    sizes = run([[np.inf, 2], [0.5, 3], [np.inf, 4]], [0, 1, 2], ["a", "b"])["gradient_angle"]
    recorded = xr.Dataset({"update_norm": sizes})
    found = replayed_sizes(recorded)
    assert found["sizes"] == {"a": [0.5, 0.5, 0.5], "b": [2, 3, 4]}
    assert replayed_sizes(recorded.transpose("layer", "step")) == found


@pytest.mark.parametrize(
    ("dataset", "complaint"),
    [
        (xr.Dataset(), r"no gradient_angle and no feedback_gain: record it with"),
        (run([[np.nan]], [0], ["a"]), "recorded no angle"),
        (
            run([[1.0]], [0], ["a"]).expand_dims("run"),
            r"expected one run on \(step, layer\), not on \(run, step, layer\)",
        ),
    ],
)
def test_what_cannot_be_replayed_is_one_clear_error(dataset: xr.Dataset, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replayed_noise(dataset)
