"""Optimizer steps are what is counted and measured: whatever a loop does between two of them makes one measurement."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from probe_worlds import WORLDS, loss_of, measurable, sgd, train
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from alignlab.probes import EffectiveLR, GradientAngle, Loss, ProbeError, Recorder, every

WORLD = WORLDS["residual"]  # no dropout, no BatchNorm: a batch and its parts have one gradient
EXACT = ("wall_time", "samples_seen")
Body = Callable[[nn.Module, torch.optim.Optimizer], None]


def record(
    body: Body, rule: str | None = "fa", optimizer_of: Any = sgd, world: Any = WORLD, **kwargs: Any
) -> xr.Dataset:
    model = world.model(rule)
    optimizer = optimizer_of(model)
    probes = [GradientAngle(), EffectiveLR(), Loss(kwargs.pop("criterion", None))]
    with Recorder(model, optimizer, probes, kwargs.pop("schedule", None), **kwargs) as recorder:
        body(model, optimizer)
    return recorder.to_dataset()


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, *WORLD.batch(step)).backward()
        optimizer.step()


def assert_same(a: xr.Dataset, b: xr.Dataset, but: tuple[str, ...] = EXACT) -> None:
    assert set(a.data_vars) == set(b.data_vars)
    for name in set(a.data_vars) - set(but):
        np.testing.assert_allclose(a[name], b[name], rtol=2e-6, atol=2e-5, err_msg=str(name))


@pytest.mark.parametrize("rule", ["fa", "dfa", "bp", None])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_micro_batches_are_measured_as_the_batch_that_they_make(rule: str | None, set_to_none: bool) -> None:
    def in_parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(3):
            optimizer.zero_grad(set_to_none)
            for x, y in zip(*(part.split(3) for part in WORLD.batch(step)), strict=True):
                (loss_of(model, x, y) / 3).backward()
            optimizer.step()

    run = record(in_parts, rule)
    assert_same(run, record(plain, rule))
    assert run.samples_seen.values.tolist() == [9, 18, 27]


@pytest.mark.parametrize("rule", ["fa", "dfa", None])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_micro_batch_that_brings_a_weight_zeros_has_its_part_in_the_step(
    rule: str | None, set_to_none: bool
) -> None:
    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = WORLD.batch(step)
        return torch.cat([torch.zeros_like(x[:3]), x[3:]]), y

    def in_parts(parts: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(3):
            optimizer.zero_grad(set_to_none)
            for x, y in zip(*(part.chunk(parts) for part in batch(step)), strict=True):
                (loss_of(model, x, y) / parts).backward()
            optimizer.step()

    run = record(partial(in_parts, 3), rule)
    assert_same(run, record(partial(in_parts, 1), rule))
    assert (run.zero_fraction == 0).all()  # the first layer's samples of zeros have errors all the same


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_micro_batch_that_brings_all_weights_zeros_has_its_part_in_the_loss(set_to_none: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].bias.fill_(-1)  # dead, but for large inputs
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, [Loss(), GradientAngle()]) as recorder:
        optimizer.zero_grad(set_to_none)
        losses = [(model(torch.full((2, 2), size)) - 1).square().mean() for size in (0.0, 30.0)]
        for loss in losses:
            loss.backward()
        optimizer.step()
    assert recorder.to_dataset().loss.item() == pytest.approx(sum(losses).item())


def test_several_losses_on_one_forward_pass_make_one_gradient() -> None:
    def in_two(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(3):
            x, y = WORLD.batch(step)
            output = model(x)
            optimizer.zero_grad()
            (F.cross_entropy(output, y) / 4).backward(retain_graph=True)
            (3 * F.cross_entropy(output, y) / 4).backward()
            optimizer.step()

    assert_same(record(in_two), record(plain))


@pytest.mark.parametrize("when", ["before the forward pass", "after the forward pass", "with zeros"])
@pytest.mark.parametrize("rule", ["fa", "dfa", "bp"])
def test_a_batch_that_was_thrown_away_has_no_part_in_the_step(when: str, rule: str) -> None:
    def with_waste(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(3):
            for batch in (WORLD.batch(60 + step), WORLD.batch(step)):  # of the first nothing remains
                if when != "after the forward pass":
                    optimizer.zero_grad(set_to_none=when != "with zeros")
                loss = loss_of(model, *batch)
                if when == "after the forward pass":
                    optimizer.zero_grad()
                loss.backward()
            optimizer.step()

    run = record(with_waste, rule)
    assert_same(run, record(plain, rule))
    assert run.sizes["step"] == 3


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2))
        self.critic = nn.Sequential(nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 1))


def test_what_another_optimizers_pass_left_in_a_weight_and_was_cleared_has_no_part_in_the_step() -> None:
    torch.manual_seed(0)
    model, x, a = ActorCritic(), torch.randn(8, 7), torch.randn(8, 2)
    critic, actor = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.critic, model.actor))
    seen = []
    with Recorder(model, critic, [GradientAngle(), EffectiveLR(), Loss()]) as recorder:
        for _ in range(3):
            critic.zero_grad()  # the actor's gradients stay
            loss = (model.critic(torch.cat([x, a], 1)) - 1).square().mean()
            loss.backward()
            seen.append((float(model.critic[0].weight.grad.norm()), float(loss.detach())))
            critic.step()
            actor.zero_grad()
            (-model.critic(torch.cat([x, model.actor(x)], 1)).mean()).backward()
            actor.step()
    run = recorder.to_dataset()
    first = run.sel(layer="critic.0")
    np.testing.assert_allclose(first.gradient_norm, [size for size, _ in seen], rtol=1e-5)
    np.testing.assert_allclose(run.loss, [loss for _, loss in seen], rtol=1e-6)
    np.testing.assert_allclose(first.projected_lr, 0.1, rtol=1e-4)
    np.testing.assert_allclose(first.update_angle, 0, atol=0.05)


def test_a_part_that_was_cleared_and_came_no_more_is_left_out_of_the_step() -> None:
    torch.manual_seed(0)
    model, x = ActorCritic(), torch.randn(8, 7)
    optimizer = sgd(model)
    with Recorder(model, optimizer, [EffectiveLR()]) as recorder:
        action = model.actor(x)
        model.critic(torch.cat([x, action], 1)).mean().backward()
        model.actor.zero_grad()
        model.critic(torch.cat([x, action.detach()], 1)).square().mean().backward()
        size = float(model.critic[0].weight.grad.norm())
        optimizer.step()
    run = recorder.to_dataset().isel(step=0)
    assert float(run.gradient_norm.sel(layer="critic.0")) == pytest.approx(size, rel=1e-5)
    assert np.isnan(run.gradient_norm.sel(layer=["actor.0", "actor.2"])).all()


def trained_above_the_first(model: nn.Module) -> torch.optim.Optimizer:
    first = set(model.enter.parameters())
    return torch.optim.SGD([p for p in model.parameters() if p not in first], lr=0.1)


@pytest.mark.parametrize("rule", ["fa", "dfa", None])
def test_a_batch_is_thrown_away_where_a_weight_that_nobody_clears_keeps_it(rule: str | None) -> None:
    def with_waste(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for batch in (WORLD.batch(60), WORLD.batch(0)):
            optimizer.zero_grad()
            loss_of(model, *batch).backward()
        optimizer.step()

    run = record(with_waste, rule, trained_above_the_first)
    bare = record(lambda model, optimizer: plain(model, optimizer, 1), rule, trained_above_the_first)
    assert_same(*(found.drop_sel(layer="enter") for found in (run, bare)))


def test_a_pass_is_measured_in_the_layers_whose_gradients_it_made() -> None:
    sizes = {}

    def in_parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for part, inputs in ((0, [model.enter.weight]), (1, None)):
            loss_of(model, *WORLD.batch(part)).backward(inputs=inputs)
        sizes.update(
            {n: float(m.weight.grad.norm()) for n, m in model.named_modules() if hasattr(m, "weight")}
        )
        optimizer.step()

    run = record(in_parts, None)
    for name in run.layer.values:
        assert float(run.gradient_norm.sel(layer=name)[0]) == pytest.approx(sizes[name], rel=1e-5)


def test_a_thrown_away_batch_is_noticed_where_every_weight_is_computed_from_others() -> None:
    def normalised(waste: bool) -> xr.Dataset:
        torch.manual_seed(0)
        model = nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.Tanh(), weight_norm(nn.Linear(5, 4)))
        optimizer = sgd(model)
        x, y = torch.randn(8, 6), torch.arange(8) % 4
        with Recorder(model, optimizer, [GradientAngle(), EffectiveLR(), Loss()]) as recorder:
            if waste:
                F.cross_entropy(model(3 * x), y).backward()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return recorder.to_dataset()

    assert_same(normalised(waste=True), normalised(waste=False))


@pytest.mark.parametrize("rule", ["fa", "dfa", None])
def test_a_layer_whose_gradient_was_not_cleared_with_the_others_keeps_what_came_before(
    rule: str | None,
) -> None:
    sizes = {}

    def cleared_in_part(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(2):
            model.enter.zero_grad()
            loss_of(model, *WORLD.batch(step)).backward()
        sizes.update({n: float(m.weight.grad.norm()) for n, m in measurable(model).items()})
        optimizer.step()

    run = record(cleared_in_part, rule)
    for name, size in sizes.items():
        assert float(run.gradient_norm.sel(layer=name)[0]) == pytest.approx(size, rel=1e-5)


def test_weights_that_are_computed_from_others_have_each_their_own_gradient() -> None:
    """Neither has a parameter to tell it by, which makes them no one weight."""
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Linear(6, 6)), nn.Tanh(), weight_norm(nn.Linear(6, 6)))
    twin = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    twin.load_state_dict({f"{i}.{key}": getattr(model[i], key) for i in (0, 2) for key in ("weight", "bias")})
    optimizer, x, y = sgd(model), torch.randn(8, 6), torch.arange(8) % 6
    with Recorder(model, optimizer, [EffectiveLR()]) as recorder:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    F.cross_entropy(twin(x), y).backward()
    expected = [float(twin[i].weight.grad.norm()) for i in (0, 2)]
    assert recorder.to_dataset().gradient_norm[0].values.tolist() == pytest.approx(expected, rel=1e-5)


class Spoiled(Exception):
    pass


class Twice(torch.optim.SGD):
    """Evaluates its closure a second time, and steps by that."""

    @torch.no_grad()
    def step(self, closure: Any) -> Any:
        with torch.enable_grad():
            closure()
            loss = closure()
        super().step()
        return loss


@pytest.mark.parametrize("evaluation", [1, 2])
@pytest.mark.parametrize("next_step", ["by closure", "by hand"])
def test_after_a_closure_that_raised_the_next_batch_is_measured(evaluation: int, next_step: str) -> None:
    def body(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        evaluations = []

        def closure(batch: int, last: int) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, *WORLD.batch(batch))
            loss.backward()
            evaluations.append(batch)
            if len(evaluations) == last:
                raise Spoiled
            return loss

        with pytest.raises(Spoiled):
            optimizer.step(lambda: closure(60, evaluation))
        if next_step == "by closure":
            optimizer.step(lambda: closure(0, -1))
        else:
            closure(0, -1)
            optimizer.step(lambda: torch.zeros(()))

    run = record(body, "fa", lambda model: Twice(model.parameters(), lr=0.1))
    expected = record(lambda model, optimizer: plain(model, optimizer, 1), "fa")
    for name in ("gradient_angle", "gradient_norm", "loss"):
        np.testing.assert_allclose(run[name], expected[name], rtol=1e-5)


def test_after_a_step_that_another_hook_refused_the_next_batch_is_measured() -> None:
    def body(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        def refuse(*_: Any) -> None:
            if not allowed:
                raise Spoiled

        optimizer.register_step_pre_hook(refuse)
        for allowed, batch in ((False, 60), (True, 0)):
            optimizer.zero_grad()
            loss_of(model, *WORLD.batch(batch)).backward()
            with nullcontext() if allowed else pytest.raises(Spoiled):
                optimizer.step()

    assert_same(record(body), record(lambda model, optimizer: plain(model, optimizer, 1)))


def test_gradients_of_the_input_have_no_part_in_the_step() -> None:
    def adversarial(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(3):
            optimizer.zero_grad()
            for x, y in zip(*(part.split(3) for part in WORLD.batch(step)), strict=True):
                attacked = WORLD.batch(70)[0][:3].requires_grad_()
                torch.autograd.grad(loss_of(model, attacked, y), attacked)
                (loss_of(model, x, y) / 3).backward()
                torch.autograd.grad(loss_of(model, attacked, y), attacked)
            optimizer.step()

    assert_same(record(adversarial), record(plain))


def test_gradients_may_be_computed_by_hand() -> None:
    def by_hand(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        parameters = list(model.parameters())
        for step in range(3):
            gradients = torch.autograd.grad(loss_of(model, *WORLD.batch(step)), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()

    assert_same(record(by_hand), record(plain).drop_vars("loss"))


def with_closure(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for step in range(3):

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, *WORLD.batch(step))
            loss.backward()
            return loss

        optimizer.step(closure)


def test_a_closure_that_is_evaluated_once_changes_nothing() -> None:
    assert_same(record(with_closure), record(plain))
    adam: Any = lambda model: torch.optim.Adam(model.parameters(), lr=0.01)  # noqa: E731
    assert_same(record(with_closure, optimizer_of=adam), record(plain, optimizer_of=adam))


@pytest.mark.parametrize("rule", ["fa", None])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_batch_that_was_thrown_away_before_a_closure_has_no_part_in_the_step(
    rule: str | None, set_to_none: bool
) -> None:
    def body(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(3):

            def closure(step: int = step) -> torch.Tensor:
                loss = loss_of(model, *WORLD.batch(step))
                loss.backward()
                return loss

            loss_of(model, *WORLD.batch(60)).backward()
            optimizer.zero_grad(set_to_none)
            optimizer.step(closure)
            optimizer.zero_grad(set_to_none)

    assert_same(record(body, rule), record(plain, rule))


@pytest.mark.parametrize("parts", [1, 3])
def test_of_a_closures_evaluations_the_first_is_measured_for_it_is_at_the_steps_weights(parts: int) -> None:
    def lbfgs(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)

    evaluations, first = [], []

    def body(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(2):

            def closure(step: int = step) -> torch.Tensor:
                optimizer.zero_grad()
                batch = WORLD.batch(step)
                for x, y in zip(*(part.split(9 // parts) for part in batch), strict=True):
                    loss = loss_of(model, x, y) / parts
                    loss.backward()
                evaluations.append(step)
                if evaluations.count(step) == 1:
                    with torch.no_grad():
                        first.append((float(loss_of(model, *batch)), float(model.enter.weight.grad.norm())))
                return loss

            optimizer.step(closure)

    run = record(body, "fa", lbfgs)
    assert len(evaluations) > 4
    assert run.step.values.tolist() == [0, 1]
    for step, (loss, size) in enumerate(first):
        assert float(run.loss[step]) == pytest.approx(loss, rel=1e-6)
        assert float(run.gradient_norm.sel(step=step, layer="enter")) == pytest.approx(size, rel=1e-5)
    assert (run.update_norm > 0).all()


class Sharpness(torch.optim.SGD):
    """Goes up by the gradient that it finds, and steps by the closure's there (Foret et al. 2021)."""

    @torch.no_grad()
    def step(self, closure: Any) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        up = [0.05 * p.grad for p in parameters]
        for p, ascent in zip(parameters, up, strict=True):
            p.add_(ascent)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p, ascent in zip(parameters, up, strict=True):
            p.sub_(ascent)
        super().step()


def test_a_pass_before_the_step_is_measured_where_the_optimizer_clears_it_and_evaluates_a_closure() -> None:
    """It ended in a RuntimeError: the cleared weights were asked whether they are true."""

    def body(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        def closure() -> torch.Tensor:
            loss = loss_of(model, *WORLD.batch(0))
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)

    run = record(body, "fa", lambda model: Sharpness(model.parameters(), lr=0.1))
    expected = record(lambda model, optimizer: plain(model, optimizer, 1), "fa")
    for name in ("gradient_angle", "gradient_norm", "loss"):
        np.testing.assert_allclose(run[name], expected[name], rtol=1e-5)
    assert not np.allclose(run.update_norm, expected.update_norm, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_of_half_precision_weights_is_measured_without_rounding_it(dtype: torch.dtype) -> None:
    """It was taken in the weights' own precision: of large steps the norm was off by 5e-4 in bfloat16."""
    torch.manual_seed(0)
    model = nn.Linear(20, 30).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    before = model.weight.detach().double()
    with Recorder(model, optimizer, [EffectiveLR()]) as recorder:
        model(torch.randn(40, 20, dtype=dtype)).square().mean().backward()
        optimizer.step()
    size = (model.weight.detach().double() - before).norm()
    assert recorder.to_dataset().update_norm.item() == pytest.approx(float(size), rel=1e-6)


class ScalerOnCpu(torch.amp.GradScaler):
    def __init__(self) -> None:
        super().__init__("cpu", init_scale=2.0**10, growth_interval=1000)


def scaled(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, spoiled: tuple[int, ...] = ()
) -> None:
    """A loop with a scaler; at the spoiled batches the gradients overflow and the scaler skips the step."""
    for batch in range(3 + len(spoiled)):
        optimizer.zero_grad()
        step = batch - sum(s < batch for s in spoiled)
        loss = loss_of(model, *WORLD.batch(step))
        scaler.scale(loss * (float("inf") if batch in spoiled else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()


def test_a_scaled_loss_is_measured_without_its_scale() -> None:
    scaler = ScalerOnCpu()
    run = record(lambda model, optimizer: scaled(model, optimizer, scaler), grad_scaler=scaler)
    assert_same(run, record(plain))


@pytest.mark.parametrize("optimizer_of", [sgd, partial(sgd, fused=True)])
def test_the_scaler_that_steps_the_optimizer_is_found(optimizer_of: Any) -> None:
    """Without ``grad_scaler`` losses and norms were 2¹⁰ times too large, and projected_lr as many times too small."""
    run = record(lambda model, optimizer: scaled(model, optimizer, ScalerOnCpu()), optimizer_of=optimizer_of)
    assert_same(run, record(plain, optimizer_of=optimizer_of))


def test_signals_of_half_precision_are_unscaled_in_a_wider_one() -> None:
    """What the scaler keeps from vanishing in float16 would vanish as soon as it is divided by the scale."""

    dtype = torch.float32

    def run(half: bool) -> xr.Dataset:
        model, scaler = WORLD.model("fa", dtype=dtype), torch.amp.GradScaler("cpu", init_scale=2.0**16)
        optimizer = sgd(model)
        with Recorder(model, optimizer, [GradientAngle(), EffectiveLR()], grad_scaler=scaler) as recorder:
            with torch.autocast("cpu", torch.float16, enabled=half):
                loss = 1e-6 * loss_of(model, *WORLD.batch(0, dtype=dtype))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
        return recorder.to_dataset()

    halved, full = run(True), run(False)
    for name in ("gradient_norm", "gradient_norm_bp"):
        np.testing.assert_allclose(halved[name], full[name], rtol=0.01)
    for name in ("gradient_angle", "delta_angle", "local_angle"):
        np.testing.assert_allclose(halved[name], full[name], atol=0.5)


@pytest.mark.parametrize("given", [True, False])
def test_a_scaler_that_is_switched_off_scales_nothing(given: bool) -> None:
    """``GradScaler(enabled=use_amp)`` is how scripts have it; it was refused as none."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    run = record(
        lambda model, optimizer: scaled(model, optimizer, scaler), grad_scaler=scaler if given else None
    )
    assert_same(run, record(plain))


@pytest.mark.parametrize("spoiled", [(0,), (1,), (1, 2)])
def test_a_step_that_the_scaler_skips_is_none(spoiled: tuple[int, ...]) -> None:
    scaler = ScalerOnCpu()
    run = record(lambda model, optimizer: scaled(model, optimizer, scaler, spoiled), grad_scaler=scaler)
    assert run.step.values.tolist() == [0, 1, 2]
    assert run.last_step == 2
    assert_same(run, record(plain))


def test_clipping_changes_the_step_and_not_the_rules_gradient() -> None:
    def clipped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        loss_of(model, *WORLD.batch(0)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()

    run, free = record(clipped).isel(step=0), record(plain).isel(step=0)
    for name in ("gradient_norm", "gradient_norm_bp", "feedback_gain", "effective_lr", "gradient_angle"):
        np.testing.assert_allclose(run[name], free[name], rtol=1e-6)
    assert (run.applied_gain < 0.1 * free.applied_gain).all()
    np.testing.assert_allclose(run.update_angle, free.update_angle, atol=1e-4)  # one factor for all


def test_steps_count_from_zero_and_only_the_scheduled_are_measured() -> None:
    run = record(lambda m, o: plain(m, o, 8), schedule=every(3))
    everything = record(lambda m, o: plain(m, o, 8))
    assert run.step.values.tolist() == [0, 3, 6]
    assert run.last_step == 7
    assert_same(run, everything.isel(step=[0, 3, 6]))
    np.testing.assert_array_equal(run.samples_seen, [9, 36, 63])


def test_the_learning_rate_of_each_layer_is_followed() -> None:
    def scheduled(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for step in range(3):
            optimizer.zero_grad()
            loss_of(model, *WORLD.batch(step)).backward()
            optimizer.step()
            scheduler.step()

    def two_groups(model: nn.Module) -> torch.optim.Optimizer:
        slow = list(model.leave.parameters())
        fast = [p for p in model.parameters() if all(p is not q for q in slow)]
        return torch.optim.SGD([{"params": fast}, {"params": slow, "lr": 0.01}], lr=0.1)

    run = record(scheduled, optimizer_of=two_groups)
    np.testing.assert_allclose(run.learning_rate, [0.1, 0.05, 0.025], rtol=1e-6)
    rates = run.effective_lr / run.feedback_gain
    np.testing.assert_allclose(rates.sel(layer="enter"), [0.1, 0.05, 0.025], rtol=1e-5)
    np.testing.assert_allclose(rates.sel(layer="leave"), [0.01, 0.005, 0.0025], rtol=1e-5)


def test_a_layer_that_is_added_to_the_optimizer_later_gets_its_rate() -> None:
    def unfreezing(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        plain(model, optimizer, 1)
        optimizer.add_param_group({"params": list(model.enter.parameters()), "lr": 0.5})
        plain(model, optimizer, 1)

    run = record(unfreezing, optimizer_of=lambda model: sgd(model.leave))
    assert np.isnan(run.effective_lr.sel(layer="enter", step=0))
    assert float((run.effective_lr / run.feedback_gain).sel(layer="enter", step=1)) == pytest.approx(
        0.5, rel=1e-5
    )


def test_a_frozen_layer_is_observed_and_takes_no_step() -> None:
    def frozen(model: nn.Module) -> torch.optim.Optimizer:
        model.blocks[0].weight.requires_grad_(False)
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)

    run = record(plain, optimizer_of=frozen)
    assert np.isfinite(run.gradient_angle).all()
    assert (run.update_norm.sel(layer="blocks.0") == 0).all()
    assert np.isnan(run.update_angle.sel(layer="blocks.0")).all()


@pytest.mark.parametrize("rule", [None, "bp", "fa", "dfa"])
def test_a_weight_that_begins_to_learn_while_recording_is_measured_from_then_on(rule: str | None) -> None:
    def started(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        plain(model, optimizer, 1)  # one schedule, armed throughout
        model.enter.weight.requires_grad_(True)
        optimizer.add_param_group({"params": [model.enter.weight], "lr": 0.05})
        plain(model, optimizer, 2)

    def frozen(model: nn.Module) -> torch.optim.Optimizer:
        model.enter.weight.requires_grad_(False)
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)

    def always(model: nn.Module) -> torch.optim.Optimizer:
        others = [p for p in model.parameters() if p is not model.enter.weight]
        return torch.optim.SGD([{"params": others}, {"params": [model.enter.weight], "lr": 0.0}], lr=0.05)

    def from_then_on(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        plain(model, optimizer, 1)
        optimizer.param_groups[1]["lr"] = 0.05
        plain(model, optimizer, 2)

    run, same = record(started, rule, frozen), record(from_then_on, rule, always)
    assert_same(run.isel(step=[1, 2]), same.isel(step=[1, 2]))
    assert float(run.gradient_norm.sel(layer="enter", step=1)) > 0


def test_a_group_of_biases_does_not_give_the_run_its_learning_rate() -> None:
    def biases_first(model: nn.Module) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in model.parameters() if p.ndim == d], "lr": 0.5 / d**3} for d in (1, 2)
        ]
        return torch.optim.SGD(groups, lr=0.1)

    run = record(plain, optimizer_of=biases_first)
    assert float(run.lr) == 0.0625
    assert run.learning_rate.values == pytest.approx([0.0625] * 3)
    np.testing.assert_allclose(run.effective_lr, 0.0625 * run.feedback_gain, rtol=1e-6)


class Decaying(torch.optim.SGD):
    """An optimizer of the user's on top of torch's, whose step has hooks too once there was an SGD in the process."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.9)
        return super().step(closure)


@pytest.mark.parametrize("probe", [EffectiveLR, GradientAngle])  # after the step, and before it
def test_a_step_that_makes_its_base_classes_step_is_one(probe: Any) -> None:
    """It was counted twice and its decay left out, or it was an error: no signal was left for the step within it."""
    model = WORLD.model("fa")
    assert sgd(model).step  # SGD.step has hooks from here on
    optimizer, norms = Decaying(model.parameters(), lr=0.05), []
    with Recorder(model, optimizer, [probe()], every(2)) as recorder:
        for step in range(5):
            before = model.enter.weight.detach().clone()
            optimizer.zero_grad()
            loss_of(model, *WORLD.batch(step)).backward()
            optimizer.step()
            norms.append(float((model.enter.weight.detach() - before).norm()))
    run = recorder.to_dataset()
    assert recorder.step == 5
    assert run.step.values.tolist() == [0, 2, 4]
    if probe is EffectiveLR:
        np.testing.assert_allclose(run.update_norm.sel(layer="enter"), norms[::2], rtol=1e-6)


@pytest.mark.parametrize("rule", [None, "fa"])
def test_the_later_evaluations_of_a_closure_are_no_gradients_put_together_by_hand(rule: str | None) -> None:
    """Every loop with LBFGS was told so: ``.grad`` holds the last evaluation's, and the first is measured."""
    model = WORLD.model(rule)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(model, *WORLD.batch(0))
        loss.backward()
        return loss

    with warnings.catch_warnings(), Recorder(model, optimizer, [GradientAngle()]) as recorder:
        warnings.simplefilter("error")
        optimizer.step(closure)
    assert "weights_that_learn_elsewhere_too" not in recorder.to_dataset().attrs


class Patch:
    """What a library puts in the place of a class's step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.step = optimizer.step

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.step(*args, **kwargs)


def test_a_step_that_a_library_put_in_a_methods_place_is_one() -> None:
    """It was an error, or counted twice: the steps that run were told by the code that the class's step has."""

    class Patched(Decaying):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model = WORLD.model("fa")
    optimizer = Patched(model.parameters(), lr=0.05)
    Patched.step = Patch(optimizer)  # type: ignore[assignment,method-assign]
    with Recorder(model, optimizer, [EffectiveLR()], every(2)) as recorder:
        train(model, optimizer, [WORLD.batch(step) for step in range(5)])
    assert recorder.step == 5
    assert recorder.to_dataset().step.values.tolist() == [0, 2, 4]


def test_a_step_without_a_backward_pass_is_an_error() -> None:
    with pytest.raises(
        ProbeError, match=r"step 0: no error signal passed .*enter, .*backward\(\) called before"
    ):
        record(lambda model, optimizer: optimizer.step())


def test_an_input_that_is_overwritten_between_micro_batches_is_an_error() -> None:
    def with_buffer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        x, y = WORLD.batch(0)
        loss_of(model, x, y).backward()
        x.copy_(WORLD.batch(1)[0])
        loss_of(model, x, y).backward()
        optimizer.step()

    with pytest.raises(ProbeError, match="input of layer 'enter' was overwritten in place"):
        record(with_buffer)


def test_every_layer_keeps_the_order_of_the_model() -> None:
    assert record(plain).layer.values.tolist() == list(measurable(WORLD.model()))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("rule", [None, "bp", "fa", "dfa"])
def test_a_weight_in_the_place_of_another_is_measured_where_the_optimizer_steps_it(
    rule: str | None, sparse: bool
) -> None:
    def replaced(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        plain(model, optimizer, 1)
        old, new = model.enter.weight, nn.Parameter(model.enter.weight.detach().clone())
        model.enter.weight = new
        parameters = optimizer.param_groups[0]["params"]
        optimizer.param_groups[0]["params"] = [new if p is old else p for p in parameters]
        plain(model, optimizer, 2)

    schedule = (lambda step: step != 1) if sparse else None
    assert_same(record(replaced, rule, schedule=schedule), record(split_run, rule, schedule=schedule))


def split_run(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    plain(model, optimizer, 1)
    plain(model, optimizer, 2)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_weight_in_the_place_of_another_that_the_optimizer_does_not_know_is_an_error(sparse: bool) -> None:
    def replaced(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        plain(model, optimizer, 1)
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
        plain(model, optimizer, 2)

    with pytest.raises(ProbeError, match=r"layer 'enter' was replaced by another .* add it to the optimizer"):
        record(replaced, "fa", schedule=(lambda step: step != 1) if sparse else None)


def test_a_weight_that_was_replaced_by_a_frozen_one_is_no_error() -> None:
    def frozen(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        plain(model, optimizer, 1)
        model.enter.weight = nn.Parameter(model.enter.weight.detach().clone(), requires_grad=False)
        plain(model, optimizer, 2)

    run = record(frozen, "fa")
    assert np.isfinite(run.gradient_angle.sel(layer="leave")).all()
    assert not (run.update_norm.sel(layer="enter", step=[1, 2]) > 0).any()
