"""Optimizers: PyTorch's own for one run, and the same updates for the stacked parameters of many, each with its own settings.

A stacked parameter is (K, …); its learning rate, momentum, weight decay and largest norm of the gradient are a number a run.
The formulas are those of ``torch.optim`` (SGD with momentum and Nesterov's; Adam of Kingma & Ba 2015; RMSprop of Tieleman &
Hinton 2012), so that a run's numbers are what they are by itself, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.training.spec import RunSpec

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
}
SCHEDULES: dict[
    str, Callable[[float], float]
] = {  # of the share of the steps that is over: a factor on the learning rate
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def make_optimizer(spec: RunSpec, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The spec's optimizer with its settings, for one run."""
    settings: dict[str, Any] = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    if spec.optimizer != "adam":
        settings["momentum"] = spec.momentum
    if spec.nesterov:
        settings["nesterov"] = True
    return OPTIMIZERS[spec.optimizer](parameters, **settings)


def learning_rate(spec: RunSpec, step: int) -> float:
    """η at a step: the spec's, times what its schedule says of the share of steps that is over (by the last step < 1).

    In the ``warmup`` first steps it rises in even steps to that.
    """
    factor = SCHEDULES[spec.lr_schedule](step / spec.steps)
    return spec.lr * factor * min(1.0, (step + 1) / (spec.warmup + 1))


class StackedOptimizer(torch.optim.Optimizer):
    """The update of K runs at once. ``specs``: those of the runs, in the order of the parameters' first dimension."""

    def __init__(self, parameters: Iterable[nn.Parameter], specs: Sequence[RunSpec]) -> None:
        parameters = list(parameters)
        like = parameters[0]
        self.decay, self.momentum, nesterov = (
            like.new_tensor([float(getattr(spec, name)) for spec in specs], requires_grad=False)
            for name in ("weight_decay", "momentum", "nesterov")
        )
        self.nesterov = nesterov.bool()
        self.decays, self.has_momentum = bool(self.decay.any()), bool(self.momentum.any())
        super().__init__(
            parameters, {"lr": like.new_tensor([spec.lr for spec in specs], requires_grad=False)}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every run."""
        rate = self.param_groups[0]["lr"]
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                g = torch.addcmul(p.grad, p, _beside(self.decay, p)) if self.decays else p.grad
                p.addcmul_(self.direction(p, g), _beside(rate, p), value=-1)

    def direction(self, p: Tensor, g: Tensor) -> Tensor:
        """What is taken from ``p``, before the learning rate."""
        raise NotImplementedError

    def pushed(self, p: Tensor, g: Tensor) -> Tensor:
        """``g`` with momentum: SGD's, and RMSprop's on what it has divided."""
        if not self.has_momentum:
            return g
        state, momentum = self.state[p], _beside(self.momentum, p)
        before = state.get("momentum_buffer")
        state["momentum_buffer"] = buffer = g.clone() if before is None else before.mul_(momentum).add_(g)
        ahead = torch.addcmul(g, buffer, momentum)
        return torch.where(_beside(self.nesterov, p), ahead, buffer) if bool(self.nesterov.any()) else buffer


class StackedSGD(StackedOptimizer):
    direction = StackedOptimizer.pushed


class StackedAdam(StackedOptimizer):
    betas, eps = (0.9, 0.999), 1e-8

    def direction(self, p: Tensor, g: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        mean, square = state["exp_avg"].lerp_(g, 1 - self.betas[0]), state["exp_avg_sq"]
        square.mul_(self.betas[1]).addcmul_(g, g, value=1 - self.betas[1])
        first, second = (1 - beta ** state["step"] for beta in self.betas)
        size: Tensor = (square.sqrt() / math.sqrt(second)).add_(self.eps)
        return mean / first / size


class StackedRMSprop(StackedOptimizer):
    alpha, eps = 0.99, 1e-8

    def direction(self, p: Tensor, g: Tensor) -> Tensor:
        state = self.state[p]
        square = state.setdefault("square_avg", torch.zeros_like(p))
        square.mul_(self.alpha).addcmul_(g, g, value=1 - self.alpha)
        return self.pushed(p, g / square.sqrt().add_(self.eps))


STACKED: dict[str, type[StackedOptimizer]] = {
    "sgd": StackedSGD,
    "adam": StackedAdam,
    "rmsprop": StackedRMSprop,
}


@torch.no_grad()
def clip_each(parameters: Sequence[nn.Parameter], largest: Tensor) -> Tensor:
    """Scale each run's gradients to the norm ``largest`` (K,) where all together exceed it; whether they did, (K,).

    As ``torch.nn.utils.clip_grad_norm_`` does for one run (Pascanu et al. 2013).
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    norm = torch.linalg.vector_norm(norms, dim=0)
    factor = torch.where(largest.isinf(), 1.0, (largest / (norm + 1e-6)).clamp(max=1.0))
    for g in gradients:
        g.mul_(_beside(factor, g))
    exceeds: Tensor = norm > largest
    return exceeds


def _beside(each: Tensor, p: Tensor) -> Tensor:
    """A number a run, to be broadcast with a stacked tensor."""
    return each.view(-1, *[1] * (p.dim() - 1))
