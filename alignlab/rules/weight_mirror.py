"""Weight mirrors: between training steps, noise through W teaches B what W is (Akrout et al. 2019).

No signal of the task is involved and nothing is transported: the layer's input is noise ξ, its response z = ξ Wᵀ, and the
correlation of the two is, on average, W.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignlab.checks import is_number, is_whole
from alignlab.rules.initialisation import Init
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.rule import Rule


class WeightMirror(Rule):
    """``B ← (1 − λ) B + η zᵀ ξ / M`` every ``period`` changes of the weights, with M samples of ξ ~ N(0, 1), z = ξ Wᵀ.

    The mean of zᵀ ξ / M is W, so that B settles around (η / λ) W. A noise of another size σ gives the same numbers with a rate
    η / σ²: the responses are linear. (The paper's pass the nonlinearity, in whose straight part its slope is another factor;
    here they are taken before it and without the bias. Its authors' code mirrors for an epoch before it trains; here the first
    phase follows the first step.) A kernel is read as a matrix with a neuron and what it sees in each row, in every kind of
    layer (:meth:`FeedbackLayer.neurons`); all see the same ξ.

    How near B comes: a B that has settled averages over ``M_eff = M (2 − λ) / λ`` samples, about 2 M / λ, and
    ``tan² angle(B, W) ≈ (fan_in − 1) / M_eff`` for weights that stand still. The default is 8° at a fan_in of 500, reached
    within 1 / λ = 100 phases by a factor e; weights that move leave B about that long behind.

    ``samples``: M. ``rate``: η. ``decay``: λ, by default η, so that B settles around W itself. ``growth_control``: after each
    phase B is scaled back to the norm that it was drawn with: ‖B‖_F² is the mean square of what B hands down for unit
    noise, so that this keeps its size, whatever η and λ are; the phase's direction stays.
    """

    name = "weight_mirror"
    rests = True

    def __init__(
        self,
        period: int = 1,
        samples: int = 128,
        rate: float = 0.01,
        decay: float | None = None,
        growth_control: bool = False,
        init: str | Init = "like_forward",
    ) -> None:
        super().__init__(init)
        for key, count in (("period", period), ("samples", samples)):
            if not is_whole(count):
                raise ValueError(f"weight_mirror: {key} is {count!r}, expected a whole number, at least 1")
        if not isinstance(growth_control, bool):
            raise ValueError(f"weight_mirror: growth_control is {growth_control!r}, expected True or False")
        decay = rate if decay is None else decay
        _check_fraction("rate", rate, above=True)
        _check_fraction("decay", decay, above=False)
        self.period, self.samples, self.rate, self.decay = period, samples, float(rate), float(decay)
        self.growth_control = growth_control

    def start(self, layer: FeedbackLayer) -> None:
        super().start(layer)
        if self.growth_control:
            assert layer.feedback is not None
            layer.feedback_magnitude = layer.norm(layer.feedback)

    def refresh(self, layer: FeedbackLayer) -> None:
        if layer.clock == 0 or layer.clock % self.period:
            return
        assert layer.feedback is not None
        B = layer.feedback * (1 - self.decay) + self.rate * self.mirrored(layer).to(layer.feedback)
        if layer.feedback_magnitude is not None:
            size = layer.norm(B)
            B *= torch.where(size > 0, layer.feedback_magnitude / size, 0)  # zeros have no direction
        layer.feedback = B

    def mirrored(self, layer: FeedbackLayer) -> Tensor:
        """``zᵀ ξ / M`` of this phase, in the weight's shape; float32 at least."""
        weight = layer.weight.detach()
        W = layer.neurons(weight).to(torch.promote_types(weight.dtype, torch.float32))
        xi = layer.noise(self.samples, W, layer.feedback_seed + layer.clock)
        mirrored = torch.empty(weight.shape, dtype=W.dtype, device=W.device)
        layer.neurons(mirrored).copy_((xi @ W.mT).mT @ xi / self.samples)
        return mirrored


def _check_fraction(key: str, value: float, above: bool) -> None:
    """A share of B that one phase replaces: from 0 (or ``above`` it) to 1."""
    if not is_number(value) or not (value > 0 if above else value >= 0) or value > 1:
        least = "more than 0" if above else "at least 0"
        raise ValueError(f"weight_mirror: {key} is {value!r}, expected a number, {least} and at most 1")
