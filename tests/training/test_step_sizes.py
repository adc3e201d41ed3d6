"""Steps of a given length: those of the spec, in every layer, at every step, and nothing else of the run changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from training_runs import TINY, parameters, trained

from alignlab.probes import EffectiveLR
from alignlab.training import RunSpec, SpecError, replayed_sizes, train
from alignlab.training.population import train_population

LAYERS = ("1", "3", "5")
RULES = ("bp", "fa", "dfa", "kolen_pollack", "node_perturbation", "noisy_backprop")


def spec(**fields: Any) -> RunSpec:
    base = {
        "hidden": (9, 7),
        "batch_size": 8,
        "steps": 7,
        "record_every": 1,
        "spectra_every": 0,
        "evaluations": 2,
    }
    return RunSpec(**{**base, "lr": 0.1, **fields})


def recorded(run: xr.Dataset, name: str) -> Any:
    return run[name].dropna("step", how="all").transpose("step", "layer").values


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_run_given_its_own_step_sizes_is_itself(rule: str, relative: bool) -> None:
    own = spec(rule=rule)
    sizes = replayed_sizes(train(own, task=TINY), relative=relative)
    again = parameters(trained(own.changed(step_sizes=sizes), TINY))
    for name, parameter in parameters(trained(own, TINY)).items():
        noise = 3e-4 if rule == "node_perturbation" else 1e-5  # whose differences of losses magnify rounding
        torch.testing.assert_close(again[name], parameter, rtol=1e-3, atol=noise)


@pytest.mark.parametrize(
    "model", [{}, {"model": "lenet", "hidden": (128, 64)}, {"model": "untied", "hidden": (128, 64)}]
)
@pytest.mark.parametrize("rule", RULES)
def test_one_relative_size_is_that_of_every_layer_at_every_step(rule: str, model: dict[str, Any]) -> None:
    run = train(spec(rule=rule, **model, step_sizes={"sizes": 0.03, "relative": True}), task=TINY)
    np.testing.assert_allclose(recorded(run, "relative_update"), 0.03, rtol=1e-3)
    plain = train(spec(rule=rule, **model), task=TINY)
    assert np.abs(recorded(plain, "relative_update") / 0.03 - 1).max() > 0.2
    assert str(run["control"].values) == "relative step sizes set"


def test_sizes_lie_on_straight_lines_between_the_steps_of_the_table_and_are_constant_outside() -> None:
    table = {"sizes": {"1": [0.3, 0.1], "5": [0.0, 0.2]}, "steps": [1, 5]}
    run = train(spec(rule="fa", lr_schedule="cosine", warmup=2, step_sizes=table), task=TINY)
    found = run["update_norm"].dropna("step", how="all").transpose("layer", "step").values
    np.testing.assert_allclose(found[0], [0.3, 0.3, 0.25, 0.2, 0.15, 0.1, 0.1], rtol=1e-3)
    np.testing.assert_allclose(found[2], [0.0, 0.0, 0.05, 0.1, 0.15, 0.2, 0.2], rtol=1e-3)


def test_directions_and_layers_that_the_table_leaves_out_stay_and_biases_take_their_weights_factor() -> None:
    own = spec(rule="fa", steps=1)
    before = {n: p.grad for n, p in trained(own, TINY).named_parameters()}
    norm = float(before["1.weight"].norm())  # type: ignore[union-attr]
    table = {"sizes": {"1": [0.1 * 3 * norm]}}
    after = {n: p.grad for n, p in trained(own.changed(step_sizes=table), TINY).named_parameters()}
    for name, gradient in before.items():
        assert gradient is not None
        torch.testing.assert_close(after[name], gradient * (3 if name.startswith("1.") else 1))


def test_a_zero_gradient_has_no_step() -> None:
    run = spec(rule="fa", frozen=("1.weight",), step_sizes={"sizes": 0.1})
    still = trained(run, TINY)
    assert torch.equal(
        parameters(still)["1.weight"], parameters(trained(run.changed(steps=1), TINY))["1.weight"]
    )
    dead = spec(weight_scale=0.0, bias=False, step_sizes={"sizes": 0.1})  # nothing passes, so nothing learns
    assert not any(p.any() for p in parameters(trained(dead, TINY)).values())


def test_a_replayed_run_records_the_sizes_of_the_other_one() -> None:
    loud = train(spec(rule="sign_sync", rule_args={"period": 1}, lr=0.01, record_every=3), task=TINY)
    quiet = spec(record_every=3, step_sizes=replayed_sizes(loud))
    found = train(quiet, probes=[EffectiveLR()], task=TINY)
    np.testing.assert_allclose(recorded(found, "update_norm"), recorded(loud, "update_norm"), rtol=1e-3)


def test_members_with_and_without_sizes_and_grafts_stand_side_by_side() -> None:
    members = [
        spec(rule="fa", seed=1),
        spec(rule="fa", seed=2, step_sizes={"sizes": 0.1}),
        spec(rule="fa", seed=3, graft={"direction": "bp", "magnitude": "rule"}),
        spec(rule="bp", seed=4, step_sizes={"sizes": 0.01, "relative": True}),
    ]
    for together, member in zip(train_population(members, task=TINY), members, strict=True):
        found, alone = (
            run[["update_norm", "feedback_gain", "train_loss"]]
            for run in (together, train(member, task=TINY))
        )
        xr.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"step_sizes": {"sizes": -0.1}}, "expected finite numbers of at least 0"),
        ({"step_sizes": {"sizes": {"1": [float("nan")]}}}, "expected finite numbers of at least 0"),
        (
            {"step_sizes": {"sizes": {1: [0.1]}}},
            r"sizes is {1: \[0.1\]}: expected a number, or a table .* in quotes$",
        ),
        (
            {"step_sizes": {"sizes": {"1": [0.1, "a"]}}},
            r"step_sizes: sizes is .*: expected a number, or a table",
        ),
        ({"step_sizes": {"sizes": {"1": [0.1, 0.2]}}}, "sizes of '1' has 2 entries for 1 steps"),
        ({"step_sizes": {"sizes": {"1": [0.1, 0.2]}, "steps": [4, 4]}}, "in rising order"),
        ({"step_sizes": {"sizes": {"1": [0.1, 0.2]}, "steps": [-1, 4]}}, "whole numbers of at least 0"),
        ({"step_sizes": {"sizes": float("inf")}}, "expected finite numbers of at least 0"),
        ({"step_sizes": {"sizes": 0.1, "steps": [0, 4]}}, "there is one number"),
        ({"step_sizes": {"sizes": 0.1, "relativ": True}}, "did you mean 'relative'"),
        ({"step_sizes": {"sizes": 0.1}, "optimizer": "adam"}, "which adam divides out: use sgd"),
        ({"step_sizes": {"sizes": 0.1}, "momentum": 0.9, "clip": 1.0}, "leave out momentum and clip"),
        (
            {"step_sizes": {"sizes": 0.1}, "rule": "fa", "graft": {"direction": "bp", "magnitude": "rule"}},
            "leave out graft",
        ),
    ],
)
def test_sizes_that_mean_nothing_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        spec(**fields)


def test_a_table_of_another_network_is_refused_before_training() -> None:
    unknown = spec(step_sizes={"sizes": {"fc": [0.1]}})
    with pytest.raises(SpecError, match=f"'fc' names no layer with weights; there are {', '.join(LAYERS)}"):
        train(unknown, task=TINY)
    with pytest.raises(SpecError, match="names no layer with weights"):
        train_population([unknown, spec()], task=TINY)


def test_a_run_with_sizes_keeps_them_through_yaml() -> None:
    sized = spec(step_sizes={"sizes": {"1": [0.1, 0.2]}, "steps": [0, 4], "relative": True})
    assert RunSpec.from_yaml(sized.to_yaml()) == sized
    assert sized != spec(step_sizes={"sizes": {"1": [0.1, 0.2]}, "steps": [0, 4]})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_filled_from_before(value: float) -> None:
    norms = xr.DataArray([[1.0, 3.0], [value, 2.0]], {"step": [0, 4], "layer": ["a", "b"]}, ("step", "layer"))
    assert replayed_sizes(xr.Dataset({"update_norm": norms})) == {
        "sizes": {"a": [1.0, 1.0], "b": [3.0, 2.0]},
        "steps": [0, 4],
        "relative": False,
    }
    with pytest.raises(
        ValueError, match="replayed_sizes: the run has no relative_update: record it with EffectiveLR"
    ):
        replayed_sizes(xr.Dataset({"update_norm": norms}), relative=True)
