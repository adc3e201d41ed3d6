"""Loops and models that are hard to record: nothing of the run changes, and the numbers are right or refused."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from probe_worlds import CLASSES, WORLDS, World, loss_of, seeded, sgd
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

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
from alignlab.probes.cleared import holds_cleared
from alignlab.rules import convert, revert
from alignlab.store import StoreError

MLP, RESIDUAL = WORLDS["mlp"], WORLDS["residual"]
HALVES = (slice(0, 4), slice(4, 9))
Step = Callable[[Any, int], None]


def every_probe() -> list[Probe]:
    return [GradientAngle(), WeightAngle(), EffectiveLR(), FeedbackSpectrum(), Loss()]


def recorded(
    model: nn.Module, step: Step, times: int = 3, probes: list[Probe] | None = None,
    optimizer: torch.optim.Optimizer | None = None, **options: Any,
) -> xr.Dataset:  # fmt: skip
    optimizer = optimizer or sgd(model)
    with Recorder(model, optimizer, probes or every_probe(), **options) as recorder:
        for i in range(times):
            optimizer.zero_grad()
            step(model, i)
            optimizer.step()
    return recorder.to_dataset()


def plain_step(model: nn.Module, i: int) -> None:
    loss_of(model, *MLP.batch(i)).backward()


class Hidden(nn.Module):
    """Two layers; ``h`` is the activation between them."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Any:
        self.h = torch.tanh(self.a(x))
        return self.b(self.h)


class Returned(Hidden):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), self.h


class CheckpointedNorm(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def body(self, x: Tensor) -> Tensor:
        return F.dropout(torch.tanh(self.bn(self.a(x))), 0.2)

    def forward(self, x: Tensor) -> Any:
        return self.b(checkpoint(self.body, x, use_reentrant=False))


class Spectral(Hidden):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.a = parametrizations.spectral_norm(self.a)


class Tied(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, CLASSES)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Any:
        return self.leave(torch.tanh(self.b(torch.tanh(self.a(torch.tanh(self.enter(x)))))))


def make(kind: type[nn.Module], rule: str | None = None) -> Any:
    return World(kind, (6,)).model(rule)


# Observing is harmless --------------------------------------------------------------------------------------------------


def ends(model: Any, probed: bool, change: Callable[[Any], None] = lambda model: None) -> list[Tensor]:
    """What a run of four steps leaves behind."""
    optimizer = sgd(model)
    with seeded(1), Recorder(model, optimizer, every_probe()) if probed else contextlib.nullcontext():
        for i in range(4):
            optimizer.zero_grad()
            loss = loss_of(model, *MLP.batch(i))
            change(model)
            loss.backward()
            optimizer.step()
        state = [value.clone() for value in model.state_dict().values() if isinstance(value, Tensor)]
        return [*state, torch.get_rng_state()]


@pytest.mark.parametrize("rule", ["fa", "dfa", "rerandomised"])
def test_a_checkpoint_that_is_computed_again_moves_nothing(rule: str) -> None:
    """Neither running statistics nor feedback that is drawn anew for each forward pass."""
    bare, probed = (ends(make(CheckpointedNorm, rule), probed) for probed in (False, True))
    assert all(map(torch.equal, bare, probed))


def test_a_weight_that_is_computed_for_training_is_not_computed_for_the_probes() -> None:
    """Each time that spectral_norm's weight is asked for, its power iteration goes on."""
    bare, probed = (ends(make(Spectral), probed) for probed in (False, True))
    assert all(map(torch.equal, bare, probed))


def test_a_weight_that_is_held_for_a_whole_step_takes_the_step_all_the_same() -> None:
    """Its update was read of what ``parametrize.cached()`` held, and was zero."""

    def update(held: bool) -> float:
        model = make(Hidden)
        parametrizations.weight_norm(model.b)
        optimizer = sgd(model)
        holding = parametrize.cached() if held else contextlib.nullcontext()
        with Recorder(model, optimizer, [EffectiveLR()]) as recorder, holding:
            plain_step(model, 0)
            optimizer.step()
        return float(recorder.to_dataset().update_norm.sel(step=0, layer="b"))

    assert update(True) == update(False) > 0


def test_random_numbers_drawn_by_a_hook_inside_the_model_stay_the_same() -> None:
    def draw(gradient: Tensor) -> None:
        torch.rand(1)

    def change(model: Any) -> None:
        model.h.register_hook(draw)

    bare, probed = (ends(make(Hidden, "fa"), probed, change) for probed in (False, True))
    assert all(map(torch.equal, bare, probed))


# What is measured is what reached the weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("rule", [None, "fa", "dfa"])
def test_gradients_that_do_not_go_into_grad_have_no_part(rule: str | None, before: bool) -> None:
    """They are logged, say: two micro-batches, each looked at before or after its backward pass."""

    def plain(model: Any, i: int) -> None:
        x, y = RESIDUAL.batch(i)
        for part in HALVES:
            (loss_of(model, x[part], y[part]) / 2).backward()

    def logging(model: Any, i: int) -> None:
        x, y = RESIDUAL.batch(i)
        for part in HALVES:
            loss = loss_of(model, x[part], y[part]) / 2
            if before:
                torch.autograd.grad(loss, model.leave.weight, retain_graph=True)
            loss.backward(retain_graph=not before)
            if not before:
                torch.autograd.grad(loss, model.leave.weight)

    expected, found = (recorded(RESIDUAL.model(rule), step) for step in (plain, logging))
    for name in ("gradient_norm", "gradient_angle", "loss"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=2e-5)


class Routed(nn.Module):
    """A mixture of experts: each sample goes through one, and in some steps none through the second."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.a, self.some, self.none = nn.Linear(6, 6), nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return torch.cat([self.some(h), self.none(h[:0])])


@pytest.mark.parametrize("rule", [None, "fa", "dfa"])
def test_a_layer_that_no_sample_passes_has_a_gradient_of_zeros_and_no_angle(rule: str | None) -> None:
    run = recorded(make(Routed, rule), plain_step)
    assert (run.gradient_norm.sel(layer="none") == 0).all()
    assert (run.update_norm.sel(layer="none") == 0).all()
    for name in ("gradient_angle", "delta_angle", "update_angle", "feedback_gain"):
        assert np.isnan(run[name].sel(layer="none")).all()
        assert np.isfinite(run[name].sel(layer="a")).all()


def test_gradients_of_tasks_put_together_by_hand_are_all_seen() -> None:
    def by_hand(model: Any, i: int) -> None:
        x, y = RESIDUAL.batch(i)
        weights = list(model.parameters())
        parts = [torch.autograd.grad(loss_of(model, x[part], y[part]), weights) for part in HALVES]
        for weight, first, second in zip(weights, *parts, strict=True):
            weight.grad = first + second

    np.testing.assert_allclose(recorded(RESIDUAL.model(), by_hand).update_angle, 0, atol=1e-3)


def task_by_task(model: Any, i: int, factors: tuple[float, float]) -> None:
    """As implementations of PCGrad do it: each task's gradients are copied out of ``.grad``, cleared, and put together."""
    output, y = model(MLP.batch(i)[0]), MLP.batch(i)[1]
    found = []
    for loss in (F.cross_entropy(output, y), output.square().mean()):
        model.zero_grad()
        loss.backward(retain_graph=True)
        found.append([p.grad.clone() for p in model.parameters()])
    for parameter, *gradients in zip(model.parameters(), *found, strict=True):
        parameter.grad = sum(f * g for f, g in zip(factors, gradients, strict=True))


@pytest.mark.parametrize("rule", [None, "fa", "dfa"])
def test_gradients_that_were_cleared_and_put_together_by_hand_are_told(rule: str | None) -> None:
    """Those of the last task alone were recorded as the step's."""
    with pytest.warns(UserWarning, match=r"layers a, b: .* cleared .* torch\.autograd\.grad") as told:
        run = recorded(make(Hidden, rule), partial(task_by_task, factors=(1.0, 0.8)))
    assert len(told) == 1
    assert run.attrs["weights_that_learn_elsewhere_too"] == "a, b"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_mixture_with_what_was_cleared_is_told_from_rounding_in_every_precision(dtype: torch.dtype) -> None:
    """A sum in bfloat16 was no mixture of its terms, and passes that rounded while they added up were nearly one."""
    generator = torch.Generator().manual_seed(0)
    first, second, third = torch.randn(3, 6, 5, generator=generator).to(dtype)
    assert holds_cleared(0.5 * first + second, [second], [first])
    assert not holds_cleared(0.3 * (second + third), [second, third], [first])


def test_a_gradient_of_a_few_numbers_is_a_mixture_of_any_and_tells_nothing() -> None:
    assert not holds_cleared(torch.tensor([1.0, 2.0]), [torch.tensor([3.0, 1.0])], [torch.tensor([1.0, 1.0])])


@pytest.mark.parametrize("rule", [None, "fa"])
def test_gradients_that_were_cleared_and_stayed_so_are_not_told(rule: str | None) -> None:
    """The last task's, clipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = recorded(make(Hidden, rule), partial(task_by_task, factors=(0.0, 0.3)))
    assert "weights_that_learn_elsewhere_too" not in run.attrs


def test_tied_layers_have_the_gradient_of_their_weight() -> None:
    run = recorded(make(Tied), plain_step)
    np.testing.assert_allclose(run.update_angle, 0, atol=1e-3)
    np.testing.assert_allclose(run.projected_lr, 0.05, rtol=1e-5)


def test_a_normalised_weight_has_its_rate() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, CLASSES))).double()
    run = recorded(model, plain_step)
    np.testing.assert_allclose(run.effective_lr / run.feedback_gain, 0.05, rtol=1e-6)


@pytest.mark.parametrize("penalty", [torch.square, torch.abs])
def test_weight_decay_in_the_loss_is_no_part_of_the_teaching_signal(
    penalty: Callable[[Tensor], Tensor],
) -> None:
    def decayed(model: Any, i: int) -> None:
        weights = sum(penalty(layer.weight).sum() for layer in (model.a, model.b))
        (loss_of(model, *MLP.batch(i)) + 0.1 * weights).backward()

    found, plain = (recorded(make(Hidden, "fa"), step, 1) for step in (decayed, plain_step))
    for name in ("gradient_angle", "gradient_norm", "gradient_norm_bp"):
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-6)
    assert plain.update_angle.sel(layer="b").item() == pytest.approx(0, abs=1e-3)
    assert found.update_angle.sel(layer="b").item() > 5


@pytest.mark.parametrize("both", [0.0, 0.1])
def test_elastic_nets_are_decay_too(both: float) -> None:
    def decayed(model: Any, i: int) -> None:
        weights = sum(0.1 * w.square().sum() + both * w.abs().sum() for w in (model.a.weight, model.b.weight))
        (loss_of(model, *MLP.batch(i)) + weights).backward()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = recorded(make(Hidden, "fa"), decayed)
    assert "weights_that_learn_elsewhere_too" not in run.attrs


def test_a_layer_that_does_more_than_its_class_is_an_error() -> None:
    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * (self.weight > 0), self.bias)

    with pytest.raises(ProbeError, match=r"layer '0': its weight got another .* Is a Masked more than"):
        recorded(nn.Sequential(Masked(6, CLASSES)).double(), plain_step)


def gradient_penalty(model: Any, i: int) -> None:
    x = MLP.batch(i)[0].requires_grad_()
    z = model(x)
    (slope,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    (z.mean() + slope.square().sum()).backward()


def penalty_by_itself(model: Any, i: int) -> None:
    loss_of(model, *MLP.batch(i)).backward()
    gradient_penalty(model, i)


def inner_step(model: Any, i: int) -> None:
    weights = dict(model.named_parameters())
    inner = loss_of(partial(functional_call, model, weights), *MLP.batch(i))
    gradients = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
    adapted = {name: w - 0.5 * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    loss_of(partial(functional_call, model, adapted), *MLP.batch(i + 1)).backward()


def transformed(model: Any, i: int) -> None:
    x = MLP.batch(i)[0]
    slope = torch.func.vmap(torch.func.grad(lambda one: model(one).sum()))(x)
    (model(x).mean() + slope.square().sum()).backward()


DERIVING = [gradient_penalty, penalty_by_itself, inner_step, transformed]


@pytest.mark.parametrize("rule", [None, "bp"])
@pytest.mark.parametrize("step", DERIVING)
def test_a_loss_that_holds_a_derivative_of_the_model_has_the_gradients_that_come_to_the_weights(
    step: Step, rule: str | None
) -> None:
    twin = make(Hidden, rule)
    gradients = []
    for i in range(2):
        twin.zero_grad()
        step(twin, i)
        gradients.append([float(layer.weight.grad.norm()) for layer in (twin.a, twin.b)])
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter -= 0.05 * parameter.grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make(Hidden, rule)
        run = recorded(model, step, 2, optimizer=torch.optim.SGD(model.parameters(), lr=0.05))
    for norm in (run.gradient_norm, run.gradient_norm_bp):
        np.testing.assert_allclose(norm, gradients, rtol=1e-6)
    np.testing.assert_allclose(run.projected_lr, 0.05, rtol=1e-6)
    np.testing.assert_allclose(run.update_angle, 0, atol=1e-3)


@pytest.mark.parametrize("step", DERIVING)
def test_under_other_rules_a_loss_that_holds_a_derivative_of_the_model_is_an_error(step: Step) -> None:
    with pytest.raises(ProbeError, match=r"derivative of|inside a torch.func transform"):
        recorded(make(Hidden, "fa"), step)


def test_a_layer_that_learns_by_derivatives_alone_is_an_error() -> None:
    def penalty_alone(model: Any, i: int) -> None:
        x = MLP.batch(i)[0].requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        slope.square().sum().backward()

    with pytest.raises(ProbeError, match=r"layer 'b' learns by derivatives of the model alone .* layers="):
        recorded(make(Hidden), penalty_alone)
    sgd_of = partial(torch.optim.SGD, lr=0.05)
    model = make(Hidden)
    found = recorded(model, penalty_alone, layers="a", optimizer=sgd_of(model.parameters()))
    np.testing.assert_allclose(found.projected_lr, 0.05, rtol=1e-6)


def test_a_derivative_that_is_taken_and_not_used_changes_nothing() -> None:
    def looking(model: Any, i: int) -> None:
        x = MLP.batch(i)[0].requires_grad_()
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
        plain_step(model, i)

    found, plain = (recorded(make(Hidden), step) for step in (looking, plain_step))
    for name in ("gradient_norm", "projected_lr", "update_angle", "loss"):
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-6, atol=1e-5)


def test_a_derivative_beside_a_weight_whose_gradient_is_not_known_is_an_error() -> None:
    model = make(Hidden)
    model.a.weight.requires_grad_(False)
    with pytest.raises(ProbeError, match=r"layer 'a': the loss holds a derivative .* leave the layer out"):
        recorded(model, gradient_penalty)
    found = recorded(
        model, gradient_penalty, layers="b", optimizer=torch.optim.SGD(model.b.parameters(), lr=0.05)
    )
    np.testing.assert_allclose(found.projected_lr, 0.05, rtol=1e-6)


def orthogonality(model: Any, i: int) -> None:
    W = model.a.weight
    (loss_of(model, *MLP.batch(i)) + (W @ W.T - torch.eye(8)).square().sum()).backward()


def test_what_a_weight_learns_elsewhere_is_told_once_and_stays_out() -> None:
    with pytest.warns(UserWarning, match="layer 'a': its weight got another gradient") as told:
        run = recorded(make(Hidden), orthogonality)
    assert sum("layer 'a'" in str(warning.message) for warning in told) == 1
    assert "a" in run.attrs["weights_that_learn_elsewhere_too"].split(", ")
    plain = recorded(make(Hidden), plain_step, 1)
    np.testing.assert_allclose(run.gradient_norm[0], plain.gradient_norm[0], rtol=1e-6)


def test_a_decoder_tied_to_an_embedding_is_left_out_and_told() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.a, self.out = (
                nn.Embedding(CLASSES, 8),
                nn.Linear(8, 8),
                nn.Linear(8, CLASSES, bias=False),
            )
            self.out.weight = self.words.weight

        def forward(self, x: Tensor) -> Any:
            return self.out(torch.tanh(self.a(self.words(x))))

    def step(model: Any, i: int) -> None:
        y = MLP.batch(i)[1]
        F.cross_entropy(model(y), y).backward()

    with pytest.warns(UserWarning, match="not observed: out;"):
        run = recorded(Words(), step)
    assert run.layer.values.tolist() == ["a"]


@pytest.mark.parametrize("rule", [None, "fa"])
def test_a_batch_that_was_cleared_behind_autograds_back_is_cleared(rule: str | None) -> None:
    def step(model: Any, i: int) -> None:
        loss_of(model, *MLP.batch(i + 1)).mul(5).backward()
        for parameter in model.parameters():
            parameter.grad.data.zero_()
        plain_step(model, i)

    found, expected = (recorded(make(Hidden, rule), each, 1) for each in (step, plain_step))
    for name in ("gradient_norm", "loss"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_a_hook_that_only_looks_changes_nothing(rule: str) -> None:
    model = make(Hidden, rule)
    model.a.register_full_backward_hook(lambda module, below, above: None)
    found, expected = recorded(model, plain_step), recorded(make(Hidden, rule), plain_step)
    np.testing.assert_allclose(found.gradient_angle, expected.gradient_angle, atol=1e-4)


def test_a_direct_rule_on_the_head_alone_leaves_the_trunk_unmeasured() -> None:
    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = (
                nn.Linear(6, 8),
                nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES)),
            )

        def forward(self, x: Tensor) -> Any:
            return self.head(torch.tanh(self.trunk(x)))

    model = Trunk().double()
    convert(model.head, "dfa")
    run = recorded(model, plain_step)
    assert np.isnan(run.gradient_angle.sel(layer="trunk")).all()
    assert np.isfinite(run.gradient_angle.sel(layer="head.0")).all()


def test_direct_rules_are_measured_under_autocast() -> None:
    def step(model: Any, i: int) -> None:
        x, y = MLP.batch(i)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x.float()), y)
        loss.backward()

    run = recorded(convert(Hidden(), "dfa"), step)
    assert np.isfinite(run.descent_fraction.sel(layer="a")).all()


def test_a_pruned_weight_has_no_update_rather_than_none() -> None:
    model = Hidden().double()
    prune.l1_unstructured(model.a, "weight", 0.3)
    run = recorded(model, plain_step)
    assert "update_norm" not in run or not (run.update_norm.sel(layer="a") == 0).any()


def test_the_first_hidden_layer_may_be_returned_and_learnt_from() -> None:
    def step(model: Any, i: int) -> None:
        x, y = MLP.batch(i)
        z, h = model(x)
        (F.cross_entropy(z, y) + h.square().mean()).backward()

    model, twin = make(Returned, "fa"), make(Returned)
    step(twin, 0)
    found = float(recorded(model, step, 1).gradient_norm_bp.sel(layer="a", step=0))
    assert found == pytest.approx(float(twin.a.weight.grad.norm()), rel=1e-5)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
@pytest.mark.parametrize("own_pass", [True, False])
def test_a_loss_on_hidden_activations_is_found_whenever_it_comes(rule: str, own_pass: bool) -> None:
    """In a pass of its own, or as a term that joins at the second step."""

    def step(model: Any, i: int) -> None:
        loss = loss_of(model, *MLP.batch(i))
        if own_pass:
            loss.backward(retain_graph=True)
            model.h.square().mean().backward()
        else:
            (loss + model.h.square().mean() if i else loss).backward()

    with pytest.raises(ProbeError, match="layer 'a'"):
        recorded(make(Hidden, rule), step)


def test_where_the_output_is_made_of_several_layers_no_product_of_weights_stands_above_a_direct_layer() -> (
    None
):
    class Joined(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.a, self.b, self.beside = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            return torch.cat([self.b(torch.tanh(self.a(x))), self.beside(x)], 1)

    run = recorded(make(Joined, "dfa"), plain_step)
    assert np.isfinite(run.gradient_angle.sel(layer="a")).all()
    for name in ("weight_angle", "spectrum_real", "descent_fraction"):
        assert name not in run or np.isnan(run[name].sel(layer="a")).all()
    plain = recorded(make(Hidden, "dfa"), plain_step)
    assert np.isfinite(plain.weight_angle.sel(layer="a")).all()


# Loss and samples --------------------------------------------------------------------------------------------------------


def test_each_call_of_backward_is_heard_once_and_with_its_weight() -> None:
    criterion = nn.CrossEntropyLoss()
    x, y = MLP.batch(0)
    value = criterion(make(Hidden)(x), y).item()

    def twice(model: Any, i: int) -> None:
        loss = criterion(model(x), y)
        loss.backward(retain_graph=True)
        loss.backward()

    def thirds(model: Any, i: int) -> None:
        for start in range(0, 9, 3):
            part = slice(start, start + 3)
            (criterion(model(x[part]), y[part]) / 3).backward()

    assert float(recorded(make(Hidden), twice, 1).loss[0]) == pytest.approx(2 * value, rel=1e-6)
    weighted = recorded(make(Hidden), thirds, 1, [Loss(criterion)])
    assert float(weighted.loss[0]) == pytest.approx(value, rel=1e-6)


def with_host() -> nn.Module:
    """A hosted layer, and two large enough for iterated spectra."""
    with seeded(0):
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.GRUCell(12, 8))


@pytest.mark.parametrize("rule", ["fa", "noisy_backprop"])
@pytest.mark.parametrize("iterated", [False, True])
def test_a_default_device_of_the_users_does_not_take_part(rule: str, iterated: bool) -> None:
    """``torch.set_default_device("cuda")`` is for what a script makes; meta tensors stand for that device."""
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    spectra = FeedbackSpectrum(every=1, exact_limit=4, largest=3) if iterated else FeedbackSpectrum(every=1)

    def run(model: nn.Module) -> xr.Dataset:
        convert(model, rule, generator=torch.Generator().manual_seed(1))
        return recorded(
            model, lambda m, i: m(x).square().mean().backward(), probes=[*every_probe()[:3], spectra]
        )

    plain, model = run(with_host()), with_host()
    with torch.device("meta"):
        elsewhere = run(model)
    own = ["wall_time", "run_id"]
    xr.testing.assert_equal(plain.drop_vars(own), elsewhere.drop_vars(own))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_backprops_update_keeps_its_angle_where_training_rounds(precision: str) -> None:
    """Products in bfloat16 put it at 1.6°, by the probe's own rounding; what training rounded is 0.2°."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(128, 400, generator=generator), torch.randint(10, (128,), generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.set_float32_matmul_precision(precision)
    try:
        with Recorder(model, optimizer, [EffectiveLR()], every(1)) as recorder:
            for _ in range(4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert recorder.to_dataset()["update_angle"].max() < 0.5


def test_the_value_of_a_criterion_survives_a_scale_that_half_precision_does_not() -> None:
    criterion = nn.MSELoss()
    x = torch.full((4, 6), 4.0, dtype=torch.float16)
    model = nn.Sequential(nn.Linear(6, 2)).half()
    expected = criterion(model(x), torch.zeros(4, 2, dtype=torch.float16)).item()

    class Scaler:
        _scale = torch.tensor(2.0**14)

    def step(model: Any, i: int) -> None:
        value = criterion(model(x), torch.zeros(4, 2, dtype=torch.float16))
        (value * 2.0**14).backward()

    run = recorded(model, step, 1, [Loss(criterion)], grad_scaler=Scaler())
    assert float(run.loss[0]) == pytest.approx(expected, rel=1e-3)


def test_a_checkpointed_model_has_its_samples_counted_once() -> None:
    def step(model: Any, i: int) -> None:
        x, y = MLP.batch(i)
        F.cross_entropy(checkpoint(model, x, use_reentrant=False), y).backward()

    assert recorded(make(Hidden, "fa"), step).samples_seen.values.tolist() == [9, 18, 27]


# Whose run it is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [every(1), every(2)])
def test_a_rule_that_changes_while_recording_is_an_error(schedule: Any) -> None:
    def there(model: Any, i: int) -> None:
        if i == 1:
            convert(model, "fa")
        plain_step(model, i)

    def back(model: Any, i: int) -> None:
        if i == 1:
            revert(model)
        plain_step(model, i)

    def over(model: Any, i: int) -> None:
        if i == 1:
            convert(revert(model), "usf")
        plain_step(model, i)

    for rule, step in ((None, there), ("fa", back), ("fa", over), ("bp", over)):
        with pytest.raises(ProbeError, match="was converted or reverted while recording"):
            recorded(MLP.model(rule), step, schedule=schedule)


def test_a_part_of_a_converted_model_is_refused() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, CLASSES)).double()
    convert(model, "fa")
    with pytest.raises(ProbeError, match="part of what was converted"):
        Recorder(model[0], sgd(model), [GradientAngle()]).attach()


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_a_model_of_which_a_layer_was_reverted_or_replaced_is_whole(rule: str) -> None:
    reverted, replaced = make(Hidden, rule), make(Hidden, rule)
    revert(reverted.b)
    replaced.b = nn.Linear(8, CLASSES).double()
    for model in (reverted, replaced, copy.deepcopy(make(Hidden, rule))):
        if rule == "fa":
            assert np.isfinite(recorded(model, plain_step).gradient_angle).all()
    whole = copy.deepcopy(make(Hidden, rule))
    with pytest.raises(ProbeError, match="part of what was converted"):
        recorded(whole.a, plain_step)


def test_steps_of_another_optimizer_are_not_this_ones() -> None:
    model = make(Hidden, "fa")
    run = recorded(model, plain_step, optimizer=sgd(model.a))
    assert np.isnan(run.update_norm.sel(layer="b")).all()
    assert (run.update_norm.sel(layer="a") > 0).all()


@pytest.mark.parametrize("rule", ["fa", "dfa", None])
def test_weights_are_those_of_the_pass_though_another_optimizer_stepped_first(rule: str | None) -> None:
    def run(other_first: bool) -> xr.Dataset:
        model = make(Hidden, rule)
        if rule is None:
            parametrizations.weight_norm(model.b)
        other = sgd(model.b)

        def step(model: Any, index: int) -> None:
            if index and not other_first:  # after the recorder's optimizer
                other.step()
            other.zero_grad()
            plain_step(model, index)
            if other_first:
                other.step()

        return recorded(model, step, optimizer=sgd(model.a)).drop_vars(["wall_time", "run_id"])

    first, last = run(other_first=True), run(other_first=False)
    assert np.isfinite(last.weight_norm).all()
    xr.testing.assert_identical(first, last)


class Watching(Probe):
    """A probe that reads the model itself."""

    quantities = ("watched",)
    needs_update = True

    def attach(self, model: nn.Module) -> None:
        self.model = model

    def measure_step(self, observation: Any) -> dict[str, Tensor | float]:
        return {"watched": self.model.a.weight.detach().norm()}  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("others", [[], [GradientAngle()], [EffectiveLR()]], ids=["alone", "angle", "lr"])
def test_a_probe_that_needs_the_update_meets_the_model_after_it(others: list[Probe]) -> None:
    model, norms = make(Hidden, "fa"), []
    probes, optimizer = [Watching(), *others], sgd(model)
    with Recorder(model, optimizer, probes) as recorder:
        for i in range(3):
            optimizer.zero_grad()
            plain_step(model, i)
            optimizer.step()
            norms.append(float(model.a.weight.detach().norm()))
    np.testing.assert_allclose(recorder.to_dataset().watched, norms, rtol=1e-6)


def test_one_run_id_is_one_run(tmp_path: Any) -> None:
    first = recorded(make(Hidden), plain_step, path=tmp_path, run_id="mine")
    with pytest.raises(StoreError, match=r"'mine' is in .* already.* checkpoint"):
        recorded(make(Hidden), plain_step, path=tmp_path, run_id="mine")
    assert first.sizes["step"] == 3


@pytest.mark.parametrize(
    ("rule", "arguments", "init"),
    [
        ("bp", {}, ""),
        ("fa", {"init": "nokland"}, "nokland"),
        ("sign_sync", {}, ""),  # ±1, whatever init says
        ("sign_sync", {"preserve_magnitude": True}, "kaiming"),
    ],
)
def test_an_initialisation_is_told_where_it_has_a_part(
    rule: str, arguments: dict[str, Any], init: str
) -> None:
    model = convert(Hidden().double(), rule, **arguments)
    assert recorded(model, plain_step, 1).attrs["feedback_init"] == init


def test_the_facts_of_a_run_are_stored() -> None:
    run = recorded(MLP.model("fa"), plain_step)
    assert {"alignlab_version", "torch_version", "numpy_version", "schema_version"} <= set(run.attrs)
    assert (run.attrs["device"], run.attrs["feedback_init"], float(run.lr)) == ("cpu", "kaiming", 0.05)
    assert run.attrs["learning_rule"] == "fa(init='kaiming')"
    assert run.attrs["optimizer"].startswith("SGD(momentum=0")
    assert run.fan_out.values.tolist() == [10, 8, 4]

    def conv_step(model: Any, i: int) -> None:
        loss_of(model, *WORLDS["conv"].batch(i)).backward()

    run = recorded(WORLDS["conv"].model("dfa"), conv_step, 1)
    assert run.kind.values.tolist() == ["conv2d"] * 3 + ["linear"]
    assert run.fan_in.values.tolist() == [18, 18, 24, 16]
    assert "local_angle" not in run


class Reading(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.words, self.inner, self.out = nn.Embedding(90, 8), inner, nn.Linear(8, CLASSES)


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        (nn.LSTM(8, 8), r"inner \(LSTM\), with 94%"),
        (nn.Bilinear(8, 8, 8), r"inner \(Bilinear\), with 94%"),
        (
            nn.ModuleList([nn.GRUCell(8, 8) for _ in range(5)]),
            r"inner\.0 .*inner\.2 \(GRUCell\) and 2 more, with 98%",
        ),
    ],
)
def test_a_record_that_leaves_most_of_a_model_out_says_so(inner: nn.Module, told: str) -> None:
    model = Reading(inner)
    with pytest.warns(UserWarning, match=f"not observed: {told} of the weights") as found:
        Recorder(model, sgd(model), [GradientAngle()])
    assert [w.filename for w in found] == [__file__]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("inner", "rule"),
    [
        (nn.LayerNorm(8), None),
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), None),
        (nn.LSTMCell(8, 8), "bp"),
        (nn.LSTM(8, 8).requires_grad_(False), None),
        (nn.Linear(8, 8), "kolen_pollack"),
    ],
)
def test_what_is_no_map_or_observed_or_fixed_is_not_missed(inner: nn.Module, rule: str | None) -> None:
    model = Reading(inner)
    if rule is not None:
        convert(model, rule, generator=torch.Generator().manual_seed(1))
    recorder = Recorder(model, sgd(model), [GradientAngle()])
    assert "out" in recorder.layers


@pytest.mark.filterwarnings("error")
def test_what_the_optimizer_does_not_train_is_not_missed() -> None:
    model = Reading(nn.LSTM(8, 8))
    assert [*Recorder(model, sgd(model.out), [GradientAngle()]).layers] == ["out"]


@pytest.mark.filterwarnings("error")
def test_layers_that_are_asked_for_are_enough() -> None:
    model = Reading(nn.LSTM(8, 8))
    assert [*Recorder(model, sgd(model), [GradientAngle()], layers="*").layers] == ["out"]
