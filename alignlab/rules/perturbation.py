"""What node and weight perturbation share: noise of a given size, its number of samples, and the losses compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignlab.checks import is_number, is_whole
from alignlab.rules.rule import Rule

if TYPE_CHECKING:
    from alignlab.rules.layers import FeedbackLayer


class Perturbation(Rule):
    """Learning from how the loss changes under noise ξ ~ N(0, σ²): ``gradient ≈ ΔL ξ / σ²``; forward passes only.

    ``sigma``: σ, in units of what is perturbed. ``samples``: draws averaged in a step, one further forward pass each.
    ``antithetic``: compare +ξ with −ξ, ``ΔL = (L(+ξ) − L(−ξ))/2``, instead of +ξ with no noise; two passes a draw.

    On a quadratic loss with gradient g and Hessian H in n perturbed numbers both forms are exactly unbiased, since a
    Gaussian's odd moments vanish; the bias comes from third derivatives, and is of order σ². Summed over its entries, the
    variance is ``(n + 1)‖g‖² / samples``; the one-sided form adds ``(n + 4)((tr H)² + 2 tr H²) σ²/4`` over ``samples``.
    So antithetic noise pays where σ or the curvature is large; where σ is small, twice the samples are the better use of
    as many passes. Too small a σ drowns in rounding: the loss's error divided by σ enters each entry.
    """

    closure = True
    uses_feedback = False
    hands_down = False
    every_forward = True  # every pass draws noise of its own

    def __init__(self, sigma: float = 1e-3, samples: int = 1, antithetic: bool = False) -> None:
        if not is_number(sigma) or sigma <= 0:
            raise ValueError(f"{self.name}: sigma is {sigma!r}, expected a number above 0, such as 1e-3")
        if not is_whole(samples):
            raise ValueError(f"{self.name}: samples is {samples!r}, expected a whole number, at least 1")
        if not isinstance(antithetic, bool):
            raise ValueError(f"{self.name}: antithetic is {antithetic!r}, expected True or False")
        self.sigma, self.samples, self.antithetic = float(sigma), samples, antithetic

    def start(self, layer: FeedbackLayer) -> None:
        """There is no feedback."""

    def refresh(self, layer: FeedbackLayer) -> None:
        """Nothing to bring up to date; but the noise is a function of the clock, which so has to tick."""

    def change(self, base: Tensor, loss: Callable[[int], Tensor]) -> Tensor:
        """ΔL, of the shape of the loss; ``loss(sign)`` is the loss under sign·ξ, ``base`` the one without noise."""
        plus, other = loss(1), loss(-1) if self.antithetic else base.detach()
        wide = torch.promote_types(plus.dtype, torch.float32)
        change = plus.to(wide) - other.to(wide)
        return change / 2 if self.antithetic else change

    def check_resolution(self, dtypes: Iterable[torch.dtype]) -> None:
        """Raise ``ValueError`` where σ would be lost in the rounding of what it is added to, or of the loss that it changes."""
        for dtype in dtypes:
            if self.sigma < torch.finfo(dtype).eps:
                raise ValueError(
                    f"{self.name}: sigma={self.sigma:g} is below the rounding of {dtype} ({torch.finfo(dtype).eps:.1e}): "
                    "use a larger sigma, or float32"
                )
