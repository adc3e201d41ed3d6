"""The probes over rules that compare passes or hand out their own gradients: measured truly, or left out, never guessed."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from probe_worlds import HOSTS, WHOLE, WORLDS, World, measurable, seeded, sgd
from torch import Tensor, nn

from alignlab.probes import (
    EffectiveLR,
    FeedbackSpectrum,
    GradientAngle,
    Loss,
    Probe,
    ProbeError,
    Recorder,
    WeightAngle,
    every,
)
from alignlab.probes.schedule import Schedule
from alignlab.rules import RULES, backward, convert
from alignlab.rules.replay import Noise

STEPS, LR = 3, 0.05
CASES = [
    ("node_perturbation", {"sigma": 1e-2}),
    ("weight_perturbation", {"sigma": 1e-2, "samples": 2}),
    ("soap", {"guide": "fa"}),
    ("soap", {"guide": "bp", "step": 0.1}),
    ("noisy_backprop", {"cosine": 0.6, "gain": 2.0}),
]
OF_B = {
    "weight_angle",
    "feedback_norm",
    "local_angle",
    "descent_fraction",
    "spectrum_real",
    "spectrum_trace",
    "symmetric_min",
}
OF_DELTAS = {"delta_angle", "delta_angle_std", "zero_fraction"}
over_cases = pytest.mark.parametrize(("rule", "args"), CASES, ids=lambda part: str(part))


def test_the_cases_leave_no_rule_out() -> None:
    assert {rule for rule, _ in CASES} == set(WHOLE)


def make(world: World, rule: str, args: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    return convert(world.model(dtype=dtype), rule, generator=torch.Generator().manual_seed(5), **args)


def losses(rule: str, output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, reduction="none" if rule == "soap" else "mean")


def probes() -> list[Any]:
    return [GradientAngle(), WeightAngle(), EffectiveLR(), FeedbackSpectrum(every=1), Loss()]


def step(model: nn.Module, optimizer: Any, rule: str, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    optimizer.zero_grad()
    loss = backward(model, lambda: losses(rule, model(x), y))
    optimizer.step()
    return loss


def dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def angle(a: Tensor, b: Tensor) -> float:
    a, b = a.double() / a.double().norm(), b.double() / b.double().norm()
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))


@over_cases
@pytest.mark.parametrize("world", WORLDS)
def test_values_equal_a_plain_twins(world: str, rule: str, args: dict[str, Any]) -> None:
    """The twin is a plain copy of the weights: its true gradient on the same mask, against what landed in ``.grad``."""
    place = WORLDS[world]
    model, optimizer = make(place, rule, args), None
    optimizer = sgd(model)
    expected: list[dict[str, dict[str, float]]] = []
    totals = []
    with seeded(1), Recorder(model, optimizer, probes()) as recorder:
        for t in range(STEPS):
            x, y = place.batch(t)
            twin = place.model(
                "bp" if world in HOSTS else None
            )  # whose maps are layers once they are converted
            known = {n for n, _ in (*twin.named_parameters(), *twin.named_buffers())}
            twin.load_state_dict({n: p for n, p in model.state_dict().items() if n in known}, strict=False)
            with torch.random.fork_rng(devices=[]):
                F.cross_entropy(twin(x), y).backward()
            before = {n: m.weight.detach().clone() for n, m in measurable(model).items()}
            totals.append(float(step(model, optimizer, rule, (x, y))))
            row = {}
            for name, layer in measurable(model).items():
                G, G_bp = layer.weight.grad, measurable(twin)[name].weight.grad
                dW = layer.weight.detach() - before[name]
                row[name] = {
                    "gradient_angle": angle(G, G_bp),
                    "feedback_gain": float(G.norm() / G_bp.norm()),
                    "gradient_norm": float(G.norm()),
                    "gradient_norm_bp": float(G_bp.norm()),
                    "effective_lr": LR * float(G.norm() / G_bp.norm()),
                    "update_angle": angle(-dW, G_bp),
                    "projected_lr": -dot(dW, G_bp) / dot(G_bp, G_bp),
                    "update_norm": float(dW.norm()),
                }
            expected.append(row)
    run = recorder.to_dataset()
    assert run.status == "finished"
    for t, row in enumerate(expected):
        for name, values in row.items():
            for quantity, value in values.items():
                found = float(run[quantity].sel(layer=name, step=t))
                assert found == pytest.approx(value, rel=2e-6, abs=1e-5), (quantity, name, t)
    np.testing.assert_allclose(run.loss, totals, rtol=1e-6)
    assert run.samples_seen.values.tolist() == [9.0, 18.0, 27.0]  # further passes are none of the loop's


@over_cases
@pytest.mark.parametrize("world", ["mlp", "conv", "twice"])
def test_what_a_rule_does_not_have_is_absent(world: str, rule: str, args: dict[str, Any]) -> None:
    model = make(WORLDS[world], rule, args)
    optimizer = sgd(model)
    with seeded(1), Recorder(model, optimizer, probes()) as recorder:
        step(model, optimizer, rule, WORLDS[world].batch(0))
    found = set(recorder.to_dataset().data_vars)
    assert {"gradient_angle", "feedback_gain", "update_angle", "loss"} <= found
    has_deltas, has_feedback = not RULES[rule].explicit, args.get("guide") == "fa"
    assert (found >= OF_DELTAS) == has_deltas
    assert found.isdisjoint(OF_DELTAS) != has_deltas
    assert (found >= OF_B) == has_feedback
    assert found.isdisjoint(OF_B) != has_feedback


def test_delta_angles_are_of_the_deltas_that_were_delivered() -> None:
    """By hand on one linear layer: delta = ΔL ξ / σ², delta_bp = softmax − one-hot over N."""
    model = make(WORLDS["root"], "node_perturbation", {"sigma": 1e-2})
    optimizer, (x, y) = sgd(model), WORLDS["root"].batch(0)
    with Recorder(model, optimizer, [GradientAngle()]) as recorder:
        step(model, optimizer, "node_perturbation", (x, y))
        weight, bias = (p + LR * p.grad for p in model.parameters())
    z = (x @ weight.T + bias).detach().requires_grad_()
    F.cross_entropy(z, y).backward()
    xi = 1e-2 * Noise(model.feedback_seed).like((9, 4), torch.float64, z.device)
    change = F.cross_entropy(z.detach() + xi, y) - F.cross_entropy(z.detach(), y)
    cosines = F.cosine_similarity(change * xi, z.grad, dim=1)
    assert float(recorder.to_dataset().delta_angle[0, 0]) == pytest.approx(
        float(cosines.acos().rad2deg().mean()), rel=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_recorded_angle_is_the_one_asked_for(dtype: torch.dtype) -> None:
    table = {"0": [0.9, 0.2, -0.3], "4": [0.1, 0.5, 0.7], "6": [0.0, 1.0, 0.999]}
    model = make(WORLDS["mlp"], "noisy_backprop", {"cosine": table}, dtype)
    optimizer = sgd(model)
    with seeded(1), Recorder(model, optimizer, probes()) as recorder:
        for t in range(3):
            step(model, optimizer, "noisy_backprop", WORLDS["mlp"].batch(t, dtype=dtype))
    run = recorder.to_dataset()
    for name, cosines in table.items():
        expected = np.degrees(np.arccos(cosines))
        tolerance = 1e-4 if dtype == torch.float64 else 5e-3
        np.testing.assert_allclose(run.gradient_angle.sel(layer=name), expected, atol=tolerance)
        np.testing.assert_allclose(run.feedback_gain.sel(layer=name), 1, rtol=1e-5)


# --- harmless ---------------------------------------------------------------------------------------------------------


def _end(rule: str, args: dict[str, Any], schedule: Schedule | None, momentum: float = 0.9) -> dict[str, Any]:
    model = make(WORLDS["mlp"], rule, args, torch.float32)
    optimizer = sgd(model, momentum=momentum)
    recorder: Any = contextlib.nullcontext()
    if schedule is not None:
        recorder = Recorder(model, optimizer, probes(), schedule)
    with seeded(2):
        with recorder:
            for t in range(5):
                step(model, optimizer, rule, WORLDS["mlp"].batch(t, dtype=torch.float32))
        state = {n: v for n, v in model.state_dict().items() if isinstance(v, Tensor)}
        grads = {f"{n}.grad": p.grad for n, p in model.named_parameters()}
        return copy.deepcopy({**state, **grads, "random": torch.get_rng_state()})


@over_cases
def test_a_probed_run_ends_bitwise_as_a_bare_one(rule: str, args: dict[str, Any]) -> None:
    bare = _end(rule, args, None)
    for schedule in (every(1), every(2), lambda step: step in (1, 3)):
        probed = _end(rule, args, schedule)
        assert list(probed) == list(bare)
        for name, value in bare.items():
            assert torch.equal(probed[name], value), name


@over_cases
def test_micro_batches_are_one_step(rule: str, args: dict[str, Any]) -> None:
    """Their gradients add, on both sides."""
    world = WORLDS["residual"]
    model = make(world, rule, args)
    optimizer, parts = sgd(model), [world.batch(0), world.batch(1)]
    twin = world.model()
    with Recorder(model, optimizer, [GradientAngle(), EffectiveLR()]) as recorder:
        for x, y in parts:
            F.cross_entropy(twin(x), y).backward()
            backward(model, lambda x=x, y=y: losses(rule, model(x), y))  # type: ignore[misc]
        optimizer.step()
    run = recorder.to_dataset()
    for name, layer in measurable(model).items():
        G_bp = measurable(twin)[name].weight.grad
        assert float(run.gradient_angle.sel(layer=name)[0]) == pytest.approx(
            angle(layer.weight.grad, G_bp), abs=1e-5
        )
        assert float(run.gradient_norm.sel(layer=name)[0]) == pytest.approx(
            float(layer.weight.grad.norm()), rel=1e-6
        )


def _scaled(model: nn.Module, rule: str, scaler: torch.amp.GradScaler) -> Tensor:
    x, y = WORLDS["twice"].batch(0)
    scaled: Tensor = scaler.scale(losses(rule, model(x), y))
    return scaled


@pytest.mark.parametrize(("rule", "args"), [case for case in CASES if case[0] != "soap"], ids=str)
def test_a_scaled_loss_is_recorded_unscaled(rule: str, args: dict[str, Any]) -> None:
    found = []
    for scaled in (False, True):
        model = make(WORLDS["twice"], rule, args)
        optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        with Recorder(
            model, optimizer, [GradientAngle(), EffectiveLR(), Loss()], grad_scaler=scaler if scaled else None
        ) as recorder:
            backward(model, partial(_scaled, model, rule, scaler))
            scaler.step(optimizer)
        found.append(recorder.to_dataset().drop_vars(["wall_time", "run_id"]))
    xr.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@over_cases
def test_a_batch_that_is_thrown_away_has_no_part(rule: str, args: dict[str, Any]) -> None:
    world = WORLDS["residual"]

    def run(throw: bool) -> xr.Dataset:
        model = make(world, rule, args)
        optimizer = sgd(model)
        with Recorder(model, optimizer, [GradientAngle(), EffectiveLR()]) as recorder:
            if throw:
                x, y = world.batch(7)
                backward(model, lambda: losses(rule, model(x), y))
                for m in model.modules():  # the noise of a pass is a function of the clocks
                    if hasattr(m, "clock"):
                        m.clock = 0
                        m._seen = None
            step(model, optimizer, rule, world.batch(0))
        return recorder.to_dataset().drop_vars(["wall_time", "run_id"])

    xr.testing.assert_allclose(run(True), run(False))


# --- what cannot be measured ------------------------------------------------------------------------------------------


class Leaky(nn.Module):
    """Lets a loss at its hidden activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8).double(), nn.Linear(8, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.first(x).tanh()
        return self.second(self.hidden)


def _measured(model: nn.Module, closure: Callable[[], Tensor]) -> None:
    with Recorder(model, sgd(model), [GradientAngle()]):
        backward(model, closure)


@over_cases
def test_a_loss_on_hidden_activations_is_an_error(rule: str, args: dict[str, Any]) -> None:
    model = convert(Leaky(), rule, **args)
    x, y = WORLDS["mlp"].batch(0)

    def closure() -> Tensor:
        return losses(rule, model(x), y) + model.hidden.square().mean(1).mean()

    backward(model, closure)  # the rule itself can learn from it
    with pytest.raises(ProbeError, match=r"the loss depends on the model past its output"):
        _measured(model, closure)


def test_a_penalty_in_weight_perturbations_loss_is_an_error() -> None:
    model = convert(Leaky(), "weight_perturbation")
    x, y = WORLDS["mlp"].batch(0)
    with pytest.raises(ProbeError, match=r"weight decay belongs to the optimizer"):
        _measured(model, lambda: F.cross_entropy(model(x), y) + model.second.weight.square().sum())


@pytest.mark.parametrize("frozen", [0, 2, 4])
def test_a_frozen_layer_under_soap_has_the_error_at_its_output(frozen: int) -> None:
    with seeded(0):
        model = nn.Sequential(
            nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)
        ).double()
        x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(4, (6,))
    hidden = torch.tanh(model[:3](x)).detach()
    convert(model, "soap", guide="bp")
    model[frozen].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    with Recorder(model, optimizer, [seen := Deltas()]):
        backward(model, lambda: losses("soap", model(x), y))
        above = model[4].weight.detach().clone()
        optimizer.step()
    if frozen == 2:  # soap leaves it the error that the layer above hands down
        torch.testing.assert_close(seen.found["2"], seen.found["4"] @ above * (1 - hidden.square()))
    assert all(signal.shape == (6, 4) for signal in seen.found.values())


class Deltas(Probe):
    """The rule's error at each layer's output, as it is."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def measure(self, layer: Any) -> dict[str, Tensor]:
        self.found[layer.name] = layer.deltas[0].clone()
        return {}
