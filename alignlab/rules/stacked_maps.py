"""Convolutions of K networks side by side, tied and untied, and the choice of the class for each kind of layer.

(K, N, C_in, H, W) → (K, N, C_out, H', W'). Their products are those of each run by itself, one after the other: on a CPU
one grouped convolution, or one product over the patches of all, takes no less (LeNet, batch 32, 16 runs: 5.0, 7.9 and 8.2 ms
a run). What runs share is the price of Python, of the nonlinearities and of the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alignlab.rules.convolution import FeedbackConv2d, geometry, pad, pads_outside
from alignlab.rules.credit import Chain, Credit
from alignlab.rules.functions import Geometry, GeometryFunction
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.linear import FeedbackLinear
from alignlab.rules.local import FeedbackLocallyConnected2d
from alignlab.rules.stacked import Mixed, MixedLinear, Stacked, company, in_lanes, mixes


class EachRun(NamedTuple):
    """A :class:`Geometry` for tensors that lead with a dimension of runs, out of that for one."""

    one: Geometry

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layers' outputs."""
        biases = [None] * len(weight) if bias is None else bias
        return torch.stack([self.one.forward(*own) for own in zip(x, weight, biases, strict=True)])

    def input_gradient(self, delta: Tensor, x: Tensor, carrier: Tensor) -> Tensor:
        """``delta`` carried to the input ``x`` by ``carrier`` (W or B)."""
        each = zip(delta, x, carrier, strict=True)
        return torch.stack([self.one.input_gradient(*own) for own in each])

    def parameter_gradients(
        self, delta: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """``deltaᵀ h`` in the weight's shape, and the bias's gradient, where they are ``wanted``."""
        each = zip(delta, x, weight, strict=True)
        of_weight, of_bias = zip(*(self.one.parameter_gradients(*own, wanted) for own in each), strict=True)
        return (torch.stack(of_weight) if wanted[0] else None), (torch.stack(of_bias) if wanted[1] else None)


class _StackedMaps(Stacked):
    """What they share."""

    @property
    def plan(self) -> Geometry:
        """How the layer of one run connects its inputs and outputs, once they are padded."""
        raise NotImplementedError

    def padded(self, x: Tensor) -> Tensor:
        """``x`` with what padding the plan does not do."""
        return x

    def transform(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor | None, chain: Chain
    ) -> Tensor:
        plan = EachRun(self.plan)
        z: Tensor = GeometryFunction.apply(self.padded(x), weight, bias, feedback, self.credit, chain, plan)
        return z

    def propagate(self, signal: Tensor) -> Tensor:
        return EachRun(self.plan).forward(self.padded(signal), self.weight.to(signal.dtype), None)


class StackedConv2d(_StackedMaps, FeedbackConv2d):
    """The same convolution of K networks."""

    @property
    def plan(self) -> Geometry:
        return geometry(self)

    def padded(self, x: Tensor) -> Tensor:
        if not pads_outside(self):
            return x
        padded = pad(self, x.flatten(0, 1))
        return padded.view(*x.shape[:2], *padded.shape[1:])

    def neurons(self, weight: Tensor) -> Tensor:
        return weight.flatten(2)


class StackedLocallyConnected2d(_StackedMaps, FeedbackLocallyConnected2d):  # type: ignore[misc]
    """The same untied convolution of K networks."""

    @property
    def plan(self) -> Geometry:
        patches: Geometry = self.one.patches
        return patches

    def neurons(self, weight: Tensor) -> Tensor:
        return weight.flatten(4).flatten(1, 2)


class MixedConv2d(Mixed, StackedConv2d):
    alike = StackedConv2d


class MixedLocallyConnected2d(Mixed, StackedLocallyConnected2d):  # type: ignore[misc]
    alike = StackedLocallyConnected2d


KINDS: dict[type[FeedbackLayer], type[Mixed]] = {
    FeedbackLinear: MixedLinear,
    FeedbackConv2d: MixedConv2d,
    FeedbackLocallyConnected2d: MixedLocallyConnected2d,
}


def stack_layers(members: Sequence[FeedbackLayer], credit: Credit) -> Stacked:
    """One layer of K runs out of K layers of one run each; those of one lane side by side.

    Raises ``ValueError`` where they are of no kind that can be stacked, or learn by rules that cannot stand side by side.
    """
    kinds = {type(m) for m in members}
    mixed = KINDS.get(type(members[0]))
    if len(kinds) > 1 or mixed is None:
        known = ", ".join(kind.__name__ for kind in KINDS)
        given = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"only layers of one kind can be stacked, of {known}; not {given}")
    if len({company(m.rule) for m in members}) > 1:
        alone = sorted({repr(m.rule) for m in members if not mixes(m.rule)})
        raise ValueError(
            f"members of {', '.join(alone)} cannot be stacked with members of other rules or settings"
        )
    one_rule = members[0].rule.each_its_own or len(in_lanes(members)) == 1
    return (mixed.alike if one_rule else mixed)(members, credit)
