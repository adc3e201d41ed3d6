"""The networks that specs name: a multilayer perceptron and LeNet, initialised from a seed of their own."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

from alignlab.training.spec import RunSpec, SpecError
from alignlab.training.tasks import Task

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "linear": nn.Identity,
}


def build(spec: RunSpec, task: Task) -> nn.Module:
    """The spec's network for a task: PyTorch's default weights from the spec's init stream, times ``weight_scale``."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(
            spec.stream("init")
        )  # torch.manual_seed would reseed every GPU as well
        if spec.model == "lenet":
            model = lenet(task.n_in, task.n_out)
        else:
            model = mlp(task.n_in, spec.hidden, task.n_out, ACTIVATIONS[spec.activation])
    return _scaled(model, spec.weight_scale)


@torch.no_grad()
def _scaled(model: nn.Module, scale: float) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            parameter.mul_(scale)
    return model


def mlp(
    n_in: tuple[int, ...], hidden: tuple[int, ...], n_out: int, activation: type[nn.Module]
) -> nn.Sequential:
    """Flatten, then linear layers with ``activation`` between them."""
    widths = [math.prod(n_in), *hidden, n_out]
    layers: list[nn.Module] = [nn.Flatten()]
    for below, above in pairwise(widths):
        layers += [nn.Linear(below, above), activation()]
    return nn.Sequential(*layers[:-1])


def lenet(n_in: tuple[int, ...], n_out: int) -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998) in its usual modern form: ReLU, max pooling, 6 and 16 channels, 120 and 84 units."""
    if len(n_in) != 3 or min(n_in[1:]) < 16:
        raise SpecError(f"lenet needs images of at least 16×16 pixels, the task's inputs are {n_in}")
    side = [((n // 2) - 4) // 2 for n in n_in[1:]]
    return nn.Sequential(
        nn.Conv2d(n_in[0], 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * side[0] * side[1], 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, n_out),
    )  # fmt: skip
