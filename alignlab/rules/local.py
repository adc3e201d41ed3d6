"""Untied convolution: a locally connected layer, whose every output position has a kernel of its own, and its feedback.

Weight sharing is what a brain cannot do, so experiments on biologically plausible learning use this layer beside the
convolution (Bartunov et al. 2018). Shapes: x (N, C_in, H, W); weight and feedback (H_out, W_out, C_out, C_in, k_h, k_w);
bias and output (C_out, H_out, W_out) a sample. Every product runs over all positions p at once: ``z_p = W_p x_p + b_p``
forward; ``delta_p B_p``, folded back onto the input, backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from alignlab.rules.credit import Chain
from alignlab.rules.functions import GeometryFunction
from alignlab.rules.initialisation import Init, draw, draw_from
from alignlab.rules.layers import FeedbackLayer

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Patches:
    """Where the patches lie that the positions see: ``(H_out, W_out)``, and how each begins and reaches.

    The samples of a batch lie side by side here, last: patches are then gathered, and added up again, in long runs.
    """

    output: tuple[int, int]
    kernel_size: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    stride: tuple[int, int]

    def unfold(self, x: Tensor) -> Tensor:
        """(N, C, H, W) as patches (positions, C·k_h·k_w, N)."""
        vertical, horizontal = self.padding
        padded = F.pad(x.permute(1, 2, 3, 0).contiguous(), (0, 0, horizontal, horizontal, vertical, vertical))
        (k_h, k_w), (d_h, d_w), (s_h, s_w) = self.kernel_size, self.dilation, self.stride
        windows = padded.unfold(1, d_h * (k_h - 1) + 1, s_h).unfold(2, d_w * (k_w - 1) + 1, s_w)
        seen = windows[..., ::d_h, ::d_w].permute(1, 2, 0, 4, 5, 3)  # H_out, W_out, C, k_h, k_w, N
        return seen.reshape(math.prod(self.output), x.shape[1] * k_h * k_w, x.shape[0])

    def fold(self, patches: Tensor, size: tuple[int, int]) -> Tensor:
        """The transpose of :meth:`unfold`: patches are added up where they overlap, on (N, C, H, W) with H, W = ``size``."""
        (k_h, k_w), (d_h, d_w) = self.kernel_size, self.dilation
        parts = patches.reshape(*self.output, patches.shape[1] // (k_h * k_w), k_h, k_w, patches.shape[2])
        (height, width), (vertical, horizontal) = size, self.padding
        total = patches.new_zeros(
            height + 2 * vertical, width + 2 * horizontal, parts.shape[2], parts.shape[5]
        )
        (h_out, w_out), (s_h, s_w) = self.output, self.stride
        for i in range(k_h):
            for j in range(k_w):
                rows = total[i * d_h :: s_h][:h_out]
                rows[:, j * d_w :: s_w][:, :w_out] += parts[:, :, :, i, j]
        inner = total[vertical : vertical + height, horizontal : horizontal + width]
        return inner.permute(3, 2, 0, 1).contiguous()

    def by_position(self, delta: Tensor) -> Tensor:
        """(N, C_out, H_out, W_out) as (positions, C_out, N)."""
        return delta.flatten(2).permute(2, 1, 0).contiguous()

    def matrices(self, weight: Tensor) -> Tensor:
        """A weight as one matrix a position, (positions, C_out, C_in·k_h·k_w)."""
        return weight.flatten(3).flatten(0, 1)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output, (N, C_out, H_out, W_out)."""
        z = torch.bmm(self.matrices(weight), self.unfold(x))
        if bias is not None:
            z = z + bias.flatten(1).T.unsqueeze(2).to(z.dtype)  # as baddbmm would under autocast
        return z.permute(2, 1, 0).reshape(x.shape[0], weight.shape[2], *self.output).contiguous()

    def input_gradient(self, delta: Tensor, x: Tensor, carrier: Tensor) -> Tensor:
        """``delta`` (N, C_out, H_out, W_out) carried to an input of the size of ``x`` by W or B."""
        size: tuple[int, int] = x.shape[2:]  # type: ignore[assignment]
        return self.fold(torch.bmm(self.matrices(carrier).mT, self.by_position(delta)), size)

    def parameter_gradients(
        self, delta: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """``delta_p x_pᵀ`` of every position, in the weight's shape, and the untied bias's gradient."""
        of_weight = of_bias = None
        if wanted[0]:
            of_weight = torch.bmm(self.by_position(delta), self.unfold(x).mT).reshape(weight.shape)
        if wanted[1]:
            of_bias = delta.sum(0)
        return of_weight, of_bias


def _check(least: int, **sizes: Any) -> None:
    for name, size in sizes.items():
        if not all(hasattr(one, "__index__") and one >= least for one in _pair(size)):
            raise ValueError(
                f"LocallyConnected2d: {name} is {size!r}, expected whole numbers, at least {least}"
            )


class LocallyConnected2d(nn.Module):
    """A convolution whose kernel is another one at each of the output's positions.

    Arguments as for ``nn.Conv2d``, without groups, with a padding of so many zeros, and ``input_size`` (H, W), which inputs
    must have. Weights and biases start from U(±1/√fan_in) with fan_in = C_in·k_h·k_w, as ``nn.Conv2d``'s do. Input
    (N, C_in, H, W) or (C_in, H, W).

    Raises ``ValueError`` for sizes that are none, or leave no output.

    >>> LocallyConnected2d(3, 8, (6, 5), kernel_size=3, padding=1)(torch.ones(2, 3, 6, 5)).shape
    torch.Size([2, 8, 6, 5])
    """

    __constants__ = (
        "bias",
        "dilation",
        "in_channels",
        "input_size",
        "kernel_size",
        "out_channels",
        "padding",
        "stride",
    )
    weight: Tensor
    bias: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Size,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(1, in_channels=in_channels, out_channels=out_channels, input_size=input_size)
        _check(1, kernel_size=kernel_size, stride=stride, dilation=dilation)
        _check(0, padding=padding)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.input_size, self.kernel_size = _pair(input_size), _pair(kernel_size)
        self.stride, self.padding, self.dilation = _pair(stride), _pair(padding), _pair(dilation)
        height, width = (self._output_length(axis) for axis in (0, 1))
        shape = (height, width, out_channels, in_channels, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        made = torch.empty((out_channels, height, width), device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if made is None else nn.Parameter(made))
        self.reset_parameters()

    def _output_length(self, axis: int) -> int:
        span = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        length = (self.input_size[axis] + 2 * self.padding[axis] - span) // self.stride[axis] + 1
        if length < 1:
            raise ValueError(
                f"LocallyConnected2d: input_size {self.input_size} with padding {self.padding} is smaller than the kernel "
                f"{self.kernel_size} with dilation {self.dilation}: no output is left"
            )
        return int(length)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights and biases anew, from PyTorch's global generator where none is given."""
        bound = 1 / math.sqrt(math.prod(self.weight.shape[3:]))
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    @property
    def patches(self) -> Patches:
        """The geometry of the layer."""
        output = (self.weight.shape[0], self.weight.shape[1])
        return Patches(output, self.kernel_size, self.dilation, self.padding, self.stride)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) or (C_in, H, W) → (N, C_out, H_out, W_out) or (C_out, H_out, W_out)."""
        z = self.patches.forward(self.batched(input), self.weight, self.bias)
        return z.squeeze(0) if input.dim() == 3 else z

    def batched(self, x: Tensor) -> Tensor:
        """``x`` with a batch dimension; ``ValueError`` where its size is not the layer's."""
        if x.dim() not in (3, 4) or x.shape[-3:] != (self.in_channels, *self.input_size):
            raise ValueError(
                f"LocallyConnected2d: the input is {tuple(x.shape)}, expected ([N,] {self.in_channels}, "
                f"{self.input_size[0]}, {self.input_size[1]}): each position has weights of its own"
            )
        return x.unsqueeze(0) if x.dim() == 3 else x

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}"
        )


class FeedbackLocallyConnected2d(FeedbackLayer, LocallyConnected2d):
    """:class:`LocallyConnected2d` whose backward pass uses feedback weights."""

    features_last = False

    def transform(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor | None, chain: Chain
    ) -> Tensor:
        single = x.dim() == 3
        z: Tensor = GeometryFunction.apply(
            self.batched(x), weight, bias, feedback, self.credit, chain, self.patches
        )
        return z.squeeze(0) if single else z

    def propagate(self, signal: Tensor) -> Tensor:
        z = self.patches.forward(self.batched(signal), self.weight.to(signal.dtype), None)
        return z.squeeze(0) if signal.dim() == 3 else z

    def takes_one_sample(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 3

    def neurons(self, weight: Tensor) -> Tensor:
        """The matrices of the positions, (positions, C_out, C_in·k_h·k_w)."""
        return self.patches.matrices(weight)

    def drawn(self, init: str | Init, seed: int) -> Tensor:
        """A B of its own for each position, (C_out, C_in, k_h, k_w), drawn as a convolution's is."""

        def each(like: Tensor, generator: torch.Generator) -> Tensor:
            kernels = like.flatten(0, 1)
            return torch.stack([draw_from(init, kernel, generator) for kernel in kernels]).reshape(like.shape)

        return draw(each, self.weight, seed)

    def drawn_magnitude(self, init: str | Init, seed: int) -> Tensor:
        return self.drawn(init, seed).abs_()
