"""What lies between the recorded model's output and the loss, or beside that way, is noticed whenever it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from probe_worlds import CLASSES, sgd
from torch import Tensor, nn

from alignlab.probes import EffectiveLR, GradientAngle, Loss, ProbeError, Recorder
from alignlab.rules import convert

X = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(9) % CLASSES
BETWEEN = "stands between the recorded model's output and the loss"


class Features(nn.Module):
    """Its head is called outside of its forward pass, where ``hidden`` is seen too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = torch.tanh(self.a(x))
        return torch.tanh(self.b(self.hidden))


def made(module: Any, rule: str | None) -> Any:
    return module if rule is None else convert(module, rule, generator=torch.Generator().manual_seed(1))


def record(model: nn.Module, loss: Callable[[int], Tensor], steps: int = 2, **kwargs: Any) -> Any:
    optimizer = sgd(model)
    with Recorder(model, optimizer, [GradientAngle(), EffectiveLR()], **kwargs) as recorder:
        for step in range(steps):
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()
    return recorder.to_dataset()


@pytest.mark.parametrize("rule", ["fa", "sign_sync"])
def test_a_converted_head_outside_of_the_forward_pass_is_an_error_where_it_is_left_out(rule: str) -> None:
    model = made(Features(), rule)
    with pytest.raises(ProbeError, match=BETWEEN):
        record(model, lambda step: F.cross_entropy(model.head(model(X)), Y), layers=["a", "b"])


@pytest.mark.parametrize("body", ["fa", "bp", None])
def test_a_head_that_was_converted_by_itself_is_an_error(body: str | None) -> None:
    model, head = made(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), body), made(nn.Linear(5, CLASSES), "fa")
    with pytest.raises(ProbeError, match=BETWEEN):
        record(model, lambda step: F.cross_entropy(head(model(X)), Y))


@pytest.mark.parametrize("rule", ["fa", "bp", None])
def test_converted_layers_below_or_beside_the_model_are_no_error(rule: str | None) -> None:
    below, beside = (made(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), "fa") for _ in range(2))
    model = made(nn.Linear(6, 4), rule)

    def loss(step: int) -> Tensor:
        h = below(X)
        return (model(h) - Y[:, None]).square().mean() + beside(h).square().mean()

    assert (record(model, loss).gradient_angle.fillna(0) < 1e-3).all()  # of one layer it is 0


@pytest.mark.parametrize("first", [0, 3, 9])
def test_a_loss_on_hidden_activations_is_found_at_the_step_at_which_it_comes(first: int) -> None:
    model = made(nn.Sequential(Features(), nn.Linear(6, CLASSES)), "fa")
    reached = []

    def loss(step: int) -> Tensor:
        reached.append(step)
        found = F.cross_entropy(model(X), Y)
        return found + model[0].hidden.square().mean() if step >= first else found

    with pytest.raises(ProbeError, match=r"layer '0\.a' received another error"):
        record(model, loss, 16, layers=["0.a", "0.b", "1"])
    assert reached[-1] == first


def differentiated(how: str, loss: Tensor, model: nn.Module) -> None:
    if how == "backward":
        torch.autograd.backward([loss])
        return
    parameters = list(model.parameters())
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
    ):
        parameter.grad = gradient


@pytest.mark.parametrize("how", ["backward", "grad"])
def test_a_loss_on_hidden_activations_is_found_whoever_differentiates_it(how: str) -> None:
    """Past ``Tensor.backward`` it was found in steps 0, 1, 2, 4, 8, … alone, and the angles of step 3 were of another loss."""
    model = made(nn.Sequential(Features(), nn.Linear(6, CLASSES)), "fa")
    optimizer = sgd(model)
    with Recorder(model, optimizer, [GradientAngle()]) as recorder:
        for _ in range(3):
            F.cross_entropy(
                model(X), Y
            ).backward()  # what is differentiated here says nothing of the next pass
            optimizer.step()
            optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y) + model[0].hidden.square().mean()
        differentiated(how, loss, model)
        with pytest.raises(ProbeError, match=r"layer '0\.a' received another error"):
            optimizer.step()
    assert recorder.step == 3


@pytest.mark.parametrize("how", ["backward", "grad"])
def test_whoever_differentiates_a_loss_of_the_output_it_is_measured(how: str) -> None:
    model = made(nn.Sequential(Features(), nn.Linear(6, CLASSES)), "fa")
    optimizer = sgd(model)
    with Recorder(model, optimizer, [GradientAngle()], layers=["0.a", "0.b", "1"]) as recorder:
        for _ in range(4):
            differentiated(how, F.cross_entropy(model(X), Y), model)
            optimizer.step()
            optimizer.zero_grad()
    assert np.isfinite(recorder.to_dataset().gradient_angle).all()


def test_a_loss_on_hidden_activations_is_found_in_one_of_two_passes_on_a_graph() -> None:
    """Step 3 was compared only if both passes had such a loss."""
    model = made(nn.Sequential(Features(), nn.Linear(6, CLASSES)), "fa")
    optimizer = sgd(model)
    with Recorder(model, optimizer, [GradientAngle()]) as recorder:
        for step in range(4):
            loss = F.cross_entropy(model(X), Y)
            loss.backward(retain_graph=True)
            (loss + model[0].hidden.square().mean() if step == 3 else loss).backward()
            if step < 3:
                optimizer.step()
                optimizer.zero_grad()
        with pytest.raises(ProbeError, match=r"layer '0\.a' received another error"):
            optimizer.step()
    assert recorder.step == 3


def test_a_loss_on_hidden_activations_of_weight_zero_is_none() -> None:
    model = made(nn.Sequential(Features(), nn.Linear(6, CLASSES)), "fa")

    def loss(step: int) -> Tensor:
        return F.cross_entropy(model(X), Y) + 0 * model[0].hidden.square().mean()

    assert record(model, loss, 4, layers=["0.a", "0.b", "1"]).sizes["step"] == 4


def test_a_probe_is_of_one_recorder_at_a_time() -> None:
    one, other = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)
    probe = Loss()
    with Recorder(one, sgd(one), [probe]), pytest.raises(ValueError, match="give each one probes of its own"):
        Recorder(other, sgd(other), [probe]).attach()
    assert not one._forward_pre_hooks
    with Recorder(other, sgd(other), [probe]) as recorder:  # after the other has ended
        assert recorder.status == "running"


def test_samples_that_were_not_counted_are_not_recorded_as_none() -> None:
    model = nn.Linear(6, CLASSES).eval()
    optimizer = sgd(model)
    with Recorder(model, optimizer, [Loss()]) as recorder:
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    run = recorder.to_dataset()
    assert "samples_seen" not in run
    assert float(run.loss[0]) > 0
