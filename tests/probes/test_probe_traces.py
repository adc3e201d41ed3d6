"""Between measured steps nothing stays on the model, and of a measured pass nothing is kept."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from probe_worlds import WORLDS, loss_of, sgd
from torch import Tensor, nn

from alignlab.probes import EffectiveLR, FeedbackSpectrum, GradientAngle, Loss, Recorder, WeightAngle, every

WORLD = WORLDS["residual"]
BACKWARD = torch.Tensor.backward


def hooks_on(model: nn.Module) -> int:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_modules = sum(len(getattr(m, name)) for m in model.modules() for name in names)
    return on_modules + sum(len(p._backward_hooks or ()) for p in model.parameters())


def hooks_on_optimizer(optimizer: Any) -> tuple[int, int]:
    return len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)


def living() -> list[Tensor]:
    return [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]


def live_numbers(others: Sequence[Tensor] = ()) -> int:
    """How many numbers all living tensors but these ``others`` hold."""
    known = {id(x) for x in others}
    return sum(x.numel() for x in living() if id(x) not in known)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int) -> Iterator[int]:
    for step in range(n):
        optimizer.zero_grad()
        loss_of(model, *WORLD.batch(step)).backward()
        optimizer.step()
        yield step


@pytest.mark.parametrize("rule", [None, "fa", "dfa"])
def test_hooks_are_on_the_model_in_scheduled_steps_alone(rule: str | None) -> None:
    model = WORLD.model(rule)
    own = hooks_on(model)
    optimizer = sgd(model)
    with Recorder(
        model, optimizer, [GradientAngle(), WeightAngle(), EffectiveLR(), FeedbackSpectrum()], every(3)
    ):
        for step in steps(model, optimizer, 7):
            coming = (step + 1) % 3 == 0
            assert (hooks_on(model) > own) == coming
            assert hooks_on_optimizer(optimizer) == (int(coming), 1)
    assert hooks_on(model) == own
    assert hooks_on_optimizer(optimizer) == (0, 0)


def test_counting_samples_takes_one_hook_and_listening_to_losses_ends_with_each_step() -> None:
    model = WORLD.model("fa")
    optimizer = sgd(model)
    with Recorder(model, optimizer, [Loss()], every(3)):
        assert torch.Tensor.backward is not BACKWARD
        for step in steps(model, optimizer, 5):
            coming = (step + 1) % 3 == 0
            assert (torch.Tensor.backward is not BACKWARD) == coming
            assert coming or hooks_on(model) == 1
    assert torch.Tensor.backward is BACKWARD
    assert hooks_on(model) == 0


def test_losses_leave_backward_as_it_was_when_others_wrapped_it() -> None:
    model, other = WORLD.model("fa"), WORLD.model("fa")
    a = Recorder(model, sgd(model), [Loss()]).attach()
    ours = torch.Tensor.backward

    def wrapped(self: Tensor, *args: Any, **kwargs: Any) -> None:
        ours(self, *args, **kwargs)

    torch.Tensor.backward = wrapped  # type: ignore[method-assign]
    try:
        list(steps(model, a.optimizer, 1))
        a.detach()
        with Recorder(other, sgd(other), [Loss()]) as b:
            list(steps(other, b.optimizer, 2))
        assert torch.Tensor.backward is wrapped
        assert b.to_dataset().loss.notnull().all()
    finally:
        torch.Tensor.backward = BACKWARD  # type: ignore[method-assign]
    with Recorder(other, sgd(other), [Loss()]) as c:
        list(steps(other, c.optimizer, 2))
    assert c.to_dataset().loss.notnull().all()
    assert torch.Tensor.backward is BACKWARD


@pytest.mark.parametrize("rule", [None, "fa", "dfa"])
def test_nothing_of_a_measured_pass_is_kept_even_where_the_loop_keeps_its_losses(rule: str | None) -> None:
    others = living()  # what earlier tests left may go at any time
    model = WORLD.model(rule)
    optimizer = sgd(model)
    probes = [GradientAngle(), WeightAngle(), EffectiveLR(), Loss()]
    with Recorder(model, optimizer, probes) as recorder:
        sizes, kept = [], []
        for step in range(6):
            optimizer.zero_grad()
            loss = loss_of(model, *WORLD.batch(step))
            loss.backward()
            kept.append(loss)
            optimizer.step()
            recorder.flush()
            if step > 2:
                gc.collect()
                sizes.append(live_numbers(others))
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == 1  # the loss that was kept


@pytest.mark.parametrize("rule", [None, "fa", "dfa"])
def test_passes_without_a_backward_pass_are_freed_at_once(rule: str | None) -> None:
    """Validation where somebody forgot no_grad: no pass may wait for the garbage collector, or for the next step."""
    model = WORLD.model(rule)
    with Recorder(model, sgd(model), [GradientAngle(), Loss()]):
        loss_of(model, *WORLD.batch(0))
        gc.collect()
        gc.disable()
        try:
            before = live_numbers()
            for step in range(5):
                loss_of(model, *WORLD.batch(step))
            assert live_numbers() == before
        finally:
            gc.enable()
