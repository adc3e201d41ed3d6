"""Convolutions of several runs side by side are those of each run, whatever their geometry; other layers are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from alignlab.rules import LocallyConnected2d, convert, feedback_layers
from alignlab.rules.credit import Credit
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.stacked_maps import stack_layers

MAPS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "bias": False},
    {"kernel_size": (4, 2), "padding": "same", "padding_mode": "circular"},
]


def layers(rule: str, make: Any) -> list[FeedbackLayer]:
    """Three, with the layer's input needing its error."""
    models = [convert(make(), rule, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    return [next(iter(feedback_layers(model).values())) for model in models]


@pytest.mark.parametrize("rule", ["brsf", "weight_mirror"])
def test_a_stack_goes_on_from_a_checkpoint(rule: str) -> None:
    """Each run from its own seed, which a clock is added to."""
    torch.manual_seed(0)
    members = layers(rule, lambda: nn.Conv2d(2, 4, 3))
    begun, resumed = stack_layers(members, Credit()), stack_layers(members[::-1], Credit())
    resumed.load_state_dict(begun.state_dict())
    x = torch.randn(3, 5, 2, 7, 8, dtype=torch.float32, requires_grad=True)
    for stack in (begun, resumed):
        with torch.no_grad():
            stack.weight += 1
        stack(x)
    assert begun.feedback is not None
    assert resumed.feedback is not None
    assert torch.equal(begun.feedback, resumed.feedback)


@pytest.mark.parametrize("rule", ["fa", "frsf", "weight_mirror"])
@pytest.mark.parametrize("fields", [*MAPS, {"kernel_size": 3, "stride": 2, "untied": True}], ids=str)
def test_a_stack_is_its_members(fields: dict[str, Any], rule: str) -> None:
    torch.manual_seed(0)
    own = {key: value for key, value in fields.items() if key != "untied"}
    untied = "untied" in fields
    members = layers(
        rule, lambda: LocallyConnected2d(2, 4, (7, 8), **own) if untied else nn.Conv2d(2, 4, **own)
    )
    stack = stack_layers(members, Credit())
    x = torch.randn(3, 5, 2, 7, 8, dtype=torch.float32)
    for _ in range(2):  # the second time the weights have changed
        given = x.clone().requires_grad_()
        z = stack(given)
        z.backward(torch.linspace(-1, 1, z.numel()).view(z.shape))
        for k, layer in enumerate(members):
            alone = x[k].clone().requires_grad_()
            own_z = layer(alone)
            own_z.backward(torch.linspace(-1, 1, z.numel()).view(z.shape)[k])
            pairs = [(z[k], own_z), (given.grad[k], alone.grad), (stack.weight.grad[k], layer.weight.grad)]
            pairs += [] if layer.bias is None else [(stack.bias.grad[k], layer.bias.grad)]
            pairs.append((stack.feedback[k], layer.feedback))
            for together, single in pairs:
                torch.testing.assert_close(together, single, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            for parameter in (p for layer in (stack, *members) for p in layer.parameters()):
                parameter.mul_(-0.5)
                parameter.grad = None


@pytest.mark.parametrize("make", [lambda: nn.Conv1d(2, 2, 1), lambda: nn.ConvTranspose2d(2, 2, 1)])
def test_layers_that_have_no_stack_are_refused(make: Any) -> None:
    with pytest.raises(
        ValueError, match=r"only layers of one kind can be stacked, of FeedbackLinear, .*; not FeedbackConv"
    ):
        stack_layers(layers("fa", make), Credit())
