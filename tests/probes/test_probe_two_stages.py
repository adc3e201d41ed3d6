"""Probes of two stages: a step keeps a few numbers, and formulas applied later to many steps give the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from probe_worlds import WORLDS, loss_of, seeded, sgd
from torch import Tensor

from alignlab import measures
from alignlab.probes import Capture, EffectiveLR, GradientAngle, Probe, Recorder, kept
from alignlab.probes.scaling import unscale

WORLD = WORLDS["mlp"]
RULES = [None, "bp", "fa", "dfa", "kolen_pollack", "weight_perturbation"]


class AngleAtOnce(GradientAngle):
    def measure(self, layer: Any) -> dict[str, Tensor]:
        return super().measure(layer)


class RateAtOnce(EffectiveLR):
    def measure(self, layer: Any) -> dict[str, Tensor]:
        return super().measure(layer)


class Rows(Probe):
    """A user's own, with a number, a vector and a plain number a step."""

    quantities = ("first_weight", "twice_the_row", "rate")

    def keep(self, layer: Any) -> Mapping[str, Tensor | float]:
        return {"row": layer.layer.weight[0], "rate": layer.learning_rate}

    def finish(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "first_weight": kept["row"][..., 0],
            "twice_the_row": 2 * kept["row"],
            "rate": kept["rate"],
        }


def recorded(rule: str | None, probes: list[Probe], n: int = 5, **kwargs: Any) -> xr.Dataset:
    with seeded(0):
        model = WORLD.model(rule)
        optimizer = sgd(model)
        with Recorder(model, optimizer, probes, **kwargs) as recorder:
            for step in range(n):
                optimizer.zero_grad()
                if rule == "weight_perturbation":
                    from alignlab.rules import backward

                    backward(model, lambda step=step: loss_of(model, *WORLD.batch(step)))
                else:
                    loss_of(model, *WORLD.batch(step)).backward()
                optimizer.step()
        return recorder.to_dataset().drop_vars(["wall_time", "run_id"])


@pytest.mark.parametrize("rule", RULES)
def test_formulas_applied_later_give_what_they_give_at_once(rule: str | None) -> None:
    later = recorded(rule, [GradientAngle(), EffectiveLR()])
    at_once = recorded(rule, [AngleAtOnce(), RateAtOnce()])
    xr.testing.assert_allclose(later, at_once, rtol=1e-6)
    assert set(later.data_vars) == set(at_once.data_vars)
    for name in later.data_vars:
        np.testing.assert_array_equal(np.isnan(later[name]), np.isnan(at_once[name]), err_msg=str(name))


def test_what_grows_large_is_finished_before_the_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[Probe] = [GradientAngle(), Rows()]
    expected = recorded("fa", probes)
    finished: list[int] = []
    of_kept = kept.Kept.finish

    def counted(self: kept.Kept) -> Any:
        for found in of_kept(self):
            finished.append(len(found[0]))
            yield found

    monkeypatch.setattr(kept.Kept, "finish", counted)
    monkeypatch.setattr(kept, "LIMIT", 1)
    xr.testing.assert_identical(recorded("fa", probes), expected)
    assert set(finished) == {1}


@pytest.mark.parametrize("flush_every", [1, 2, 100])
def test_what_a_probe_keeps_is_copied_and_finished_at_any_flush(flush_every: int) -> None:
    run = recorded("fa", [Rows()], flush_every=flush_every)
    assert len(np.unique(run.first_weight.sel(layer="0"))) == 5  # the weight moved on under the view
    np.testing.assert_allclose(run.twice_the_row.isel(mode=0), 2 * run.first_weight)
    assert run.twice_the_row.sel(layer="0").notnull().sum("mode").values.tolist() == [6] * 5
    np.testing.assert_allclose(run.rate, np.full(run.rate.shape, run.lr), rtol=1e-6)


def test_a_formula_that_reduces_over_the_steps_is_an_error() -> None:
    class Mixed(Rows):
        def finish(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"first_weight": kept["row"].mean()}

    with pytest.raises(ValueError, match="first_weight has shape"):
        recorded("fa", [Mixed()])


def test_what_the_layer_hands_down_is_its_error_through_b_and_formed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = WORLD.model("fa")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    capture = Capture(model, layers)
    capture.arm()
    for step in range(2):  # two micro-batches of one step
        loss_of(model, *WORLD.batch(step)).backward()
    taken = capture.take()
    capture.disarm()
    for name, uses in taken.items():
        for use in uses:
            assert (use.handed is not None) == use.reaches_input, name
            if use.reaches_input:
                assert use.delta_rule is not None
                monkeypatch.setattr(use, "carried", None)
                expected = use.samples(use.delta_rule) @ layers[name].feedback
                torch.testing.assert_close(use.handed_down(), expected)


def test_a_stack_of_kept_products_has_the_angles_of_each() -> None:
    generator = torch.Generator().manual_seed(0)
    rule, bp = (torch.randn(5, 3, 8, 6, generator=generator) for _ in range(2))
    h = torch.randn(5, 3, 8, 20, generator=generator)
    rule[1, 2, 4] = 0
    deltas = measures.delta_products(rule, bp)
    tied = measures.tied_gradient_products(rule, bp, h)
    assert (deltas.shape, tied.shape) == ((5, 3, 3, 8), (5, 3, 4))
    together = torch.stack(measures.delta_angle_from_products(deltas), -1)
    gradients = measures.angle_from_products(*measures.products_from_tied(tied))
    for i in range(5):
        for k in range(3):
            alone = torch.stack(measures.delta_angle(rule[i, k], bp[i, k]))
            torch.testing.assert_close(together[i, k], alone, rtol=0, atol=1e-4)
            assert gradients[i, k].item() == pytest.approx(
                measures.gradient_angle(rule[i, k], bp[i, k], h[i, k]).item(), abs=1e-4
            )


def test_what_was_handed_down_is_unscaled_with_the_errors() -> None:
    model = WORLD.model("fa")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    capture = Capture(model, layers)
    capture.arm()
    (4 * loss_of(model, *WORLD.batch(0))).backward()
    taken = capture.take()
    capture.disarm()
    unscale(taken, torch.tensor(4.0), {})
    for use in (use for uses in taken.values() for use in uses if use.reaches_input):
        assert use.delta_rule is not None
        torch.testing.assert_close(use.handed_down(), use.samples(use.delta_rule) @ use.feedback)
