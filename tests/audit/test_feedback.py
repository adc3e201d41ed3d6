"""Predicted angles of feedback that learns: against triangles worked out by hand, and against runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from alignlab.audit.feedback import (
    aligned_at,
    angle_of_sides,
    beyond_chance,
    kolen_pollack_angle,
    mirror_angle,
    mirror_price,
    nearness,
    predicted_angles,
)
from alignlab.training import RunSpec, train

KP = RunSpec(
    task="xor_bits", hidden=(8, 8), activation="tanh", rule="kolen_pollack", rule_args={"init": "like_forward"}, lr=0.5,
    weight_decay=0.02, batch_size=4, steps=240, evaluations=2, record_every=20,
)  # fmt: skip


def test_the_angle_of_a_triangle() -> None:
    found = angle_of_sides([3, 1, 2, 1, 1, 1], [4, 1, 1, 1, 0, 0], [5, 2, 1, 1e-9, 1, 1 + 1e-9])
    assert found[:3].tolist() == pytest.approx([90, 180, 0])
    assert found[3] == pytest.approx(np.degrees(1e-9), rel=1e-6)  # where the cosine would be 1
    assert np.isnan(found[4:]).all()


@pytest.mark.parametrize("layer", ["3", "5"])
def test_kolen_pollack_keeps_to_its_prediction(layer: str) -> None:
    run = train(KP)
    steps, angles = kolen_pollack_angle(run, layer)
    measured = run["weight_angle"].sel(layer=layer, step=steps).values
    assert steps.tolist() == list(range(0, 240, 20))
    assert measured[0] > 60
    assert measured[-1] < 25
    np.testing.assert_allclose(angles, measured, rtol=1e-4)


@pytest.mark.parametrize("schedule", [{"lr_schedule": "cosine"}, {"lr_schedule": "linear", "warmup": 100}])
def test_a_prediction_knows_the_schedule_of_the_rate(schedule: dict[str, Any]) -> None:
    run = train(KP.changed(**schedule))
    steps, angles = kolen_pollack_angle(run, "3")
    np.testing.assert_allclose(angles, run["weight_angle"].sel(layer="3", step=steps).values, rtol=1e-3)


def test_a_prediction_begins_where_the_record_does() -> None:
    run = train(KP)
    steps, angles = kolen_pollack_angle(run.isel(step=run["step"] >= 100), "3")
    assert steps[0] == 100
    np.testing.assert_allclose(angles, run["weight_angle"].sel(layer="3", step=steps).values, rtol=1e-4)


def test_a_prediction_from_another_decay_fails() -> None:
    run = train(KP)
    other = run.assign_attrs(spec=KP.changed(weight_decay=0.1).to_yaml())
    steps, angles = kolen_pollack_angle(other, "3")
    assert abs(angles[-1] - float(run["weight_angle"].sel(layer="3", step=steps[-1]))) > 3


def test_momentum_has_no_such_prediction() -> None:
    run = train(KP.changed(momentum=0.9, steps=2))
    with pytest.raises(ValueError, match=r"no prediction for sgd, momentum 0\.9"):
        kolen_pollack_angle(run, "3")


def test_a_mirror_settles_where_it_is_said_to() -> None:
    fan_in, samples, decay = 40, 16, 0.1
    W = torch.randn(200, fan_in, generator=torch.Generator().manual_seed(0))
    xi = torch.Generator().manual_seed(1)
    B = torch.zeros_like(W)
    for _ in range(100):
        noise = torch.randn(samples, fan_in, generator=xi)
        B = (1 - decay) * B + decay * (noise @ W.T).T @ noise / samples
    cosine = torch.nn.functional.cosine_similarity(B.flatten(), W.flatten(), dim=0)
    assert mirror_angle(fan_in, samples, decay) == pytest.approx(
        float(torch.rad2deg(torch.acos(cosine))), rel=0.1
    )


# Runs of two layers, "1" of 4 × 8 and "3" of 8 × 2, worked out by hand --------------------------------------------------

MIRROR = RunSpec(rule="weight_mirror", rule_args={"samples": 6}, batch_size=5)


def recorded(rule: str = "weight_mirror", spec: RunSpec = MIRROR, **values: object) -> xr.Dataset:
    """Two runs of one arm at steps 0 and 10, with variables (run, layer, step) from ``values``."""
    coords = {
        "run_id": ["r0", "r1"],
        "seed": [0, 1],
        "arm": ["mine"] * 2,
        "rule": [rule] * 2,
        "status": ["finished"] * 2,
    }
    runs = xr.Dataset(
        {
            name: (("run", "layer", "step", "mode")[: np.ndim(own)], np.asarray(own, float))
            for name, own in values.items()
        },
        {name: ("run", own) for name, own in coords.items()}
        | {"step": [0, 10], "layer": ["1", "3"], "fan_in": ("layer", [8, 2]), "fan_out": ("layer", [4, 8])},
    )
    return runs.assign_coords(spec=("run", [spec.to_yaml()] * 2))


def test_a_mirror_spares_the_first_layer() -> None:
    # sizes 32 and 16; step: 5 (3 · 48 − 32) = 560; phase without the first layer: 2 · 6 · 16 = 192
    assert mirror_price(recorded(weight_angle=np.ones((2, 2, 2)))) == pytest.approx(192 / 560)
    with pytest.raises(ValueError, match="no run of these has the rule 'weight_mirror'"):
        mirror_price(recorded("fa", weight_angle=np.ones((2, 2, 2))))


def test_feedback_is_predicted_arm_by_arm_where_it_learns() -> None:
    runs = recorded(weight_angle=np.ones((2, 2, 2)))
    floor = mirror_angle(2, samples=6, decay=0.01)
    assert predicted_angles(runs, "3") == {"mine": ([0, 10], [floor, floor])}
    beside_others = runs.assign_coords(  # as a store of several nets holds it
        {name: (("run", "layer"), [runs[name].values, [np.nan, 3]]) for name in ("fan_in", "fan_out")}
    )
    assert predicted_angles(beside_others, "3") == predicted_angles(runs, "3")
    assert predicted_angles(beside_others.isel(run=[1]), "1") == {}
    assert mirror_price(beside_others) == mirror_price(runs)
    for own in ({"growth_control": True}, {}):
        spec = MIRROR.changed(rule_args=own) if own else RunSpec(rule="fa")
        assert predicted_angles(recorded(spec=spec, weight_angle=np.ones((2, 2, 2))), "3") == {}


def test_kolen_pollacks_prediction_is_the_geometric_mean_of_its_runs() -> None:
    spec = RunSpec(rule="kolen_pollack", lr=0.5, weight_decay=0.02)
    angles = [[[90, 1], [90, 1]], [[30, 1], [30, 1]]]
    runs = recorded(
        spec=spec, weight_angle=angles, weight_norm=np.ones((2, 2, 2)), feedback_norm=np.ones((2, 2, 2))
    )
    steps, found = predicted_angles(runs, "3")["mine"]
    each = [kolen_pollack_angle(runs.isel(run=i), "3")[1] for i in (0, 1)]
    assert steps.tolist() == [0, 10]
    assert found == pytest.approx(np.sqrt(each[0] * each[1]))
    assert found[0] == pytest.approx(np.sqrt(90 * 30))
    diverged = runs.where(
        (runs["step"] < 10) | (runs["seed"] == 0)
    )  # of what is known of one run there is no mean
    steps, known = predicted_angles(diverged, "3")["mine"]
    assert steps.tolist() == [0]
    assert known == pytest.approx(found[:1])
    bare = predicted_angles(runs.where(runs["seed"] == 0), "3")["mine"]
    assert [len(own) for own in bare] == [0, 0]
    momentum = recorded(spec=spec.changed(momentum=0.9), weight_angle=angles)
    assert predicted_angles(momentum, "3") == {}


def test_runs_are_aligned_where_the_worst_layer_is() -> None:
    descent = [[[0.5, 1], [1, 0.98]], [[1, 1], [0.995, 0.2]]]
    runs = recorded(descent_fraction=descent)
    assert aligned_at(runs)["mine"].tolist() == [np.inf, 0]
    assert aligned_at(runs, 0.9)["mine"].tolist() == [10, 0]


def test_eigenvalues_are_beyond_chance_outside_of_the_disc() -> None:
    modes = np.zeros((2, 2, 2, 3))
    modes[:, :, 0] = [[3, -3, 2.8], [2.1, -1.9, 0]]
    modes[:, :, 1] = np.nan
    imaginary = np.zeros_like(modes)
    imaginary[1, 1, 0, 1] = 1.0  # |−1.9 + i| = 2.15
    runs = recorded(
        spectrum_real=modes, spectrum_imag=imaginary, chance_radius=[[[2.83, 2.83], [2, 2]]] * 2,
    )  # fmt: skip
    found = beyond_chance(runs).transpose("run", "layer", "step").values
    assert found[:, :, 0].tolist() == [[2, 1], [2, 2]]
    assert np.isnan(found[:, :, 1]).all()  # no spectrum there


def test_nearness_tells_how_near_and_how_soon_layer_by_layer() -> None:
    angle = [[[np.nan] * 2, [90, 4]], [[np.nan] * 2, [8, 6.005]]]
    runs = recorded(
        weight_angle=angle, gradient_angle=[[[80, 40]] * 2] * 2, feedback_gain=[[[1, 3], [9, 9]]] * 2
    )
    found = {name: own["mine"] for name, own in nearness(runs).items()}
    assert found == {"angle (3)": 5.0, "< 10° (3)": 5.0, "gradient angle (1)": 60.0, "gain": 2.0}
    assert nearness(runs, 5)["< 5° (3)"]["mine"] == np.inf
