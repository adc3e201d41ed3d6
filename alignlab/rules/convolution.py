"""Convolutions with feedback: the transposed convolution of the error with B (Moskovitz et al. 2018).

A convolution in any number of dimensions is one and the same here: padding that it cannot do itself, then the operation
that :func:`geometry` describes. The transposed convolution is the other way round: its errors go down by the *ordinary*
convolution with B, which has the shape of its W, (C_in, C_out / groups, kernel…).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.rules.credit import Chain
from alignlab.rules.functions import GeometryFunction
from alignlab.rules.initialisation import Init, draw, draw_magnitude
from alignlab.rules.layers import FeedbackLayer

Conv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d


class Geometry(NamedTuple):
    """A convolution in the order of ``torch.convolution``."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of ``x``."""
        return torch.convolution(x, weight, bias, *self)

    def input_gradient(self, delta: Tensor, x: Tensor, carrier: Tensor) -> Tensor:
        """``delta`` carried to the convolution's input by ``carrier`` (W or B)."""
        gradient: Tensor = self._backward(delta, x, carrier, (True, False, False))[0]
        return gradient

    def parameter_gradients(
        self, delta: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """``deltaᵀ h`` in the weight's own shape, h being the unfolded input, and the bias's gradient."""
        _, of_weight, of_bias = self._backward(delta, x, weight, (False, *wanted))
        return of_weight, of_bias

    def _backward(self, delta: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, ...]) -> Any:
        return torch.ops.aten.convolution_backward(delta, x, weight, [delta.shape[1]], *self, mask)


def geometry(conv: Conv) -> Geometry:
    """The convolution that runs on the output of :func:`pad`."""
    inside = (0,) * len(conv.kernel_size) if pads_outside(conv) else conv.padding
    padding: tuple[int, ...] = tuple(inside)  # type: ignore[arg-type]
    stride, dilation = tuple(conv.stride), tuple(conv.dilation)
    return Geometry(stride, padding, dilation, conv.transposed, tuple(conv.output_padding), conv.groups)


def pad(conv: Conv, x: Tensor) -> Tensor:
    """Padding that the convolution itself cannot do: by reflection, replication, wrapping, or unequal sides."""
    if not pads_outside(conv):
        return x
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    return padded.to(x.dtype)  # autocast on a CPU reflects and replicates in float32


def pads_outside(conv: Conv) -> bool:
    """Whether :func:`pad` has anything to do."""
    return conv.padding_mode != "zeros" or isinstance(conv.padding, str)


class _FeedbackConv(FeedbackLayer):
    """What the convolutions share."""

    features_last = False

    def transform(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor | None, chain: Chain
    ) -> Tensor:
        conv: Conv = self  # type: ignore[assignment]
        single = self.takes_one_sample(tuple(x.shape))
        x = pad(conv, x.unsqueeze(0) if single else x)
        z: Tensor = GeometryFunction.apply(x, weight, bias, feedback, self.credit, chain, geometry(conv))
        return z.squeeze(0) if single else z

    def propagate(self, signal: Tensor) -> Tensor:
        conv: Conv = self  # type: ignore[assignment]
        return torch.convolution(pad(conv, signal), self.weight.to(signal.dtype), None, *geometry(conv))

    def takes_one_sample(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == self.weight.dim() - 1


class FeedbackConv1d(_FeedbackConv, nn.Conv1d):
    """``nn.Conv1d`` (any groups, stride, dilation and padding mode) whose backward pass uses feedback weights."""


class FeedbackConv2d(_FeedbackConv, nn.Conv2d):
    """``nn.Conv2d`` (any groups, stride, dilation and padding mode) whose backward pass uses feedback weights."""


class FeedbackConv3d(_FeedbackConv, nn.Conv3d):
    """``nn.Conv3d`` (any groups, stride, dilation and padding mode) whose backward pass uses feedback weights."""


class FeedbackConvTranspose2d(_FeedbackConv, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` (any stride, padding, groups, dilation) whose backward pass uses feedback weights."""

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """As the plain layer's; ``output_size`` chooses among the sizes that the stride leaves open."""
        if output_size is None:
            return super().forward(input)
        usual = self.output_padding
        stride, padding, dilation = (list(x) for x in geometry(self)[:3])
        kernel = list(self.kernel_size)
        wanted = self._output_padding(input, list(output_size), stride, padding, kernel, 2, dilation)
        self.output_padding = (wanted[0], wanted[1])  # it is read as this pass's geometry
        try:
            return super().forward(input)
        finally:
            self.output_padding = usual

    def neurons(self, weight: Tensor) -> Tensor:
        """One input position's channels to a patch of the output, (groups, C_out/g·k·k, C_in/g)."""
        return weight.flatten(1).unflatten(0, (self.groups, -1)).mT  # type: ignore[no-any-return, no-untyped-call]

    def drawn(self, init: str | Init, seed: int) -> Tensor:
        """Errors enter W by its second dimension here, so B is drawn with the two exchanged."""
        return self._exchanged(draw, init, seed)

    def drawn_magnitude(self, init: str | Init, seed: int) -> Tensor:
        return self._exchanged(draw_magnitude, init, seed)

    def _exchanged(self, made: Callable[..., Tensor], init: str | Init, seed: int) -> Tensor:
        if init == "like_forward":  # PyTorch draws W as it lies
            return made(init, self.weight, seed)
        return made(init, self.weight.transpose(0, 1), seed).transpose(0, 1).contiguous()
