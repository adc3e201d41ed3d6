"""Converted layers as layers: their buffers, their copies on other devices, what they print and remember."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from rule_cases import (
    ALL_LAYERS,
    ALL_RULES,
    CONV_LAYERS,
    UPWARD_LAYERS,
    LayerCase,
    RuleCase,
    close,
    convnet,
    mlp,
    normal,
)
from torch import Tensor, nn

from alignlab import rules
from alignlab.probes.truth import asking
from alignlab.rules.convolution import geometry, pad

over_rules = pytest.mark.parametrize("rule", ALL_RULES, ids=str)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("case", CONV_LAYERS + UPWARD_LAYERS, ids=str)
def test_a_convolutions_gradients_are_those_of_autograd(case: LayerCase) -> None:
    """The two products that probes take from a layer, at another carrier than W."""
    layer, x = case.build(), case.input()
    padded, plan = pad(layer, x[None] if case.one_sample else x).requires_grad_(), geometry(layer)
    carrier = normal(*layer.weight.shape, seed=4).requires_grad_()
    z = torch.convolution(padded, carrier, None, *plan)
    delta = normal(*z.shape, seed=5)
    expected = torch.autograd.grad(z, (padded, carrier), delta)
    close(plan.input_gradient(delta, padded.detach(), carrier.detach()), expected[0])
    close(
        plan.parameter_gradients(delta, padded.detach(), layer.weight.detach(), (True, False))[0], expected[1]
    )


@pytest.mark.parametrize("case", ALL_LAYERS, ids=str)
def test_a_layer_propagates_a_signal_forward_without_its_bias(case: LayerCase) -> None:
    layer, x = case.build(), case.input()
    expected = (layer(x) - layer(torch.zeros_like(x))).detach()
    rules.convert(layer, "ifa")
    assert isinstance(layer, rules.FeedbackLayer)
    propagated = layer.propagate(x[None] if case.one_sample else x).detach()
    close(propagated[0] if case.one_sample else propagated, expected)


@pytest.mark.parametrize("case", ALL_LAYERS, ids=str)
def test_the_input_may_be_a_view_of_any_strides(case: LayerCase) -> None:
    x = case.input()
    strided = torch.empty(*x.shape, 2, dtype=x.dtype)[..., 0].copy_(x)
    turned = x.transpose(0, -1).contiguous().transpose(0, -1)
    found = []
    for version in (x, strided, turned):
        layer = case.build()
        rules.convert(layer, "fa", generator=torch.Generator().manual_seed(0))
        version = version.detach().requires_grad_()
        layer(version).square().sum().backward()
        found.append((layer.weight.grad, version.grad))
    for weight, below in found[1:]:
        close(weight, found[0][0])
        close(below, found[0][1])


def test_channels_last_gives_the_same_gradients() -> None:
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        net = rules.convert(convnet(), "fa", generator=torch.Generator().manual_seed(0)).to(
            memory_format=memory_format
        )
        x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1)).to(
            memory_format=memory_format
        )
        net(x).square().sum().backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_backprop_stores_no_feedback() -> None:
    net = rules.convert(mlp(), "bp")
    assert not list(net.buffers())
    assert all(m.carrier() is m.weight for m in rules.feedback_layers(net).values())


def test_the_carrier_is_the_feedback_where_there_is_one() -> None:
    net = rules.convert(mlp(), "fa")
    assert all(m.carrier() is m.feedback for m in rules.feedback_layers(net).values())


@over_rules
def test_a_step_that_needs_no_gradient_records_nothing(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    with torch.no_grad():
        output = net(normal(4, 5))
    assert not output.requires_grad
    assert net[0].clock == 0
    assert not net[0].credit.calls
    for p in net.parameters():
        p.requires_grad_(False)
    assert not net(normal(4, 5)).requires_grad


@over_rules
def test_second_derivatives_pass_through_what_a_rule_sends(rule: RuleCase) -> None:
    """A penalty on a weight gradient: the last layer's depends on the layers below by the forward pass."""
    if rule.direct:
        pytest.skip("direct signals are constants of the graph")
    net = rule.convert(mlp())
    (gradient,) = torch.autograd.grad(net(normal(4, 5)).square().sum(), [net[4].weight], create_graph=True)
    gradient.square().sum().backward()
    assert net[4].weight.grad is not None
    assert net[4].weight.grad.norm() > 0


@over_rules
def test_credit_returns_to_the_rule_after_an_error(rule: RuleCase) -> None:
    credit = rule.convert(mlp())[0].credit
    seen = []
    with pytest.raises(ZeroDivisionError), asking([credit], true=True):
        seen.append(1 / (not credit.true))
    assert not seen
    assert not credit.true


@pytest.mark.gpu
@needs_gpu
@over_rules
def test_the_gpu_learns_what_the_cpu_learns(rule: RuleCase) -> None:
    """One state, two devices. Draws differ between devices, so rules that draw at every step are left to their own."""
    net = rule.convert(convnet())
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    net(x).square().mean().backward()
    if net[0].rule.every_forward or rule.source == "brsf":
        net.zero_grad()
        state = net.cuda()
        state(x.cuda()).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in state.parameters())
        assert all(b.is_cuda for b in state.buffers())
        return
    twin = copy.deepcopy(net).cuda()
    assert all(b.is_cuda for b in twin.buffers())
    twin.zero_grad()
    net.zero_grad()
    for model, device in ((net, "cpu"), (twin, "cuda")):
        model(x.to(device)).square().mean().backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad.cpu(), rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@needs_gpu
@over_rules
def test_a_model_converted_on_the_gpu_draws_there(rule: RuleCase) -> None:
    net = rule.convert(convnet().cuda())
    net(torch.ones(2, 1, 4, 4, device="cuda")).sum().backward()
    assert all(b.is_cuda for b in net.buffers())
    for m in rules.feedback_layers(net).values():
        assert m.weight.grad is not None
        assert m.weight.grad.norm() > 0


@pytest.mark.gpu
@needs_gpu
@over_rules
def test_mixed_precision_with_a_gradient_scaler_trains_on_the_gpu(rule: RuleCase) -> None:
    torch.manual_seed(0)
    net = rule.convert(convnet().cuda())
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.05), torch.amp.GradScaler("cuda")
    x = torch.randn(16, 1, 4, 4, device="cuda")
    y = x.flatten(1)[:, :3]
    losses: list[Tensor] = []
    for _ in range(50):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = F.mse_loss(net(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    assert isinstance(net[0], nn.Conv2d)
    assert losses[-1] < losses[0]
