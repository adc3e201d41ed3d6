"""Kolen-Pollack: B takes the weight's own steps, whatever the optimizer, and decay brings the two together."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import ALL_LAYERS, LayerCase, as_it_is, close, convnet, gradients, mlp, normal, train
from torch import Tensor, nn

from alignlab import measures, rules
from alignlab.probes.truth import asking

X, Y = normal(6, 5), normal(6, 2, seed=2)


def _net(init: Any = None, sizes: tuple[int, ...] = (5, 4, 3, 2)) -> Any:
    return rules.convert(mlp(sizes), "kolen_pollack", init=init, generator=torch.Generator().manual_seed(0))


def _differences(net: Any) -> list[Tensor]:
    """B − W of the layers whose B is in use."""
    return [(net[i].feedback - net[i].weight).detach() for i in (2, 4)]


@pytest.fixture
def silent() -> Iterator[None]:
    """No warning may come."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- the gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ALL_LAYERS, ids=str)
def test_the_weights_gradient_goes_to_the_feedback_too_in_every_kind_of_layer(case: LayerCase) -> None:
    layer: Any = case.build()
    rules.convert(layer, "kolen_pollack")
    layer(case.input().requires_grad_()).square().sum().backward()
    assert layer.weight.grad.norm() > 0
    assert torch.equal(layer.feedback.grad, layer.weight.grad)
    assert (
        layer.feedback.grad.data_ptr() != layer.weight.grad.data_ptr()
    )  # clipping in place would clip twice


@pytest.mark.parametrize("accumulated", [False, True])
def test_gradients_in_place_are_changed_once(accumulated: bool) -> None:
    net = _net()
    for _ in range(1 + accumulated):
        F.mse_loss(net(X), Y).backward()
    before = gradients(net)
    for p in net.parameters():
        if p.grad is not None:
            p.grad.mul_(0.5)
    for name, gradient in gradients(net).items():
        assert torch.equal(gradient * 2, before[name])


def test_feedback_that_carries_nothing_gets_no_gradient() -> None:
    net = _net()
    F.mse_loss(net(X), Y).backward()
    assert net[0].feedback.grad is None
    assert all(torch.equal(net[i].feedback.grad, net[i].weight.grad) for i in (2, 4))


def test_a_weight_used_below_and_above_keeps_its_one_feedback_in_step() -> None:
    """The first use has the raw input, which no error goes to: what W learns there, B learns too."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Any:
            return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))

    net = rules.convert(Tied().double(), "kolen_pollack")
    assert net.a.feedback is net.b.feedback
    F.mse_loss(net(X), Y).backward()
    assert net.a.feedback is not None
    assert net.a.weight.grad is not None
    assert torch.equal(net.a.feedback.grad, net.a.weight.grad)  # type: ignore[arg-type]
    assert len(list(net.parameters())) == 7  # two weights, three biases, two feedbacks


def test_a_frozen_weight_freezes_its_feedback_and_a_frozen_feedback_is_feedback_alignment() -> None:
    net, fa = _net(), rules.convert(mlp(), "fa", generator=torch.Generator().manual_seed(0))
    net[2].weight.requires_grad_(False)
    net[4].feedback.requires_grad_(False)
    for model in (net, fa):
        F.mse_loss(model(X), Y).backward()
    assert net[2].feedback.grad is None
    assert net[4].feedback.grad is None
    assert net[2].bias.grad is not None
    close(net[0].weight.grad, fa[0].weight.grad)


def test_true_mode_forms_no_gradient_of_the_feedback() -> None:
    net = _net()
    loss = F.mse_loss(net(X), Y)
    with asking([net[0].credit], true=True):
        found = torch.autograd.grad(loss, [net[2].feedback], allow_unused=True)
    assert found == (None,)


def test_a_second_derivative_by_the_feedback_is_the_weights() -> None:
    """B's gradient is defined as W's: a loss on gradients does not reach B by its part in the backward pass."""
    net = _net()
    (gradient,) = torch.autograd.grad(net(X).square().sum(), [net[0].weight], create_graph=True)
    gradient.square().sum().backward()
    assert net[2].feedback.grad is None or torch.equal(net[2].feedback.grad, net[2].weight.grad)


def test_functional_gradients_are_those_of_a_backward_pass() -> None:
    net = _net()
    values = dict(net.named_parameters())
    found = torch.func.grad(lambda given: F.mse_loss(torch.func.functional_call(net, given, X), Y))(values)
    F.mse_loss(net(X), Y).backward()
    for name, gradient in gradients(net).items():
        close(found[name], gradient)


# --- the recursion ----------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2),
    "one-by-one": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2, foreach=False),
    "fused": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_difference_shrinks_by_one_minus_rate_times_decay_at_each_step(name: str, silent: None) -> None:
    net = _net()
    optimizer = OPTIMIZERS[name](net.parameters())
    start, weights = _differences(net), net[2].weight.detach().clone()
    for step in range(1, 21):
        train(net, optimizer, [(X, Y)])
        for now, first in zip(_differences(net), start, strict=True):
            torch.testing.assert_close(now, first * (1 - 0.1 * 0.2) ** step, rtol=1e-10, atol=1e-13)
    assert (net[2].weight - weights).norm() > 0.1  # and the weights have moved


def test_under_momentum_the_difference_follows_the_optimizers_own_recursion(silent: None) -> None:
    """v ← μ v + decay D, D ← D − lr v: what is common to W and B cancels."""
    net = _net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.2)
    expected = _differences(net)
    velocity = [torch.zeros_like(D) for D in expected]
    for _ in range(15):
        train(net, optimizer, [(X, Y)])
        velocity = [0.9 * v + 0.2 * D for v, D in zip(velocity, expected, strict=True)]
        expected = [D - 0.1 * v for D, v in zip(expected, velocity, strict=True)]
        for D, E in zip(_differences(net), expected, strict=True):
            torch.testing.assert_close(D, E, rtol=1e-9, atol=1e-12)


def test_decoupled_decay_shrinks_the_difference_under_adamw() -> None:
    net = _net()
    start = _differences(net)
    train(net, torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5), [(X, Y)] * 10)
    for D, first in zip(_differences(net), start, strict=True):
        torch.testing.assert_close(D, first * (1 - 0.05) ** 10, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
def test_feedback_that_starts_as_the_weight_stays_the_weight_and_the_run_is_backprops(
    optimizer: Callable[[Any], torch.optim.Optimizer], silent: None
) -> None:
    net, plain = _net(init=as_it_is), mlp()
    train(net, optimizer(net.parameters()), [(X, Y)] * 8)
    train(plain, optimizer(plain.parameters()), [(X, Y)] * 8)
    for name, p in plain.named_parameters():
        assert torch.equal(p, net.get_parameter(name))
    assert all(torch.equal(net[i].feedback, net[i].weight) for i in (2, 4))


def test_the_weight_angle_falls_under_ten_degrees_in_training() -> None:
    """64-32-32-4 classes, kaiming feedback: the angle starts at 90 degrees."""
    torch.manual_seed(0)
    centres, x = torch.randn(4, 64), torch.randn(512, 64)
    y = (x @ centres.T).argmax(-1)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    rules.convert(net, "kolen_pollack", generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)
    hidden: list[Any] = [net[2], net[4]]
    assert all(float(measures.weight_angle(m.feedback, m.weight)) > 60 for m in hidden)
    for step in range(800):
        at = slice(64 * (step % 8), 64 * (step % 8) + 64)
        optimizer.zero_grad()
        F.cross_entropy(net(x[at]), y[at]).backward()
        optimizer.step()
    assert all(float(measures.weight_angle(m.feedback, m.weight)) < 10 for m in hidden)
    assert (net(x).argmax(-1) == y).float().mean() > 0.9


# --- the optimizer ----------------------------------------------------------------------------------------------------


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, clear: Callable[[], Any]) -> None:
    clear()
    F.mse_loss(net(X), Y).backward()
    optimizer.step()


@pytest.mark.parametrize("by_the_model", [False, True], ids=["optimizer.zero_grad", "model.zero_grad"])
@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_made_before_convert_is_an_error_at_the_second_step(
    fused: bool, by_the_model: bool
) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1, fused=fused)
    rules.convert(net, "kolen_pollack")
    clear = net.zero_grad if by_the_model else optimizer.zero_grad
    _step(net, optimizer, clear)
    with pytest.raises(RuntimeError, match=r"weight \(3, 4\).*no optimizer has it.*after convert"):
        _step(net, optimizer, clear)


def test_a_checkpoint_loaded_in_between_does_not_hide_it() -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    rules.convert(net, "kolen_pollack")
    net.load_state_dict(_net().state_dict())
    _step(net, optimizer, net.zero_grad)
    with pytest.raises(RuntimeError, match="no optimizer has it"):
        _step(net, optimizer, net.zero_grad)


def test_what_steps_the_feedback_in_its_own_way_is_no_error(silent: None) -> None:
    """By hand; by a second optimizer, which may step less often; a weight that is changed between steps."""
    net = _net()
    for _ in range(3):
        F.mse_loss(net(X), Y).backward()
        with torch.no_grad():
            for p in (p for p in net.parameters() if p.grad is not None):
                p -= 0.1 * (p.grad + 0.01 * p)
                p.grad = None
    net = _net()
    feedback = [p for n, p in net.named_parameters() if n.endswith("feedback")]
    weights = [p for n, p in net.named_parameters() if not n.endswith("feedback")]
    both = [torch.optim.SGD(part, lr=0.1, weight_decay=0.1) for part in (weights, feedback)]
    for step in range(4):
        F.mse_loss(net(X), Y).backward()
        both[0].step()
        if step % 2 == 0:
            both[1].step()
    net = _net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        _step(net, optimizer, net.zero_grad)
        net(X)
        with torch.no_grad():
            net[2].weight.clamp_(-0.3, 0.3)


def test_without_decay_the_difference_stays_and_one_warning_says_so() -> None:
    net = _net()
    start = _differences(net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(net, torch.optim.SGD(net.parameters(), lr=0.1), [(X, Y)] * 5)
    assert [str(w.message).count("give the optimizer a weight_decay") for w in caught] == [1]
    for D, first in zip(_differences(net), start, strict=True):
        close(D, first)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_every_optimizer_without_decay_is_warned_of(optimizer: Any) -> None:
    net = _net()
    with pytest.warns(UserWarning, match="weight_decay=0"):
        train(net, optimizer(net.parameters(), lr=0.01), [(X, Y)] * 2)


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"]
)
def test_a_copy_watches_over_its_own_optimizer(copied: Callable[[Any], Any]) -> None:
    net = _net()
    train(net, torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1), [(X, Y)] * 2)
    again = copied(net)
    assert isinstance(again[2].feedback, nn.Parameter)
    partial = torch.optim.SGD([again[i].weight for i in (0, 2, 4)], lr=0.1)
    _step(again, partial, again.zero_grad)
    with pytest.raises(RuntimeError, match="no optimizer has it"):
        _step(again, partial, again.zero_grad)


def test_revert_takes_the_parameter_away() -> None:
    net = rules.revert(rules.convert(convnet(), "kolen_pollack"))
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in convnet().named_parameters()]
    assert not hasattr(net[0], "feedback")


def test_autocast_gives_the_feedback_a_gradient_in_its_own_precision() -> None:
    net = rules.convert(mlp((8, 8, 8, 4)).float(), "kolen_pollack")
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(torch.ones(4, 8)).square().mean()
    loss.backward()
    assert net[2].feedback.grad.dtype == torch.float32
    assert torch.equal(net[2].feedback.grad, net[2].weight.grad)
    assert math.isfinite(float(net[2].feedback.grad.norm()))


@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_a_run_saved_while_nothing_below_learns_continues_as_the_uninterrupted_one(way: str) -> None:
    """B takes W's steps though no error passes it for a while; the copy knows that one did before."""

    def continued(net: Any, at: int) -> Any:
        if way == "deepcopy":
            return copy.deepcopy(net)
        other = _net()
        other.load_state_dict(net.state_dict())
        return other

    def run(saved_at: int | None) -> dict[str, Tensor]:
        net = _net()
        for step in range(6):
            if step == saved_at:
                net = continued(net, step)
            for p in (net[0].weight, net[0].bias):
                p.requires_grad_(step < 2 or step > 4)
            train(net, torch.optim.SGD(net.parameters(), lr=0.2, weight_decay=0.1), [(X, Y)])
        return {name: p.detach() for name, p in net.named_parameters()}

    expected = run(None)
    for saved_at in (2, 3, 4):
        found = run(saved_at)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
