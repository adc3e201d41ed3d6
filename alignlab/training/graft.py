"""The graft: one method's direction with another's step size, layer by layer, on the same state.

Agarwal et al. 2020 (Disentangling adaptive gradient methods from learning rates) introduced it for optimizers. Here the two
are a learning rule and backprop: with G_rule and G_bp of the same batch and weights, a layer's gradient becomes
``d · ‖m‖ / ‖d‖`` where d is the one that gives the direction and m the one that gives the size. The bias takes the same factor
as its weight, so that the layer's whole teaching signal is scaled and nothing else; and so does a feedback that learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignlab import measures
from alignlab.probes.capture import Capture
from alignlab.probes.geometry import flat, summed
from alignlab.probes.uses import Use, added, known
from alignlab.rules import feedback_layers
from alignlab.rules.runs import beside
from alignlab.training.spec import Graft


class GradientGraft:
    """Rewrites ``.grad`` between ``backward()`` and ``optimizer.step()``.

    ``graft``: of a model of one run, or a list with one for each run of a stacked model, None where it is to learn as it does.
    """

    def __init__(self, model: nn.Module, graft: Graft | Sequence[Graft | None]) -> None:
        self._layers: dict[str, nn.Module] = dict(feedback_layers(model))
        like = next(model.parameters())
        self._by_bp, self._sized_by_bp, self._grafted = (
            torch.tensor(flags, device=like.device) for flags in _flags(graft)
        )
        self._any_by_bp, self._all_by_bp = bool(self._by_bp.any()), bool(self._by_bp.all())
        self._capture = Capture(model, self._layers)
        self._capture.arm()

    def close(self) -> None:
        """Stop listening to the model."""
        self._capture.disarm()

    def narrow(self, rows: Tensor) -> None:
        """The model goes on with these ``rows`` of its runs alone. Between two steps."""
        self._capture.disarm()
        self._by_bp, self._sized_by_bp, self._grafted = (
            flags[rows] for flags in (self._by_bp, self._sized_by_bp, self._grafted)
        )
        self._any_by_bp, self._all_by_bp = bool(self._by_bp.any()), bool(self._by_bp.all())
        self._capture.arm()

    @torch.no_grad()
    def apply(self) -> None:
        """Graft the gradients of the pass that has just ended."""
        for name, uses in self._capture.take().items():
            same = all(use.delta_rule is use.delta_bp for use in uses) and name not in self._capture.landed
            if not same:
                self._graft(self._layers[name], uses)

    def _graft(self, layer: nn.Module, uses: list[Use]) -> None:
        """A layer whose error is not backprop's."""
        true = added(use.gradient(known(use.delta_bp)) for use in uses) if self._any_by_bp else None
        rule = _norm(layer, _rule_gradient(layer, uses))
        bp = _backprop_norm(layer, uses) if true is None else _norm(layer, true)
        size, length = torch.where(self._sized_by_bp, bp, rule), torch.where(self._by_bp, bp, rule)
        factor = torch.where(self._grafted, _ratio(size, length), 1.0)
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
        return true.to(own.dtype) if self._all_by_bp else torch.where(beside(self._by_bp, own), true, own)


def _flags(graft: Graft | Sequence[Graft | None]) -> tuple[Any, Any, Any]:
    """Whether backprop gives the direction, whether the size, and whether there is a graft at all: one each, or one a run."""
    if isinstance(graft, Graft):
        return graft.direction == "bp", graft.magnitude == "bp", True
    each = [
        (g is not None and g.direction == "bp", g is not None and g.magnitude == "bp", g is not None)
        for g in graft
    ]
    by_bp, sized_by_bp, grafted = zip(*each, strict=True)
    return by_bp, sized_by_bp, grafted


def _ratio(size: Tensor, length: Tensor) -> Tensor:
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
    return _norm(layer, added(use.gradient(known(use.delta_bp)) for use in uses))


def _norm(layer: nn.Module, gradient: Tensor) -> Tensor:
    return measures.frobenius(flat(layer, gradient))
