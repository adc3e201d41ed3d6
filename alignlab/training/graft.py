"""The graft: one method's direction with another's step size, on the same state.

Agarwal et al. 2020 (Disentangling adaptive gradient methods from learning rates) introduced it for optimizers. Here the two
are a learning rule and backprop: with G_rule and G_bp of the same batch and weights, a layer's gradient becomes
``d · ‖m‖ / ‖d‖`` where d is the one that gives the direction and m the one that gives the size. The bias takes the same factor
as its weight, so that the layer's whole teaching signal is scaled and nothing else; and so does a feedback that learns.
With global scope ‖m‖ and ‖d‖ are of all weights that learn together, and every layer takes the one factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alignlab import measures
from alignlab.probes.capture import Capture
from alignlab.probes.geometry import flat, summed
from alignlab.probes.uses import Use, added, known
from alignlab.rules import feedback_layers
from alignlab.rules.runs import beside
from alignlab.training.interventions import Graft


class Measured(NamedTuple):
    """A layer with the norms of its two gradients in each run, and backprop's itself where it gives a direction."""

    layer: nn.Module
    uses: list[Use]
    true: Tensor | None
    rule: Tensor
    bp: Tensor

    @property
    def learns(self) -> bool:
        """Whether its weight takes steps."""
        return self.layer.weight.grad is not None


class GradientGraft:
    """Rewrites ``.grad`` between ``backward()`` and ``optimizer.step()``.

    ``graft``: of a model of one run, or a list with one for each run of a stacked model, None where it is to learn as it does.
    """

    def __init__(self, model: nn.Module, graft: Graft | Sequence[Graft | None]) -> None:
        self._layers: dict[str, nn.Module] = dict(feedback_layers(model))
        like = next(model.parameters())
        self._set([torch.tensor(flags, device=like.device) for flags in _flags(graft)])
        self._capture = Capture(model, self._layers)
        self._capture.arm()

    def close(self) -> None:
        """Stop listening to the model."""
        self._capture.disarm()

    def narrow(self, rows: Tensor) -> None:
        """The model goes on with these ``rows`` of its runs alone. Between two steps."""
        self._capture.disarm()
        self._set([flags[rows] for flags in (self._by_bp, self._sized_by_bp, self._grafted, self._whole)])
        self._capture.arm()

    def _set(self, flags: Sequence[Tensor]) -> None:
        self._by_bp, self._sized_by_bp, self._grafted, self._whole = flags
        self._any_by_bp, self._all_by_bp = bool(self._by_bp.any()), bool(self._by_bp.all())
        self._any_whole = bool(self._whole.any())

    @torch.no_grad()
    def apply(self) -> None:
        """Graft the gradients of the pass that has just ended."""
        found: Iterable[Measured] = (
            self._measured(self._layers[name], uses)
            for name, uses in self._capture.take().items()
            if self._any_whole or not self._same(name, uses)
        )  # one layer after the other, whose gradients need not be held together
        whole = None
        if self._any_whole:
            found = list(found)
            counted = [m for m in found if m.learns]
            if counted:  # else biases alone learn, each layer's by its own factor
                whole = _whole([m.rule for m in counted]), _whole([m.bp for m in counted])
        for measured in found:
            self._graft(measured, whole)

    def _same(self, name: str, uses: list[Use]) -> bool:
        """Whether a layer's error is backprop's."""
        return all(use.delta_rule is use.delta_bp for use in uses) and name not in self._capture.landed

    def _measured(self, layer: nn.Module, uses: list[Use]) -> Measured:
        true = added(use.gradient(known(use.delta_bp)) for use in uses) if self._any_by_bp else None
        rule = length_of(layer, _rule_gradient(layer, uses))
        bp = _backprop_norm(layer, uses) if true is None else length_of(layer, true)
        return Measured(layer, uses, true, rule, bp)

    def _graft(self, measured: Measured, whole: tuple[Tensor, Tensor] | None) -> None:
        layer, uses, true, rule, bp = measured
        if whole is not None:
            rule, bp = (
                torch.where(self._whole, all_, own) for all_, own in zip(whole, (rule, bp), strict=True)
            )
        size, length = torch.where(self._sized_by_bp, bp, rule), torch.where(self._by_bp, bp, rule)
        factor = torch.where(self._grafted, ratio(size, length), 1.0)
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.grad is not None:
                own = beside(factor.to(parameter.grad.dtype), parameter)
                direction = parameter.grad if true is None else self._direction(layer, uses, name, true)
                parameter.grad = direction * own

    def _direction(self, layer: nn.Module, uses: list[Use], name: str, true: Tensor) -> Tensor:
        """Of the steps of the parameter ``name``: backprop's gradient in the runs where it gives the direction."""
        own: Any = getattr(layer, name).grad
        if name not in ("weight", "feedback"):  # a feedback that learns takes the steps of W
            true = added(summed(layer, known(use.delta_bp)) for use in uses)
        true = true.to(own.dtype)  # of half precision it is float32's
        return true if self._all_by_bp else torch.where(beside(self._by_bp, own), true, own)


def _flags(graft: Graft | Sequence[Graft | None]) -> tuple[Any, ...]:
    """Whether backprop gives the direction, whether the size, whether there is a graft at all, and whether it is of the whole
    network: one each, or one a run."""
    if isinstance(graft, Graft):
        return graft.direction == "bp", graft.magnitude == "bp", True, graft.scope == "global"
    return tuple(zip(*((False,) * 4 if g is None else _flags(g) for g in graft), strict=True))


def _whole(norms: Sequence[Tensor]) -> Tensor:
    """The norm of all layers' gradients together, in each run."""
    together: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)), dim=0)
    return together


def ratio(size: Tensor, length: Tensor) -> Tensor:
    """What a direction of this ``length`` is multiplied by to have this ``size``: nothing gives a zero vector a size.

    What is not finite stays so: a run that diverges must not seem to stand still.
    """
    return torch.where(size == length, 1.0, torch.where(length == 0, 0.0, size / length))


def _rule_gradient(layer: nn.Module, uses: list[Use]) -> Tensor:
    """G_rule: what has come to the weight, or of a weight that takes none deltaᵀ h."""
    landed = layer.weight.grad
    if isinstance(landed, Tensor):
        return landed
    return added(use.gradient(known(use.delta_rule)) for use in uses)


def _backprop_norm(layer: nn.Module, uses: list[Use]) -> Tensor:
    """‖G_bp‖ of a layer, in each run."""
    if len(uses) == 1 and uses[0].is_linear:
        h, _, delta = uses[0].rows()
        return measures.gradient_products(delta, delta, h)[0].sqrt()
    return length_of(layer, added(use.gradient(known(use.delta_bp)) for use in uses))


def length_of(layer: nn.Module, gradient: Tensor) -> Tensor:
    """The Frobenius norm of a weight, or of a gradient in its shape, in each run."""
    return measures.frobenius(flat(layer, gradient))
