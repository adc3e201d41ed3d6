"""What each kind of layer does to its input, read as probes need it: samples, gradients, signals carried down, matrices.

Plain layers and those with feedback are read alike, by the torch class that both have. Linear layers take all leading
dimensions as samples; of the others each input is one, flattened. Layers of several runs side by side keep these apart: what
they give leads with the runs, as their tensors do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from alignlab.rules.convolution import Conv, Geometry, geometry, pad
from alignlab.rules.local import LocallyConnected2d
from alignlab.rules.stacked import Stacked

KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose2d: "conv_transpose2d",
    LocallyConnected2d: "locally_connected2d",
}
MEASURABLE = tuple(KINDS)


def kind(layer: nn.Module) -> str:
    """The name of the layer's kind in a dataset."""
    return next(name for made, name in KINDS.items() if isinstance(layer, made))


def is_plain(layer: nn.Module) -> bool:
    """Whether the layer is of one of the classes themselves, so that what it does is known."""
    return type(layer) in KINDS


def runs(layer: nn.Module) -> int | None:
    """How many runs the layer is of; None for a layer as anybody has it."""
    return layer.runs if isinstance(layer, Stacked) else None


def runs_of(model: nn.Module) -> int | None:
    """How many runs the model is of."""
    return next((m.runs for m in model.modules() if isinstance(m, Stacked)), None)


def leads(layer: nn.Module) -> int:
    """How many dimensions the layer's tensors have before those of one run."""
    return int(runs(layer) is not None)


Reading = TypeVar("Reading", bound=Callable[..., Tensor])


def by_run(read: Reading) -> Reading:
    """What is read of a layer's tensors; of a convolution of several runs run by run, each as by itself."""

    @functools.wraps(read)
    def of_all(layer: nn.Module, *tensors: Tensor) -> Tensor:
        if not isinstance(layer, Stacked) or isinstance(layer, nn.Linear):
            return read(layer, *tensors)
        return torch.stack([read(layer.one, *own) for own in zip(*tensors, strict=True)])

    return of_all  # type: ignore[return-value]


def flat(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight, or a gradient in its shape, as one matrix a run, (…, out, all else): for norms and products."""
    return weight if isinstance(layer, nn.Linear) else weight.flatten(1 + leads(layer))


def rows(layer: nn.Module, x: Tensor) -> Tensor:
    """A signal at a linear layer, all its dimensions of samples as one."""
    k = runs(layer)
    lead = () if k is None else (k,)
    return x if x.dim() == len(lead) + 2 else x.reshape(*lead, -1, x.shape[-1])


def samples(layer: nn.Module, x: Tensor) -> Tensor:
    """A signal at the layer's output or input, one row a sample."""
    if isinstance(layer, nn.Linear):
        return rows(layer, x)
    return x.flatten(2) if leads(layer) else _batched(layer, x).flatten(1)


@by_run
def summed(layer: nn.Module, delta: Tensor) -> Tensor:
    """An error at the layer's output summed over everything that shares a bias: the bias's gradient."""
    if isinstance(layer, nn.Linear):
        return rows(layer, delta).sum(-2)
    delta = _batched(layer, delta)
    return delta.sum(0) if isinstance(layer, LocallyConnected2d) else delta.flatten(2).sum((0, 2))


@by_run
def gradient(layer: nn.Module, h: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
    """G = deltaᵀ h in the weight's shape."""
    if isinstance(layer, nn.Linear):
        return rows(layer, delta).mT @ rows(layer, h)
    h, delta = _batched(layer, h), _batched(layer, delta)
    if isinstance(layer, LocallyConnected2d):
        found, _ = layer.patches.parameter_gradients(delta, h, weight, (True, False))
    else:
        conv = _conv(layer)
        plan = _geometry(conv, h, delta)
        found, _ = plan.parameter_gradients(delta, pad(conv, h), weight, (True, False))
    assert found is not None
    return found


@by_run
def carried(layer: nn.Module, h: Tensor, delta: Tensor, carrier: Tensor) -> Tensor:
    """``delta`` at the layer's input when ``carrier`` (in W's shape) takes it down, one row a sample."""
    if isinstance(layer, nn.Linear):
        return rows(layer, delta) @ carrier
    h, delta = _batched(layer, h).detach(), _batched(layer, delta)
    if isinstance(layer, LocallyConnected2d):
        return layer.patches.input_gradient(delta, h, carrier).flatten(1)
    conv = _conv(layer)
    with torch.enable_grad():
        h = h.requires_grad_()
        padded = pad(conv, h)
    signal = _geometry(conv, h, delta).input_gradient(delta, padded.detach(), carrier)
    if padded is not h:  # what falls on the padding goes back to where it came from
        (signal,) = torch.autograd.grad(padded, h, signal)
    return signal.flatten(1)


@by_run
def blocks(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight, or feedback in its shape, as the matrices (blocks, out, in) of the maps that it is made of.

    A linear layer is one, (out, in). A convolution has one a group, (C_out/g, C_in/g·k·k): from a patch of the input to
    one position of the output. A transposed convolution goes the other way, from one position of the input to a patch of
    the output: (C_out/g·k·k, C_in/g). An untied convolution has one a position, (C_out, C_in·k·k).
    """
    if isinstance(layer, nn.Linear):
        return weight.unsqueeze(-3)
    if isinstance(layer, LocallyConnected2d):
        return layer.patches.matrices(weight)
    groups = weight.flatten(1).unflatten(0, (_conv(layer).groups, -1))  # type: ignore[no-untyped-call]
    return groups.mT if isinstance(layer, nn.ConvTranspose2d) else groups  # type: ignore[no-any-return]


@by_run
def as_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """The :func:`blocks` in one matrix: along the diagonal; an untied convolution's, too many for that, one below another."""
    if isinstance(layer, nn.Linear):
        return weight
    found = blocks(layer, weight)
    if len(found) == 1 or isinstance(layer, LocallyConnected2d):
        return found.flatten(0, 1)
    matrix: Tensor = torch.block_diag(*found)  # type: ignore[no-untyped-call]
    return matrix


def fans(layer: nn.Module, weight: Tensor) -> tuple[int, int]:
    """``(fan_in, fan_out)``: the columns of a block, and the rows of all groups' blocks."""
    found = blocks(layer, weight)
    groups = 1 if isinstance(layer, LocallyConnected2d) else found.shape[-3]
    return found.shape[-1], found.shape[-2] * groups


def _conv(layer: nn.Module) -> Conv:
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d)
    return layer


def _batched(layer: nn.Module, x: Tensor) -> Tensor:
    spatial = 2 if isinstance(layer, LocallyConnected2d) else len(_conv(layer).kernel_size)
    return x.unsqueeze(0) if x.dim() == spatial + 1 else x


def _geometry(conv: Conv, h: Tensor, delta: Tensor) -> Geometry:
    """The convolution of this very use: ``output_size`` may have asked a transposed one for other sizes than usual."""
    stride, padding, dilation, transposed, output_padding, groups = geometry(conv)
    if transposed:
        sizes = zip(h.shape[2:], delta.shape[2:], conv.kernel_size, stride, padding, dilation, strict=True)
        output_padding = tuple(
            below - ((above - 1) * s - 2 * p + d * (k - 1) + 1) for above, below, k, s, p, d in sizes
        )
    return Geometry(stride, padding, dilation, transposed, output_padding, groups)
