"""The autograd Functions behind every rule: forward exactly the layer's own, backward with feedback in place of W.

Shapes: x (…, in), weight and feedback (out, in), delta (…, out) for linear layers; (N, C, …) for convolutions. A layer
hands down ``delta @ B`` (Lillicrap et al. 2016) or, in the true mode of :class:`Credit`, ``delta @ W``; its own weight
gradient is ``deltaᵀ h`` in both readings but is formed only outside the true mode, because autograd reports
``needs_input_grad`` for weights even where only activations were asked for.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.autograd import Function

from alignlab.rules.credit import Chain, Credit, Delivery


class RuleFunction(Function):
    """A Function that works under ``torch.func`` and costs no more than it must elsewhere."""

    generate_vmap_rule = True

    @classmethod
    def apply(cls, x: Tensor, *args: Any) -> Any:
        """As ``Function.apply``, which looks the forward's signature up at each call, at 5 % of a small net's step.

        What a transform of ``torch.func`` left behind is unwrapped, as there, where it is ``x``; the rest is the model's own.
        """
        if torch._C._are_functorch_transforms_active():
            return super().apply(x, *args)  # type: ignore[no-untyped-call]
        return super(Function, cls).apply(unwrap_if_dead(x), *args)  # type: ignore[misc]


class LinearFunction(RuleFunction):
    """``x Wᵀ + b`` forward; ``delta B`` (or ``delta W``) backward. Under a direct rule (``chain`` is a Delivery) it takes
    what the rule delivers for its ``delta``, and hands down what the rule left there for the layer below.

    W may lead with a dimension of runs, (K, out, in), for x (K, N, in): K networks side by side.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        feedback: Tensor | None,
        credit: Credit,
        chain: Chain,
    ) -> Tensor:
        if weight.dim() == 3:
            return (
                torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
            )
        return _owned(F.linear(x, weight, bias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, feedback, ctx.credit, ctx.chain = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, feedback)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor | None) -> tuple[Tensor | None, ...]:
        (delta,) = deltas
        true, chain = ctx.credit.true, ctx.chain
        d_x = d_weight = d_bias = None
        if isinstance(chain, Delivery):
            delta, d_x = delta if chain.above else chain.receive(delta), chain.take_below()
        if delta is None:
            return d_x, None, None, None, None, None
        x, weight, feedback = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        if of_x and (true or chain is True):
            d_x = _product(delta, weight if true or feedback is None else feedback)
        if not true and of_weight:
            d_weight = _outer(_rows(delta, weight), _rows(x, weight))
        if not true and of_bias:
            d_bias = _rows(delta, weight).sum(-2)
        return d_x, d_weight, d_bias, None, None, None


class Geometry(Protocol):
    """How a layer connects its inputs and outputs, for layers that are no plain matrix product. Padding is numeric here."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output."""

    def input_gradient(self, delta: Tensor, x: Tensor, carrier: Tensor) -> Tensor:
        """``delta`` carried to the input ``x`` by ``carrier`` (W or B); of ``x`` the size counts alone."""

    def parameter_gradients(
        self, delta: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """``deltaᵀ h`` in the weight's own shape, and the bias's gradient, where they are ``wanted``."""


class GeometryFunction(RuleFunction):
    """The output of a :class:`Geometry` forward; its transpose with B (or W) backward."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        feedback: Tensor | None,
        credit: Credit,
        chain: bool,
        geometry: Geometry,
    ) -> Tensor:
        return geometry.forward(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, feedback, ctx.credit, ctx.chain, ctx.geometry = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, feedback)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor | None) -> tuple[Tensor | None, ...]:
        (delta,) = deltas
        if delta is None:
            return (None,) * 7
        x, weight, feedback = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        true = ctx.credit.true
        d_x = d_weight = d_bias = None
        if of_x and (true or ctx.chain):
            d_x = ctx.geometry.input_gradient(delta, x, weight if true or feedback is None else feedback)
        if not true and (of_weight or of_bias):
            d_weight, d_bias = ctx.geometry.parameter_gradients(delta, x, weight, (of_weight, of_bias))
        return d_x, d_weight, d_bias, None, None, None, None


class Gate(RuleFunction):
    """The identity on a layer's output under a direct rule; backward it hands down what the :class:`Delivery` receives.

    For layers whose own Function is none.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, delivery: Delivery) -> Tensor:
        ctx.delivery = delivery
        ctx.set_materialize_grads(False)
        if z._is_view():
            return z.clone()
        ctx.mark_dirty(z)  # no copy; and not a view, so that an in-place nonlinearity may follow
        return z

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor | None) -> tuple[Tensor | None, None]:
        (arrived,) = deltas
        return ctx.delivery.receive(arrived), None


def gate_of(node: Any) -> Delivery | None:
    """The Delivery that a node of the graph acts for, if it is a gate."""
    kind = type(node)
    if kind is _LINEAR:
        return node.chain if isinstance(node.chain, Delivery) else None
    return node.delivery if kind is _GATE else None


_LINEAR: Any = LinearFunction._backward_cls
_GATE: Any = Gate._backward_cls


def _owned(z: Tensor) -> Tensor:
    """``z`` without the mark of a view, which inputs of one or three dimensions leave and no in-place op could pass."""
    owned: Tensor = z if z.dim() == 2 else torch.ops.aten._unsafe_view(z, z.shape)
    return owned


def _outer(delta: Tensor, x: Tensor) -> Tensor:
    """``deltaᵀ x``; of one sample there is nothing to sum, and many small products are faster entry by entry."""
    return delta.mT * x if x.shape[-2] == 1 else _product(delta.mT, x)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``; of several runs, (K, …) both, without the questions that it asks before it multiplies small matrices."""
    return torch.bmm(a, b) if b.dim() == 3 else a @ b


def _rows(x: Tensor, weight: Tensor) -> Tensor:
    return x if weight.dim() == 3 or x.dim() == 2 else x.reshape(-1, x.shape[-1])
