"""Indirect feedback: the output's error goes to the first layer, and from there forward (Nøkland 2016)."""

from __future__ import annotations

import math

from torch import Tensor

from alignlab.rules.credit import Call
from alignlab.rules.direct import DirectFeedbackAlignment


class IndirectFeedbackAlignment(DirectFeedbackAlignment):
    """The error goes to the first layer through B, and from there *forward* (Nøkland 2016):
    ``delta_l = (W_l delta_{l-1}) ∘ f'(z_l)``.

    The formula needs layers that meet in functions of single units: ``delta_{l-1}``, at the outputs of a layer, is read as a
    signal at the inputs of the next, one unit for one. Reshapes keep that reading. Pooling does not: it has fewer outputs
    than inputs, and to carry delta through its derivative would multiply by f' a second time, since delta holds f' already.
    No published definition says otherwise, so that pooling is an error; a convolution with a stride takes its place.
    """

    name = "ifa"
    reads_deltas = True

    def needs_feedback(self, call: Call) -> bool:
        return super().needs_feedback(call) and call.source is None

    def deliver(self, call: Call, error: Tensor) -> Tensor:
        if call.source is None:
            return super().deliver(call, error)
        assert call.target is not None
        if call.source.delta is None:
            raise RuntimeError(
                "ifa: a layer was reached before the one that feeds it; the model cannot be ordered"
            )
        delta = _same_size(call.source.delta, call.input_shape, "the input of a layer")
        return _same_size(call.layer.propagate(delta), call.target.input_shape, "the activation of a layer")


def _same_size(signal: Tensor, shape: tuple[int, ...], where: str) -> Tensor:
    if signal.numel() != math.prod(shape):
        raise RuntimeError(
            f"ifa: a signal of shape {tuple(signal.shape)} meets {where} of shape {shape}; indirect feedback passes "
            "through elementwise functions and reshapes only (no pooling between layers): use dfa there, or a stride"
        )
    return signal.reshape(shape)
