"""The networks that specs name: a multilayer perceptron, LeNet and a small convolutional net, initialised from a seed of
their own, by the distributions that papers on feedback alignment began from."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from alignlab.rules import LocallyConnected2d
from alignlab.training.arguments import ALONE
from alignlab.training.errors import SpecError
from alignlab.training.spec import RunSpec
from alignlab.training.task import Task

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "linear": nn.Identity,
}


def build(spec: RunSpec, task: Task) -> nn.Module:
    """The spec's network for a task: weights from the spec's init stream, times ``weight_scale``; frozen parts frozen.

    Raises :class:`SpecError` where the network does not fit the task, or ``frozen`` leaves nothing or names nothing.
    """
    with ALONE, torch.random.fork_rng(devices=[]):
        model = _network(spec, task)
    # drawn anew: other threads may have drawn from the global generator meanwhile
    generator = torch.Generator().manual_seed(spec.stream("init"))
    _as_constructed(model, generator)
    if spec.weight_init != "pytorch":  # drawn after the others, as ever: one seed, one net
        _draw(model, WEIGHT_INITS[spec.weight_init], generator)
    return _frozen(_scaled(model, spec.weight_scale), spec)


def _network(spec: RunSpec, task: Task) -> nn.Module:
    if spec.model == "lenet":
        return lenet(task.n_in, task.n_out, spec.bias)
    if spec.model in ("convnet", "untied"):
        return convnet(task.n_in, task.n_out, spec.bias, untied=spec.model == "untied")
    return mlp(task.n_in, spec.hidden, task.n_out, ACTIVATIONS[spec.activation], spec.bias)


@torch.no_grad()
def _as_constructed(model: nn.Module, generator: torch.Generator) -> None:
    """Weights and biases as PyTorch's constructors draw them, to the bit: U(±1/√fan_in)."""
    for module in model.modules():
        if isinstance(module, LocallyConnected2d):
            module.reset_parameters(generator)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                module.bias.uniform_(-bound, bound, generator=generator)


def _gaussian(weight: Tensor, generator: torch.Generator) -> None:
    """N(0, 1), whatever the size."""
    weight.normal_(generator=generator)


def _lillicrap(weight: Tensor, generator: torch.Generator) -> None:
    """U(±0.01), whatever the size: Lillicrap et al. 2016, Methods, the linear problem."""
    weight.uniform_(-0.01, 0.01, generator=generator)


def _nokland(weight: Tensor, generator: torch.Generator) -> None:
    """Zeros: what Nøkland 2016 starts fa, dfa and ifa from in tanh nets. Backprop cannot leave this point."""
    weight.zero_()


Draw = Callable[[Tensor, torch.Generator], None]
WEIGHT_INITS: dict[str, Draw] = {
    "gaussian": _gaussian,
    "lillicrap": _lillicrap,
    "nokland": _nokland,
}
"""How initial weights are drawn; biases then start at 0. Beside these: ``pytorch``, U(±1/√fan_in) for weights and biases,
from which Nøkland 2016 starts backprop and ReLU nets."""


@torch.no_grad()
def _draw(model: nn.Module, init: Draw, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            init(parameter, generator)
        else:
            parameter.zero_()


@torch.no_grad()
def _scaled(model: nn.Module, scale: float) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            parameter.mul_(scale)
    return model


def _frozen(model: nn.Module, spec: RunSpec) -> nn.Module:
    names = [name for name, _ in model.named_parameters()]
    idle = [repr(p) for p in spec.frozen if not fnmatch.filter(names, p)]
    if idle:
        raise SpecError(f"frozen: {', '.join(idle)} names no parameter; there are {', '.join(names)}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not spec.freezes(name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SpecError(f"frozen is {list(spec.frozen)}: nothing is left to learn out of {', '.join(names)}")
    return model


def mlp(
    n_in: tuple[int, ...],
    hidden: tuple[int, ...],
    n_out: int,
    activation: type[nn.Module],
    bias: bool = True,
) -> nn.Sequential:
    """Flatten, then linear layers with ``activation`` between them."""
    widths = [math.prod(n_in), *hidden, n_out]
    layers: list[nn.Module] = [nn.Flatten()]
    for below, above in pairwise(widths):
        layers += [nn.Linear(below, above, bias), activation()]
    return nn.Sequential(*layers[:-1])


def lenet(n_in: tuple[int, ...], n_out: int, bias: bool = True) -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998) in its usual modern form: ReLU, max pooling, 6 and 16 channels, 120 and 84 units."""
    if len(n_in) != 3 or min(n_in[1:]) < 16:
        raise SpecError(f"lenet needs images of at least 16×16 pixels, the task's inputs are {n_in}")
    side = [((n // 2) - 4) // 2 for n in n_in[1:]]
    return nn.Sequential(
        nn.Conv2d(n_in[0], 6, 5, padding=2, bias=bias), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * side[0] * side[1], 120, bias), nn.ReLU(),
        nn.Linear(120, 84, bias), nn.ReLU(), nn.Linear(84, n_out, bias),
    )  # fmt: skip


def convnet(n_in: tuple[int, ...], n_out: int, bias: bool = True, untied: bool = False) -> nn.Sequential:
    """Two convolutions of 5×5 with stride 2 (16 and 32 channels) and two dense layers (128 units), with ReLU; no pooling.

    ``untied``: the same geometry with another kernel at each position, and so about thirty times the weights.
    """
    if len(n_in) != 3 or min(n_in[1:]) < 8:
        raise SpecError(
            f"{'untied' if untied else 'convnet'} needs images of at least 8×8 pixels, not inputs {n_in}"
        )
    sizes = [tuple(-(-n // by) for n in n_in[1:]) for by in (1, 2, 4)]  # each stride halves, rounding up

    def convolution(below: int, above: int, size: tuple[int, ...]) -> nn.Module:
        if untied:
            return LocallyConnected2d(below, above, (size[0], size[1]), 5, stride=2, padding=2, bias=bias)
        return nn.Conv2d(below, above, 5, stride=2, padding=2, bias=bias)

    return nn.Sequential(
        convolution(n_in[0], 16, sizes[0]), nn.ReLU(),
        convolution(16, 32, sizes[1]), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * math.prod(sizes[2]), 128, bias), nn.ReLU(), nn.Linear(128, n_out, bias),
    )  # fmt: skip
