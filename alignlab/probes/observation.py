"""What a probe sees: every observed layer at one optimizer step, as tensors, with the costly products found once and shared.

Symbols as in the design: h (N, in), delta (N, out), W and B (out, in; convolutions read as (C_out, C_in·k·k)), G = deltaᵀ h.
A step made of several micro-batches is one batch: their samples are put together, and their gradients add.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor, nn

from alignlab import measures
from alignlab.probes.geometry import as_matrix, blocks, flat
from alignlab.probes.uses import Use, added, joined, known, rule_of
from alignlab.rules.layers import FeedbackLayer


@dataclass(eq=False)
class LayerObservation:
    """One layer at one step, detached. ``weight`` is W before the update, ``after`` behind it (None if not asked for).

    What most probes read: ``batch``, ``deltas``, ``gradients``, ``update``, ``matrices``, ``carried``, each found once and
    shared. ``uses``: the passes through the layer that the step was made of, in their order (the unrolled steps of a
    recurrent net, say), each a :class:`alignlab.probes.uses.Use` with its own ``h``, ``delta_rule``, ``delta_bp``, ``rows()``
    and ``gradient(delta)``.
    """

    name: str
    layer: nn.Module
    uses: list[Use]
    weight: Tensor
    after: Tensor | None
    learning_rate: float | Tensor  # a tensor, (K,), where the layer is of K runs
    sharing: list[Use]  # the uses of all layers with this weight: G is the weight's gradient
    above: list[Tensor] | None = (
        None  # for direct rules: the weights from the next layer to the output, if a plain chain
    )
    errors: Tensor | None = None  # for direct rules: the errors at the output, (N, n_error)
    landed: Tensor | None = None  # G_rule where it is no deltaᵀ h: the gradient that came to the weight
    derived: bool = (
        False  # whether that is G_bp too: backprop's, of a loss that holds a derivative of the model
    )

    @cached_property
    def update(self) -> Tensor | None:
        """ΔW, where it was asked for; of half precision in float32, where the difference is exact."""
        if self.after is None:
            return None
        return self.after.to(torch.promote_types(self.after.dtype, torch.float32)) - self.weight

    def forget(self) -> None:
        """Let go of what was computed; asked for again, it is computed again."""
        for name in vars(self).keys() - _GIVEN:
            delattr(self, name)

    @property
    def in_part(self) -> bool:
        """Whether ΔW is of other processes' samples too, so that G_bp, of this one's, has nothing to say of it."""
        return any(use.in_part for use in self.sharing)

    @property
    def direct(self) -> bool:
        """Whether the error reaches this layer directly, not through the layer above."""
        return isinstance(self.layer, FeedbackLayer) and self.layer.rule.direct

    @property
    def is_linear(self) -> bool:
        return isinstance(self.layer, nn.Linear)

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """``(h, delta_rule, delta_bp)`` of a linear layer, (N, in), (N, out), (N, out)."""
        parts = [use.rows() for use in self.sharing]
        h, rule, bp = (joined(list(column)) for column in zip(*parts, strict=True))
        return h, rule, bp

    @cached_property
    def deltas(self) -> tuple[Tensor, Tensor]:
        """``(delta_rule, delta_bp)``, one row a sample."""
        columns = zip(
            *((u.samples(known(u.delta_rule)), u.samples(known(u.delta_bp))) for u in self.uses), strict=True
        )
        rule, bp = (joined(list(column)) for column in columns)
        return rule, bp

    @cached_property
    def gradients(self) -> tuple[Tensor, Tensor]:
        """``(G_rule, G_bp)`` formed explicitly, in W's shape (convolutions; linear layers only if asked)."""
        if self.landed is not None and self.derived:
            landed = self.landed.to(torch.promote_types(self.landed.dtype, torch.float32))
            return landed, landed
        if self.landed is not None:
            bp = added(use.gradient(known(use.delta_bp)) for use in self.sharing)
            return self.landed.to(bp.dtype), bp
        rule = added(use.gradient(known(use.delta_rule)) for use in self.sharing)
        return rule, rule if self.same else added(use.gradient(known(use.delta_bp)) for use in self.sharing)

    @cached_property
    def same(self) -> bool:
        """Whether the rule's signals *are* backprop's (the same tensors), so that half the products are known."""
        return self.landed is None and all(use.delta_rule is use.delta_bp for use in self.sharing)

    @cached_property
    def tied_products(self) -> Tensor:
        """What ``measures.products_from_tied`` makes ``(‖G_rule‖², ⟨G_rule, G_bp⟩, ‖G_bp‖²)`` of, (…, 4): to be kept, where the
        formulas are for later."""
        if self.landed is None and self.is_linear:
            h, rule, bp = self.batch
            return measures.tied_gradient_products(rule, rule if self.same else bp, h)
        G_rule, G_bp = (flat(self.layer, g) for g in self.gradients)
        return measures.tied_weight_products(G_rule, G_rule if self.same else G_bp)

    @cached_property
    def update_product(self) -> Tensor:
        """⟨ΔW, G_bp⟩, float64."""
        update = known(self.update)
        if self.is_linear and not self.derived:
            h, _, bp = self.batch
            return measures.update_products(update, bp, h)
        return _inner(*(flat(self.layer, x) for x in (update, self.gradients[1])))

    @cached_property
    def matrices(self) -> tuple[Tensor, Tensor] | None:
        """``(W, B)`` as matrices of one shape; None where feedback plays no part.

        For a direct rule W is the product of the forward weights above, (n_error, out). None for a layer below which
        nothing learns (its B is never used), and for a direct layer that receives the true error or whose
        uses have no plain chain above that is one for all.
        """
        if self.direct:
            return self._direct_matrices()
        rule = rule_of(self.layer)
        if rule is not None and rule.whole and self.uses[-1].feedback is None:
            return None  # the error does not travel by W, nor by a B
        if not any(use.reaches_input for use in self.uses):
            return None
        feedback = self.uses[-1].feedback
        W = as_matrix(self.layer, self.weight)
        return W, W if feedback is None else as_matrix(self.layer, feedback.detach())

    @cached_property
    def blocks(self) -> tuple[Tensor, Tensor] | None:
        """The same as (blocks, out, in): the maps of a layer's groups or positions, whose spectra make up the layer's."""
        if self.matrices is None or self.direct:
            return (
                None
                if self.matrices is None
                else (self.matrices[0].unsqueeze(-3), self.matrices[1].unsqueeze(-3))
            )
        feedback = self.uses[-1].feedback
        W = blocks(self.layer, self.weight)
        return W, W if feedback is None else blocks(self.layer, feedback.detach())

    def _direct_matrices(self) -> tuple[Tensor, Tensor] | None:
        feedback = self.uses[-1].feedback
        if feedback is None or not self.above:
            return None
        product = self.above[0]
        for weight in self.above[1:]:
            product = weight @ product
        return (product, feedback.detach()) if product.shape == feedback.shape else None

    @cached_property
    def carried(self) -> tuple[Tensor, Tensor] | None:
        """``(delta_rule B, delta_rule W)`` at the layer's input, one row a sample; direct rules: ``(e B, e W_above)``."""
        if self.matrices is None:
            return None
        if self.direct:
            W, B = self.matrices
            if self.errors is None:
                return None
            e = self.errors.to(W.dtype)  # autocast's are of half precision
            return e @ B.to(W.dtype), e @ W
        used = [(u, known(u.delta_rule)) for u in self.uses if u.reaches_input]
        by_w = joined([u.carried(d, self.weight) for u, d in used])
        if self.uses[-1].feedback is None:
            return by_w, by_w
        return joined([u.handed_down() for u, _ in used]), by_w


_GIVEN = {field.name for field in fields(LayerObservation)}


@dataclass(eq=False)
class Observation:
    """All observed layers at one step, and the facts of the step."""

    step: int
    layers: dict[str, LayerObservation]
    learning_rate: float | Tensor
    wall_time: float
    passes: frozenset[int] = (
        frozenset()
    )  # the backward passes that the step was made of, by autograd's numbers
    scale: Tensor | None = None  # what a ``GradScaler`` multiplied the loss by; the signals are without it


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Of matrices."""
    return (a * b).sum((-2, -1), dtype=torch.float64 if a.device.type != "mps" else None)
