"""Feedback with the sign of W: Liao, Leibo & Poggio 2016, whose names these are; in deep networks Moskovitz, Litwin-Kumar &
Abbott 2018.

Each has B = M ∘ sign(W), brought up to date whenever W changes; they differ in the magnitudes M > 0 alone. M comes from
``init`` (the absolute values of a draw), so that ``init`` has one meaning for all rules. sign(0) is 0. Liao's M are 1 (which
is ``sign_sync(period=1)``) and U(0, 1), beside batch normalisation or steps of one size; the default, ``xavier``, keeps errors
near their size without these, as in BioTorch. The bias has no part in B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignlab.checks import is_whole
from alignlab.rules.initialisation import Init
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.rule import Rule


class _SignFeedback(Rule):
    rests = True

    def __init__(self, init: str | Init = "xavier") -> None:
        super().__init__(init)

    def start(self, layer: FeedbackLayer) -> None:
        layer.feedback_magnitude = self.magnitude(layer)
        self.refresh(layer)

    def refresh(self, layer: FeedbackLayer) -> None:
        layer.feedback = layer.weight.detach().sign().mul_(_stored(layer))

    def magnitude(self, layer: FeedbackLayer) -> Tensor:
        """M, in the shape of W or broadcastable to it."""
        return layer.drawn(self.init, layer.feedback_seed).abs_()


class UniformSign(_SignFeedback):
    """uSF: ``B = c sign(W)`` with one constant a layer, the root mean square of a draw from ``init``."""

    name = "usf"

    def magnitude(self, layer: FeedbackLayer) -> Tensor:
        drawn = layer.drawn(self.init, layer.feedback_seed)
        return drawn.square().mean().sqrt()


class FixedRandomSign(_SignFeedback):
    """frSF: ``B = |B₀| ∘ sign(W)``, magnitudes drawn once."""

    name = "frsf"


class BatchRandomSign(_SignFeedback):
    """brSF: ``B = |B_t| ∘ sign(W)``, magnitudes drawn anew for every batch (here: every change of the weights)."""

    name = "brsf"

    def refresh(self, layer: FeedbackLayer) -> None:
        layer.feedback_magnitude = layer.drawn_magnitude(self.init, layer.feedback_seed + layer.clock)
        super().refresh(layer)


class SignSync(Rule):
    """``B ← sign(W)`` at steps 0, T, 2T, …; in between B stays while W moves on.

    Unscaled, as in the experiment that alignlab began with, the entries of B are ±1: √(3 fan_in) times the size of a W that
    PyTorch drew, so that an error grows by that factor at every layer that it passes. ``preserve_magnitude=True`` sets
    ``B ← |B₀| ∘ sign(W)``.

    ``period``: T in changes of the weights, at least 1: an optimizer step is one (LBFGS, which tries points, makes several).
    """

    name = "sign_sync"

    def __init__(
        self, period: int = 100, preserve_magnitude: bool = False, init: str | Init = "kaiming"
    ) -> None:
        super().__init__(init)
        if not is_whole(period):
            raise ValueError(f"sign_sync: period is {period!r}, expected a whole number of steps, at least 1")
        if not isinstance(preserve_magnitude, bool):
            raise ValueError(
                f"sign_sync: preserve_magnitude is {preserve_magnitude!r}, expected True or False"
            )
        self.period, self.preserve_magnitude = period, preserve_magnitude

    @property
    def draws(self) -> bool:
        return self.preserve_magnitude

    def start(self, layer: FeedbackLayer) -> None:
        super().start(layer)
        if self.preserve_magnitude:
            assert layer.feedback is not None
            layer.feedback_magnitude = layer.feedback.abs()
        self.refresh(layer)

    def refresh(self, layer: FeedbackLayer) -> None:
        if layer.clock % self.period == 0:
            sign = torch.sign(layer.weight.detach())
            layer.feedback = sign * _stored(layer) if self.preserve_magnitude else sign


def _stored(layer: FeedbackLayer) -> Tensor:
    assert layer.feedback_magnitude is not None
    return layer.feedback_magnitude
