"""Small tasks, and a probe that shows what a run left behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from alignlab.probes import Probe
from alignlab.training import RunSpec, Split, Task, train


class Model(Probe):
    """Measures nothing and keeps the model."""

    model: nn.Module

    def attach(self, model: nn.Module) -> None:
        self.model = model


def images(n: int = 24, side: int = 16) -> Task:
    """Random images of three classes."""
    generator = torch.Generator().manual_seed(0)
    splits = [
        Split(
            torch.randn(size, 1, side, side, generator=generator),
            torch.randint(3, (size,), generator=generator),
        )
        for size in (n, 7, 5)
    ]
    return Task(
        "images", splits[0], splits[1], splits[2], cross_entropy, (1, side, side), 3, has_accuracy=True
    )


TINY = images()


def trained(spec: RunSpec, task: Task | None = None, **kwargs: Any) -> nn.Module:
    """The model after the run, its last gradients in place."""
    keeper = Model()
    train(spec, probes=[keeper], task=task, **kwargs)
    return keeper.model


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name."""
    return {name: p.detach() for name, p in model.named_parameters()}
