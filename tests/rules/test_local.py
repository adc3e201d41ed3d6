"""The untied convolution: against its naive twin, and its feedback position by position."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from rule_cases import LOCAL_LAYERS, LayerCase, close, normal
from torch import Tensor, nn

from alignlab import rules
from alignlab.rules import LocallyConnected2d
from alignlab.testing import naive

over_layers = pytest.mark.parametrize("case", LOCAL_LAYERS, ids=str)


def _settings(layer: Any) -> dict[str, Any]:
    return {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}


@over_layers
def test_the_forward_value_is_that_of_the_naive_loop(case: LayerCase) -> None:
    layer, x = case.build(), case.input()
    batch = x[None] if case.one_sample else x
    expected = torch.from_numpy(naive.locally_connected(batch, layer.weight, layer.bias, **_settings(layer)))
    close(layer(x).detach(), expected[0] if case.one_sample else expected)


@over_layers
def test_what_goes_down_is_that_of_the_naive_loop(case: LayerCase) -> None:
    layer, x = case.build(), case.input().requires_grad_()
    rules.convert(layer, "fa")
    z = layer(x)
    delta = normal(*z.shape, seed=4)
    z.backward(delta)
    batch = delta[None] if case.one_sample else delta
    size = layer.input_size
    expected = torch.from_numpy(naive.locally_carried(batch, layer.feedback, size, **_settings(layer)))
    close(x.grad, expected[0] if case.one_sample else expected)


def test_equal_kernels_make_a_convolution() -> None:
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1).double()
    local = LocallyConnected2d(3, 4, (7, 6), 3, stride=2, padding=1).double()
    assert conv.bias is not None
    with torch.no_grad():
        local.weight.copy_(conv.weight.expand_as(local.weight))
        local.bias.copy_(conv.bias[:, None, None].expand_as(local.bias))
    x = normal(2, 3, 7, 6)
    close(local(x).detach(), conv(x).detach())
    for layer in (local, conv):
        layer(x).square().sum().backward()
    close(local.weight.grad.sum((0, 1)), conv.weight.grad)
    close(local.bias.grad.sum((1, 2)), conv.bias.grad)


def test_it_starts_as_a_convolution_does() -> None:
    torch.manual_seed(0)
    layer = LocallyConnected2d(4, 8, 20, 5)
    bound = 1 / (4 * 25) ** 0.5
    for values in (layer.weight, layer.bias):
        assert 0.99 * bound < float(values.detach().abs().max()) <= bound
    assert layer.weight.shape == (16, 16, 8, 4, 5, 5)


def test_the_output_is_laid_out_as_a_convolutions() -> None:
    """So that what follows may take views of it."""
    assert LocallyConnected2d(2, 3, 5, 3)(torch.ones(4, 2, 5, 5)).is_contiguous()


def test_the_feedback_of_a_position_is_drawn_as_a_convolutions() -> None:
    """Of the size that the errors of C_out·k·k entries ask for, and another one at each position."""
    layer = LocallyConnected2d(4, 8, 20, 5)
    rules.convert(layer, "fa", init="kaiming", generator=torch.Generator().manual_seed(0))
    B: Tensor = layer.feedback
    assert float(B.std()) == pytest.approx((2 / (8 * 25)) ** 0.5, rel=0.02)
    assert not (B[0, 0] == B[0, 1]).any()


def test_the_magnitudes_of_a_position_are_those_of_such_a_draw() -> None:
    layer = LocallyConnected2d(4, 8, 20, 5)
    rules.convert(layer, "brsf", init="kaiming", generator=torch.Generator().manual_seed(0))
    layer(torch.ones(1, 4, 20, 20, requires_grad=True)).sum().backward()
    expected = layer.drawn("kaiming", layer.feedback_seed + layer.clock).abs()
    torch.testing.assert_close(layer.feedback_magnitude, expected)


@pytest.mark.parametrize("rule", ["brsf", "rerandomised"])
def test_no_position_is_drawn_as_its_neighbour_was_a_step_before(rule: str) -> None:
    layer = LocallyConnected2d(2, 3, 4, 3)
    rules.convert(layer, rule)
    draws = []
    for _ in range(3):
        layer(torch.ones(1, 2, 4, 4, requires_grad=True)).sum().backward()
        draws.append(layer.feedback.flatten(0, 1).abs())
        with torch.no_grad():
            layer.weight.mul_(1.0)
    kernels = torch.cat(draws)
    distances = torch.cdist(kernels.flatten(1), kernels.flatten(1)) + torch.eye(len(kernels))
    assert float(distances.min()) > 1e-3


@pytest.mark.parametrize("converted", [False, True])
def test_an_input_of_another_size_is_an_error(converted: bool) -> None:
    layer = LocallyConnected2d(2, 3, 5, 3)
    if converted:
        rules.convert(layer, "fa")
    with pytest.raises(ValueError, match=r"input is \(1, 2, 6, 5\), expected \(\[N,\] 2, 5, 5\)"):
        layer(torch.ones(1, 2, 6, 5))


def test_a_kernel_larger_than_the_input_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"\(2, 2\) with padding \(0, 0\) is smaller than the kernel \(3, 3\)"
    ):
        LocallyConnected2d(1, 1, 2, 3)


@pytest.mark.parametrize(
    "wrong", [{"padding": "same"}, {"padding": -1}, {"stride": 0}, {"kernel_size": 3.0}, {"in_channels": 0}]
)
def test_a_size_that_is_none_is_told(wrong: dict[str, Any]) -> None:
    sizes = {"in_channels": 1, "out_channels": 1, "input_size": 6, "kernel_size": 3}
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"LocallyConnected2d: {name} is {value!r}, expected whole numbers"):
        LocallyConnected2d(**{**sizes, **wrong})


def test_it_survives_copies_and_state_dicts() -> None:
    layer = rules.convert(LocallyConnected2d(2, 3, 5, 3), "fa")
    other = rules.convert(LocallyConnected2d(2, 3, 5, 3), "fa")
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 5, 5)
    for twin in (other, copy.deepcopy(layer)):
        assert torch.equal(twin(x), layer(x))
        assert torch.equal(twin.feedback, layer.feedback)
    assert "input_size=(5, 5)" in repr(layer)
