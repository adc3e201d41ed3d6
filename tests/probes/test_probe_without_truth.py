"""Where no probe reads what backprop would have sent, it is not asked for, and the values are the same."""

from __future__ import annotations

import pytest
import torch
import xarray as xr
from probe_worlds import WORLDS, loss_of, seeded, sgd, train

from alignlab.probes import (
    Capture,
    EffectiveLR,
    FeedbackSpectrum,
    GradientAngle,
    Loss,
    Probe,
    Recorder,
    WeightAngle,
)
from alignlab.probes import capture as capturing
from alignlab.rules import RULES, feedback_layers

WORLD = WORLDS["mlp"]
FEEDBACK = [
    name for name, rule in RULES.items() if rule.uses_feedback and not rule.closure and name != "drtp"
]


def recorded(rule: str | None, probes: list[Probe], scaler: object = None) -> xr.Dataset:
    with seeded(0):
        model = WORLD.model(rule)
        optimizer = sgd(model)
        with Recorder(model, optimizer, probes, grad_scaler=scaler) as recorder:
            train(model, optimizer, [WORLD.batch(step) for step in range(3)])
        return recorder.to_dataset().drop_vars(["wall_time", "run_id"])


class Scaler:
    _scale = torch.tensor(4.0)


@pytest.mark.parametrize("rule", FEEDBACK)
def test_weight_angles_and_spectra_need_no_second_pass(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [WeightAngle(), FeedbackSpectrum(every=1), Loss()]
    expected = recorded(rule, [*few, GradientAngle()])
    passes: list[int] = []
    asked = capturing.errors_at
    monkeypatch.setattr(capturing, "errors_at", lambda *args: passes.append(1) or asked(*args))
    found = recorded(rule, few)
    xr.testing.assert_allclose(found, expected[list(found.data_vars)], rtol=1e-6)
    missing = {"gradient_angle", "delta_angle", "delta_angle_std", "zero_fraction", "local_angle"}
    assert set(expected.data_vars) - set(found.data_vars) == missing & set(expected.data_vars)
    assert not passes


def test_signals_are_unscaled_without_the_true_ones() -> None:
    few = [WeightAngle(), FeedbackSpectrum(every=1)]
    found, expected = recorded("fa", few, Scaler()), recorded("fa", [*few, EffectiveLR()], Scaler())
    xr.testing.assert_allclose(found, expected[list(found.data_vars)])


def test_a_capture_without_truth_has_the_rules_signals_alone() -> None:
    model = WORLD.model("fa")
    layers = {name: m for name, m in model.named_modules() if name in feedback_layers(model)}
    capture = Capture(model, layers, truth=False)
    capture.arm()
    loss_of(model, *WORLD.batch(0)).backward()
    uses = [use for uses in capture.take().values() for use in uses]
    capture.disarm()
    assert len(uses) == len(layers)
    assert all(use.delta_rule is not None and use.delta_bp is None for use in uses)


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa"])
def test_without_the_samples_angles_the_batchs_is_the_same(rule: str) -> None:
    found = recorded(rule, [GradientAngle(samples=False)])
    whole = recorded(rule, [GradientAngle()])
    xr.testing.assert_identical(found["gradient_angle"], whole["gradient_angle"])
    assert not {"delta_angle", "delta_angle_std", "zero_fraction", "local_angle"} & set(found.data_vars)
