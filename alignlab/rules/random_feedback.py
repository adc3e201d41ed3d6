"""Fixed and ever-changing random feedback: feedback alignment (Lillicrap et al. 2016) and its re-drawn control."""

from __future__ import annotations

from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.rule import Rule


class FeedbackAlignment(Rule):
    """``delta_below = delta B`` with B drawn once and never changed (Lillicrap et al. 2016; theirs is ``init="lillicrap"``)."""

    name = "fa"


class Rerandomised(Rule):
    """A new B for each backward pass: there is nothing that W could align with. A control, not a proposal.

    It is drawn with the forward pass, for each use of the layer: one that runs several times in a pass, a cell unrolled over
    time among them, sends each use's error down by another B (in an activation checkpoint by the last one).
    Draw number ``t`` is a function of the layer's seed and ``t`` alone, so a resumed run sees the same sequence. Tied layers
    see the same B at the same pass of each; where one is used more often than the other, their draws part.
    """

    name = "rerandomised"
    every_forward = True
    rests = True

    def refresh(self, layer: FeedbackLayer) -> None:
        layer.feedback = layer.drawn(self.init, layer.feedback_seed + layer.clock)
