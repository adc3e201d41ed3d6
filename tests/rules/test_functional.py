"""``torch.func``: gradients of layerwise rules under functional_call, grad and vmap are those of a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import DIRECT, KINDS, LAYERWISE, RuleCase, close, gradients, mlp, net_of_kind, normal
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from alignlab import rules

over_layerwise = pytest.mark.parametrize("rule", LAYERWISE, ids=str)
State = dict[str, Tensor]


def _net(seed: int = 0) -> Any:
    """Every kind of layer, without what vmap cannot pass (the statistics of BatchNorm)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.Tanh(), nn.Linear(6, 3)
    ).double()


X, Y = normal(4, 1, 4, 4), normal(4, 3, seed=2)


def _state(net: nn.Module) -> tuple[State, State]:
    return {name: p.detach() for name, p in net.named_parameters()}, dict(net.named_buffers())


def _loss(net: nn.Module, parameters: State, buffers: State, x: Tensor = X, y: Tensor = Y) -> Tensor:
    return F.mse_loss(functional_call(net, (parameters, buffers), (x,)), y)


def _loop(net: Any, x: Tensor = X, y: Tensor = Y) -> State:
    """``.grad`` by name, with the feedback that the net has now."""
    for m in rules.feedback_layers(net).values():
        if m.rule.every_forward:
            m.rule = rules.make_rule("fa")
    net.zero_grad()
    F.mse_loss(net(x), y).backward()
    return {name: g for name, g in gradients(net).items() if g is not None}


def _assert_same(found: State, expected: State) -> None:
    """A gradient that ``.grad`` does not have (of a B below which nothing learns) is zero."""
    assert set(found) >= set(expected)
    assert not any(found[name].any() for name in set(found) - set(expected))
    for name, gradient in expected.items():
        assert gradient.norm() > 0
        close(found[name], gradient)


@over_layerwise
def test_grad_gives_what_backward_gives(rule: RuleCase) -> None:
    net = rule.convert(_net())
    parameters, buffers = _state(net)
    _assert_same(grad(lambda p: _loss(net, p, buffers))(parameters), _loop(net))


@over_layerwise
def test_gradients_by_sample_are_those_of_a_loop(rule: RuleCase) -> None:
    net = rule.convert(_net())
    parameters, buffers = _state(net)
    by_sample = vmap(grad(lambda p, x, y: _loss(net, p, buffers, x[None], y[None])), in_dims=(None, 0, 0))(
        parameters, X, Y
    )
    for i in range(len(X)):
        _assert_same({name: g[i] for name, g in by_sample.items()}, _loop(net, X[i : i + 1], Y[i : i + 1]))


@over_layerwise
def test_a_stack_of_models_learns_as_each_of_them(rule: RuleCase) -> None:
    nets = [rule.convert(_net(seed), seed=seed) for seed in range(3)]
    parameters, buffers = stack_module_state(nets)
    stacked = vmap(grad(lambda p, b: _loss(nets[0], p, b)), in_dims=(0, 0 if buffers else None))(
        {name: p.detach() for name, p in parameters.items()}, buffers
    )
    for i, net in enumerate(nets):
        _assert_same({name: g[i] for name, g in stacked.items()}, _loop(net))


@pytest.mark.parametrize("rule", ["bp", "fa", "usf"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_of_every_kind_of_layer_learns_as_each_of_them(kind: str, rule: str) -> None:
    own = [torch.Generator().manual_seed(seed) for seed in range(2)]
    nets = [rules.convert(net_of_kind(kind, seed)[0], rule, generator=own[seed]) for seed in range(2)]
    _, x = net_of_kind(kind)

    def loss(parameters: State, buffers: State) -> Tensor:
        return functional_call(nets[0], (parameters, buffers), (x,)).square().mean()

    for net in nets:
        net(x).square().mean().backward()  # brings B up to date
    parameters, buffers = stack_module_state(nets)
    found = vmap(grad(loss), in_dims=(0, 0 if buffers else None))(
        {name: p.detach() for name, p in parameters.items()}, buffers
    )
    for i, net in enumerate(nets):
        expected = {name: g for name, g in gradients(net).items() if g is not None}
        _assert_same({name: g[i] for name, g in found.items()}, expected)


@over_layerwise
def test_a_functional_call_does_not_tick(rule: RuleCase) -> None:
    """Its weights are another step's, or of many runs at once: B is the one that is handed in."""
    net = rule.convert(_net())
    F.mse_loss(net(X), Y).backward()
    parameters, buffers = _state(net)
    own = [(m.clock, m._seen, m.feedback) for m in rules.feedback_layers(net).values()]
    moved = {name: -p for name, p in parameters.items()}
    kept = {name: (2 if name.endswith("feedback") else 1) * p for name, p in parameters.items()}
    doubled = {name: 2 * b for name, b in buffers.items()}
    grad(lambda p: _loss(net, p, buffers))(moved)
    given = ((parameters, buffers), (kept, doubled))
    signals = [grad(lambda p, b=b: _loss(net, p, b))(p)["3.bias"] for p, b in given]
    close(signals[1], signals[0] * (1 if rule.name == "bp" else 2))
    for (clock, seen, feedback), m in zip(own, rules.feedback_layers(net).values(), strict=True):
        assert m.clock == clock
        assert m._seen == seen
        assert m.feedback is feedback


@pytest.mark.parametrize("rule", DIRECT, ids=str)
def test_a_direct_rule_says_that_it_cannot_be_transformed(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    parameters, buffers = _state(net)
    with pytest.raises(RuntimeError, match=rf"{rule.name}: .*torch.func"):
        grad(lambda p: functional_call(net, (p, buffers), (normal(4, 5),)).sum())(parameters)
    net(normal(4, 5)).sum().backward()
    assert net[0].weight.grad.norm() > 0
