"""Feedback that takes the weight's own steps: Kolen & Pollack 1994, for deep networks Akrout et al. 2019."""

from __future__ import annotations

from torch import Tensor, nn

from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.learned import notes_of, share_gradient
from alignlab.rules.rule import Rule


class KolenPollack(Rule):
    """``delta_below = delta B``, and B gets the same gradient as W, deltaᵀ h; the optimizer's weight decay does the rest.

    Equal steps leave ``B − W`` as it is, and decay shrinks it: by ``1 − lr · decay`` a step of SGD or AdamW, whatever the
    gradients, clipping or accumulation, and so by a factor e in ``1 / (lr · decay)`` steps, under a momentum m in (1 − m) times
    as many. Adam and RMSprop divide the decay by the gradients' size too: B − W falls, but at no rate known beforehand. B is a
    parameter named ``feedback``, so **make the optimizer after convert, and give it a weight_decay**: a B that no optimizer has
    is an error at the second step, no decay a warning.

    In a layer whose input needs no gradient B plays no part and gets none; a B that was in use misses no step of W, though,
    while all layers below are frozen. A frozen W freezes its B. Layers that share W share B; what W learns in a module that
    stays as it is (an embedding tied to a readout) B misses, and so stays away from W. Clipping by the norm of
    ``model.parameters()`` counts B's gradients with W's, and scales both alike.
    """

    name = "kolen_pollack"
    learns_feedback = True

    def start(self, layer: FeedbackLayer) -> None:
        tied = (other.feedback for other in layer.credit.layers if other.weight is layer.weight)
        shared = next((feedback for feedback in tied if feedback is not None), None)
        drawn = layer.drawn(self.init, layer.feedback_seed) if shared is None else None
        layer.feedback = shared if drawn is None else nn.Parameter(drawn)

    def refresh(self, layer: FeedbackLayer) -> None:
        """B learns by the optimizer's steps; here they are watched."""
        assert layer.feedback is not None
        others = (notes_of(o.feedback) for o in layer.credit.layers if o.feedback is not None)
        notes_of(layer.feedback).watch(layer.feedback, layer.weight, others)

    def taught_weight(self, layer: FeedbackLayer, x: Tensor) -> Tensor:
        assert layer.feedback is not None
        if x.requires_grad and not layer._used:
            layer._used = (
                True  # from here on B misses no step of W, even where nothing below learns for a while
            )
        return share_gradient(layer.weight, layer.feedback, layer._used)
