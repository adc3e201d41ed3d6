"""``nn.Linear`` with feedback (Lillicrap et al. 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.rules.credit import Chain
from alignlab.rules.functions import LinearFunction
from alignlab.rules.layers import FeedbackLayer


class FeedbackLinear(FeedbackLayer, nn.Linear):
    """``nn.Linear`` whose backward pass uses feedback weights."""

    features_last = True
    hands_signals = True

    def transform(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor | None, chain: Chain
    ) -> Tensor:
        z: Tensor = LinearFunction.apply(x, weight, bias, feedback, self.credit, chain)
        return z

    def propagate(self, signal: Tensor) -> Tensor:
        return F.linear(signal, self.weight.to(signal.dtype))

    def takes_one_sample(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 1
