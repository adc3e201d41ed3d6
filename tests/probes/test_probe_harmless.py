"""A run with a recorder and one without end bitwise equal, whatever the loop does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from probe_worlds import CLASSES, WORLDS, World, loss_of, seeded, sgd
from torch import Tensor, nn

from alignlab.probes import (
    EffectiveLR,
    FeedbackSpectrum,
    GradientAngle,
    Loss,
    Recorder,
    WeightAngle,
    every,
    log_spaced,
)
from alignlab.rules import convert

STEPS = 5
RULES = [
    None,
    "bp",
    "fa",
    "dfa",
    "sign_sync",
    "brsf",
    "rerandomised",
    "drtp",
    "kolen_pollack",
    "weight_mirror",
]
Loop = Callable[[nn.Module, torch.optim.Optimizer, World], None]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return sgd(model, 0.05, momentum=0.9, nesterov=True)


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, *world.batch(step)).backward()
        optimizer.step()


def accumulating(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        for x, y in zip(*(part.split(3) for part in world.batch(step)), strict=True):
            (loss_of(model, x, y) / 3).backward()
        optimizer.step()


def clipping(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
    for step in range(STEPS):
        loss_of(model, *world.batch(step)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()


def evaluating(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
    for step in range(STEPS):
        model.eval()
        loss_of(model, *world.batch(50 + step))  # somebody forgot no_grad
        model.train()
        optimizer.zero_grad()
        loss_of(model, *world.batch(step)).backward()
        optimizer.step()


def noisy(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        output = model(world.batch(step)[0])
        output.register_hook(lambda g: g + 0.1 * torch.randn_like(g))
        F.cross_entropy(output, world.batch(step)[1]).backward()
        optimizer.step()


def final_state(
    rule: str | None, name: str, optimizer_of: Any, loop: Loop, schedule: Any, probes: list[Any]
) -> list[Tensor]:
    """Everything that the run leaves behind: weights, buffers, gradients, optimizer state, random state."""
    world = WORLDS[name]
    model = world.model(rule)
    optimizer = optimizer_of(model)
    with seeded(11):
        if probes:
            with Recorder(model, optimizer, probes, schedule):
                loop(model, optimizer, world)
        else:
            loop(model, optimizer, world)
        random_state = torch.get_rng_state()
    tensors = [
        *model.parameters(),
        *model.buffers(),
        *(p.grad for p in model.parameters() if p.grad is not None),
    ]
    state = [
        v
        for values in optimizer.state_dict()["state"].values()
        for v in values.values()
        if isinstance(v, Tensor)
    ]
    return [*tensors, *state, random_state]


def assert_harmless(rule: str | None, name: str, optimizer_of: Any, loop: Loop, schedule: Any) -> None:
    probes = [GradientAngle(), WeightAngle(), EffectiveLR(), FeedbackSpectrum(every=2), Loss()]
    probed = final_state(rule, name, optimizer_of, loop, schedule, probes)
    bare = final_state(rule, name, optimizer_of, loop, None, [])
    assert len(probed) == len(bare) > 1
    for a, b in zip(probed, bare, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("loop", [plain, accumulating, clipping, evaluating])
def test_every_loop_ends_as_without_a_recorder(rule: str | None, loop: Loop) -> None:
    assert_harmless(rule, "mlp", momentum, loop, every(1))


@pytest.mark.parametrize(
    "schedule", [every(3), lambda step: False, log_spaced(STEPS, 3), lambda step: step in (1, 2)]
)
@pytest.mark.parametrize("rule", ["fa", "dfa", "kolen_pollack"])
def test_every_schedule_leaves_the_run_alone(rule: str, schedule: Any) -> None:
    assert_harmless(rule, "mlp", adam, plain, schedule)


@pytest.mark.parametrize("name", ["conv", "residual", "twice", "positions"])
def test_every_model_ends_as_without_a_recorder(name: str) -> None:
    assert_harmless("fa", name, adam, plain, every(1))


def test_random_numbers_drawn_in_a_backward_pass_stay_the_same() -> None:
    """A hook of the user's that draws noise is called once more by the true pass, with its own dice."""
    assert_harmless("fa", "twice", momentum, noisy, every(2))


def test_a_copy_of_the_model_made_while_recording_is_an_ordinary_model() -> None:
    world = WORLDS["residual"]
    model = world.model("fa")
    optimizer = sgd(model)
    with Recorder(model, optimizer, [GradientAngle(), Loss()]) as recorder:
        copies = []
        for step in range(3):
            optimizer.zero_grad()
            output = model(world.batch(step)[0])
            copies.append(copy.deepcopy(model))
            other = copies[-1]
            loss_of(
                other, *world.batch(40)
            ).backward()  # what the copy does is none of the recorder's business
            F.cross_entropy(output, world.batch(step)[1]).backward()
            optimizer.step()
    alone = world.model("fa")
    with Recorder(alone, sgd(alone), [GradientAngle(), Loss()]) as undisturbed:
        for step in range(3):
            alone.zero_grad()
            loss_of(alone, *world.batch(step)).backward()
            undisturbed.optimizer.step()
    a, b = recorder.to_dataset(), undisturbed.to_dataset()
    assert a.samples_seen.values.tolist() == b.samples_seen.values.tolist() == [9, 18, 27]
    assert torch.equal(torch.tensor(a.gradient_angle.values), torch.tensor(b.gradient_angle.values))


def test_a_whole_model_can_be_saved_while_recording(tmp_path: Any) -> None:
    world = WORLDS["mlp"]
    model = world.model("fa")
    with Recorder(model, sgd(model), [GradientAngle(), Loss()]):
        torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    x, _ = world.batch(0)
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    assert loaded(x).shape == (9, CLASSES)


@pytest.mark.parametrize("rule", ["fa", "dfa", "ifa", "drtp"])
def test_a_hook_that_changes_what_passes_a_layer_does_the_same_whether_somebody_records_or_not(
    rule: str,
) -> None:
    def gradients(recorded: bool) -> list[Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        convert(model, rule, generator=torch.Generator().manual_seed(1))
        model[2].register_full_backward_hook(
            lambda module, below, above: None if below[0] is None else (2 * below[0],)
        )
        optimizer = sgd(model)
        with Recorder(model, optimizer, [WeightAngle(), Loss()]) if recorded else nullcontext():
            F.cross_entropy(model(torch.ones(8, 7)), torch.arange(8) % 4).backward()
            found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
            optimizer.step()
        return found

    for bare, probed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(bare, probed)
