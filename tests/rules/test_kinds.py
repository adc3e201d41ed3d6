"""Kinds of layers beside linear ones and ordinary convolutions: in nets, in other number formats, tied, around norms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rule_cases import (
    ALL_LAYERS,
    ALL_RULES,
    LAYERWISE,
    UPWARD_LAYERS,
    LayerCase,
    RuleCase,
    as_it_is,
    close,
    gradients,
    normal,
    suit_signs,
    train,
)
from torch import Tensor, nn

from alignlab import rules

# of each kind the first case, and the others of the same class are left to the laws
ONE_OF_EACH = list({type(case.build()): case for case in reversed(ALL_LAYERS)}.values())
one_of_each = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)


def test_the_list_has_one_of_each_kind() -> None:
    assert len(ONE_OF_EACH) == 6


@pytest.mark.parametrize("case", ALL_LAYERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_gives_plain_autocasts_values_and_gradients(case: LayerCase, dtype: torch.dtype) -> None:
    plain = case.build().to(dtype)
    layer, x = rules.convert(copy.deepcopy(plain), "fa", init=as_it_is), case.input().to(dtype)
    found = []
    for model in (plain, layer):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
        output.float().square().sum().backward()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert torch.equal(model(x), output)
        found.append((output.detach(), gradients(model)))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=2e-2, atol=0.2)


@one_of_each
@pytest.mark.parametrize("rule", ["fa", "brsf", "dfa"])
def test_half_precision_layers_learn_in_half_precision(case: LayerCase, rule: str) -> None:
    layer = rules.convert(case.build().bfloat16(), rule)
    x = case.input().bfloat16().requires_grad_()
    layer(x).float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.bfloat16
    assert layer.weight.grad.isfinite().all()
    assert (x.grad is None) == (rule == "dfa")


@pytest.mark.parametrize("case", UPWARD_LAYERS, ids=str)
def test_errors_leave_a_transposed_convolution_by_the_ordinary_one_with_b(case: LayerCase) -> None:
    layer, x = rules.convert(case.build(), "fa"), case.input().requires_grad_()
    z = layer(x)
    delta = normal(*z.shape, seed=4)
    z.backward(delta)
    assert layer.feedback.shape == layer.weight.shape
    settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
    close(x.grad, torch.nn.functional.conv2d(delta, layer.feedback, None, *settings))


def test_the_feedback_of_a_transposed_convolution_suits_the_errors_that_enter_it() -> None:
    """Its W has the inputs first; errors are sums over C_out·k·k entries here."""
    layer: Any = rules.convert(nn.ConvTranspose2d(64, 4, 5), "fa", init="kaiming")
    assert float(layer.feedback.std()) == pytest.approx((2 / (4 * 25)) ** 0.5, rel=0.05)


class Residual(nn.Module):
    """h + f(h) with a normalisation in between; ``inner`` keeps the shape."""

    def __init__(self, inner: Callable[[], nn.Module], norm: Callable[[], nn.Module], out: int) -> None:
        super().__init__()
        self.first, self.second, self.norm = inner(), inner(), norm()
        self.out = nn.Linear(out, 2)

    def forward(self, x: Tensor) -> Any:
        h = self.first(x).tanh()
        h = h + self.norm(self.second(h)).tanh()
        return self.out(h.flatten(1))


RESIDUALS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (
        lambda: Residual(lambda: nn.Conv1d(4, 4, 3, padding=1), lambda: nn.BatchNorm1d(4), 20),
        (4, 5),
    ),
    "conv3d": (
        lambda: Residual(lambda: nn.Conv3d(2, 2, 3, padding=1), lambda: nn.GroupNorm(1, 2), 24),
        (2, 2, 2, 3),
    ),
    "up": (
        lambda: Residual(lambda: nn.ConvTranspose2d(2, 2, 3, padding=1), lambda: nn.BatchNorm2d(2), 24),
        (2, 4, 3),
    ),
    "local": (
        lambda: Residual(
            lambda: rules.LocallyConnected2d(2, 2, (4, 3), 3, padding=1), lambda: nn.LayerNorm([2, 4, 3]), 24
        ),
        (2, 4, 3),
    ),
}


@pytest.mark.parametrize("kind", RESIDUALS)
@pytest.mark.parametrize("rule", LAYERWISE, ids=str)
def test_a_residual_net_with_feedback_equal_to_its_weights_learns_by_backprop(
    rule: RuleCase, kind: str
) -> None:
    make, shape = RESIDUALS[kind]
    torch.manual_seed(0)
    net: Any = make().double()
    for layer in (net.first, net.second, net.out):
        suit_signs(rule, layer)
    plain = copy.deepcopy(net)
    rule.convert(net, init=as_it_is)
    for model in (net, plain):
        model(normal(5, *shape)).square().sum().backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(net)[name], gradient, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", RESIDUALS)
@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
def test_a_residual_net_learns_by_every_rule_and_resumes(rule: RuleCase, kind: str) -> None:
    make, shape = RESIDUALS[kind]

    def start(seed: int) -> tuple[Any, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        net = rule.convert(make().double(), seed)
        return net, torch.optim.SGD(net.parameters(), lr=0.01)

    batches = [(normal(5, *shape, seed=s), normal(5, 2, seed=s + 50)) for s in range(6)]
    whole, resumed = start(0), start(7)
    before = {n: p.detach().clone() for n, p in whole[0].named_parameters()}
    train(*whole, batches[:4])
    resumed[0].load_state_dict(copy.deepcopy(whole[0].state_dict()))
    train(*whole, batches[4:])
    train(*resumed, batches[4:])
    for (name, p), q in zip(whole[0].named_parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(p, q)
        still = (
            "second.bias",
            "first.feedback",
        )  # a norm behind a bias takes it away; nothing learns below the first B
        assert name in still or not torch.equal(p, before[name])


@one_of_each
def test_layers_with_one_weight_get_one_feedback_and_stay_tied(case: LayerCase) -> None:
    first, second = case.build(), case.build(1)
    second.weight = first.weight
    net = rules.convert(nn.ModuleList([first, second]), "fa")
    assert torch.equal(net[0].feedback, net[1].feedback)
    (net[0](case.input()).sum() + net[1](case.input(2)).sum()).backward()
    assert net[0].weight is net[1].weight
    rules.revert(net)
    assert net[0].weight is net[1].weight
