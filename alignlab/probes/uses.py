"""One use of a layer in a forward pass, and what its gradient looks like.

Here all kinds of layer become one reading: an input h, error signals at the output, G = deltaᵀ h, and a signal carried
to the layer's input by W or by B. Everything above speaks of these alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from alignlab.probes import geometry
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.rule import Rule


@dataclass(eq=False)
class Use:
    """A layer's input and the error signals at its output, as they passed in one forward pass.

    Signals are noted by the backward pass that brought them (its number), since not every pass has a part in the update;
    :meth:`settle` adds up those that have.
    """

    layer: nn.Module
    h: Tensor
    feedback: Tensor | None  # the B that this very pass used; None where it used W
    reaches_input: (
        bool  # whether anything below needs this layer's error: elsewhere its feedback plays no part
    )
    shape: torch.Size  # of the output
    place: int  # in the order of the uses
    version: int  # of the input's memory when it was used
    weight: Tensor | None = None  # as it was then, where another optimizer may have stepped it since
    delta_rule: Tensor | None = None
    delta_bp: Tensor | None = None
    handed: Tensor | None = (
        None  # what the rule's own backward pass made of its error at the input, where it was seen
    )
    error: Tensor | None = None  # that a direct rule hands out
    expected: Tensor | None = (
        None  # the rule's error as it follows from the output's, computed a second time as a test
    )
    feeds_output: bool = False  # whether its error comes from the output alone, past no other layer
    feeds_alone: bool = False  # whether moreover the output depends on no other layer in this way
    below: list[Use] = field(
        default_factory=list
    )  # the uses that its input depends on in the same way; for direct rules
    in_part: bool = False  # whether other processes' samples have a part in the step too
    signals: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    def note(self, kind: str, backward: int, signal: Tensor) -> None:
        """Keep a signal that the ``backward``-th backward pass brought."""
        by_pass = self.signals.setdefault(kind, {})
        before = by_pass.get(backward)
        by_pass[backward] = signal if before is None else before + signal

    def settle(self, counted: Iterable[int]) -> None:
        """Set the signals to what the ``counted`` backward passes brought together; let go of the graph."""
        for handle in self.handles:
            handle.remove()
        arrived = self.signals.get("delta_rule", {})
        counted = [p for p in counted if p in arrived]
        if tested := self.signals.get("expected"):
            self.signals["expected"] = arrived | tested  # of a pass that is not tested, what arrived
        for kind, by_pass in self.signals.items():
            if counted and all(p in by_pass for p in counted):
                setattr(self, kind, sum((by_pass[p] for p in counted[1:]), by_pass[counted[0]]))
        self.handles, self.signals = [], {}

    @property
    def is_linear(self) -> bool:
        return isinstance(self.layer, nn.Linear)

    def is_taught_by_backprop(self) -> bool:
        """Whether the rule's error is backprop's to the bit, as next to the output; asked where a GPU need not wait."""
        rule, bp = self.delta_rule, self.delta_bp
        if not self.feeds_output or rule is None or bp is None:
            return False
        return rule.device.type == "cpu" and rule.equal(bp)

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """``(h, delta_rule, delta_bp)`` of a linear layer with all leading dims taken as samples: (N, in), (N, out) twice."""
        assert self.delta_rule is not None
        assert self.delta_bp is not None
        h, rule, bp = (geometry.rows(self.layer, x) for x in (self.h, self.delta_rule, self.delta_bp))
        return h, rule, bp

    def samples(self, x: Tensor) -> Tensor:
        """A signal at the layer's output or input as one row a sample."""
        return geometry.samples(self.layer, x)

    def gradient(self, delta: Tensor) -> Tensor:
        """G = deltaᵀ h in the weight's shape; float32 at least."""
        h, delta = _widened(self.h, delta)
        return geometry.gradient(self.layer, h, delta, weight_of(self.layer).to(delta.dtype))

    def handed_down(self) -> Tensor:
        """``delta_rule`` at the layer's input when B takes it down, a row a sample; the run's own product if seen."""
        assert self.delta_rule is not None
        assert self.feedback is not None
        return (
            self.carried(self.delta_rule, self.feedback) if self.handed is None else self.samples(self.handed)
        )

    def carried(self, delta: Tensor, carrier: Tensor) -> Tensor:
        """``delta`` at the layer's input when ``carrier`` (in W's shape) takes it down, one row a sample."""
        delta, carrier = _widened(delta, carrier)
        return geometry.carried(self.layer, self.h.to(delta.dtype), delta, carrier)


def parameter_of(layer: nn.Module) -> nn.Parameter | None:
    """The weight where it is a parameter; None where it is computed from others. Asking computes nothing."""
    return layer._parameters.get("weight")


def weights_behind(layer: nn.Module) -> tuple[nn.Parameter, ...]:
    """The weight, or what it is computed from (weight normalisation)."""
    if (weight := parameter_of(layer)) is not None:
        return (weight,)
    return tuple(p for name, p in layer.named_parameters() if name != "bias")


def weight_of(layer: nn.Module) -> Tensor:
    """The weight, outside the graph, asked for without a trace.

    A parametrisation may draw random numbers or move its buffers (spectral_norm) when it is computed for training. It is
    computed even where ``parametrize.cached()`` holds it: from before a step.
    """
    parameter = parameter_of(layer)
    if parameter is not None or not parametrize.is_parametrized(layer, "weight"):
        return (layer.weight if parameter is None else parameter).detach()  # type: ignore[operator]
    at_work = [m for m in layer.parametrizations.weight.modules() if m.training]  # type: ignore[union-attr]
    for module in at_work:
        module.training = False
    try:
        with torch.no_grad():
            return layer.parametrizations.weight().detach()  # type: ignore[no-any-return,operator,union-attr]
    finally:
        for module in at_work:
            module.training = True


def rule_of(layer: nn.Module) -> Rule | None:
    """The layer's learning rule, None for an unconverted layer."""
    return layer.rule if isinstance(layer, FeedbackLayer) else None


def used_feedback(layer: nn.Module) -> Tensor | None:
    """The layer's current B, None where it has none; copied where the optimizer will change it in place."""
    B = layer.feedback if isinstance(layer, FeedbackLayer) else None
    return B.detach().clone() if isinstance(B, nn.Parameter) else B


def joined(parts: list[Tensor]) -> Tensor:
    """The samples of several uses, one a row, as one batch; rows of smaller maps are filled up with zeros.

    No samples (of an expert that nothing is sent to) are one of zeros, which has no angle either.
    """
    width = max(part.shape[-1] for part in parts)
    found = (
        parts[0] if len(parts) == 1 else torch.cat([F.pad(p, (0, width - p.shape[-1])) for p in parts], -2)
    )
    return found if found.shape[-2] else F.pad(found, (0, 0, 0, 1))


def added(gradients: Iterable[Tensor]) -> Tensor:
    """The gradients of several uses of one weight together."""
    first, *others = gradients
    return sum(others, first)


def known(signal: Tensor | None) -> Tensor:
    """A signal that has arrived."""
    assert signal is not None
    return signal


def _widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in one dtype, float32 at least: half precision is too coarse to measure in."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)
