"""Optimizers: PyTorch's own for one run, and the same updates for the stacked parameters of many, each with its own settings.

A stacked parameter is (K, …); its learning rate, momentum, weight decay and largest norm of the gradient are a number a run.
The formulas are those of ``torch.optim`` (SGD with momentum and Nesterov's; Adam of Kingma & Ba 2015; RMSprop of Tieleman &
Hinton 2012), so that a run's numbers are what they are by itself, to rounding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from alignlab.rules.runs import beside
from alignlab.training.spec import RunSpec

AT_ONCE = 2**17  # numbers: half a megabyte

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


def learning_rates(specs: Sequence[RunSpec], dtype: torch.dtype) -> Tensor:
    """The learning rates of all steps, (steps, K); on the CPU. Runs of one rate and schedule are computed once."""
    alike: dict[object, list[int]] = defaultdict(list)
    for k, spec in enumerate(specs):
        alike[spec.lr, spec.lr_schedule, spec.warmup].append(k)
    steps = specs[0].steps
    rates = torch.empty(steps, len(specs), dtype=dtype)
    for places in alike.values():
        own = (learning_rate(specs[places[0]], step) for step in range(steps))
        rates[:, places] = torch.from_numpy(np.fromiter(own, float, steps)).to(dtype)[:, None]
    return rates


class StackedOptimizer(torch.optim.Optimizer):
    """The update of K runs at once. ``specs``: those of the runs, in the order of the parameters' first dimension.

    Large parameters are updated a few runs at a time: an update reads and writes its tensors several times over, and of all
    runs together they would have to come from memory each time.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], specs: Sequence[RunSpec]) -> None:
        parameters = list(parameters)
        rates, decay, momentum, nesterov = (
            parameters[0].new_tensor([float(getattr(spec, name)) for spec in specs], requires_grad=False)
            for name in ("lr", "weight_decay", "momentum", "nesterov")
        )
        super().__init__(parameters, {"lr": rates})
        self._set(decay, momentum, nesterov.bool())

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every run, between the hooks of an optimizer's step."""
        for hook in (*_global_optimizer_pre_hooks.values(), *self._optimizer_step_pre_hooks.values()):
            hook(self, (), {})
        self._update_all()
        for hook in (*self._optimizer_step_post_hooks.values(), *_global_optimizer_post_hooks.values()):
            hook(self, (), {})

    # torch's mark of a step that calls its hooks. Its wrapper round the others also enters each step into the profiler, which
    # takes a twentieth of a small network's step.
    step.hooked = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _update_all(self) -> None:
        by_dimensions: dict[int, Tensor] = {}
        for p, pieces in zip(self.param_groups[0]["params"], self.pieces, strict=True):
            if p.grad is None:
                continue
            if (rates := by_dimensions.get(p.dim())) is None:
                rates = by_dimensions[p.dim()] = beside(self.param_groups[0]["lr"], p)
            state = self.state[p]
            if len(pieces) == 1:
                self._update(p, p.grad, state.setdefault(0, {}), pieces[0], rates)
                continue
            for runs in pieces:
                self._update(p[runs], p.grad[runs], state.setdefault(runs.start, {}), runs, rates[runs])

    def narrow(self, rows: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        """Go on with these ``rows`` of the runs alone; ``parameters``: theirs, in the place of those of all."""
        group, before = self.param_groups[0], self.state
        olds, group["params"], group["lr"] = group["params"], list(parameters), group["lr"][rows]
        self._set(self.decay[rows], self.momentum[rows], self.nesterov[rows])
        self.state = defaultdict(dict)
        for old, new, pieces in zip(olds, group["params"], self.pieces, strict=True):
            if old in before:
                self.state[new] = _state_of(list(before[old].values()), rows, pieces)

    def _set(self, decay: Tensor, momentum: Tensor, nesterov: Tensor) -> None:
        self.decay, self.momentum, self.nesterov = decay, momentum, nesterov
        self.decays, self.pushes = bool(decay.any()), bool(momentum.any())
        self.pieces = [_pieces(p) for p in self.param_groups[0]["params"]]
        # as any optimizer notes it: rules may ask
        self.param_groups[0]["weight_decay"] = tuple(decay.tolist())

    def _update(self, p: Tensor, g: Tensor, state: dict[str, Any], runs: slice, rates: Tensor) -> None:
        if self.decays:
            g = torch.addcmul(g, p, beside(self.decay[runs], p))
        p.addcmul_(self.direction(state, g, runs), rates, value=-1)

    def direction(self, state: dict[str, Any], g: Tensor, runs: slice) -> Tensor:
        """What is taken from the weights of these ``runs``, before the learning rate."""
        raise NotImplementedError

    def pushed(self, state: dict[str, Any], g: Tensor, runs: slice) -> Tensor:
        """``g`` with momentum: SGD's, and RMSprop's on what it has divided."""
        if not self.pushes:
            return g
        momentum, before = beside(self.momentum[runs], g), state.get("momentum_buffer")
        buffer: Tensor = g.clone() if before is None else before.mul_(momentum).add_(g)
        state["momentum_buffer"] = buffer
        return torch.where(beside(self.nesterov[runs], g), torch.addcmul(g, buffer, momentum), buffer)


class StackedSGD(StackedOptimizer):
    direction = StackedOptimizer.pushed


class StackedAdam(StackedOptimizer):
    betas, eps = (0.9, 0.999), 1e-8

    def direction(self, state: dict[str, Any], g: Tensor, runs: slice) -> Tensor:
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(g), exp_avg_sq=torch.zeros_like(g))
        state["step"] += 1
        mean: Tensor = state["exp_avg"].lerp_(g, 1 - self.betas[0])
        square: Tensor = state["exp_avg_sq"].mul_(self.betas[1]).addcmul_(g, g, value=1 - self.betas[1])
        first, second = (1.0 - math.pow(beta, state["step"]) for beta in self.betas)
        return mean.div(first).div_((square.sqrt() / math.sqrt(second)).add_(self.eps))


class StackedRMSprop(StackedOptimizer):
    alpha, eps = 0.99, 1e-8

    def direction(self, state: dict[str, Any], g: Tensor, runs: slice) -> Tensor:
        square: Tensor = state["square_avg"] if state else state.setdefault("square_avg", torch.zeros_like(g))
        square.mul_(self.alpha).addcmul_(g, g, value=1 - self.alpha)
        return self.pushed(state, g / square.sqrt().add_(self.eps), runs)


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
        g.mul_(beside(factor, g))
    exceeds: Tensor = norm > largest
    return exceeds


def _pieces(p: Tensor) -> list[slice]:
    """The runs of a parameter that are updated at a time; each piece has a state of its own, under its first run."""
    k = len(p) if p.is_cuda or p.numel() <= AT_ONCE else max(1, AT_ONCE * len(p) // p.numel())
    return [slice(i, i + k) for i in range(0, len(p), k)]


def _state_of(
    before: Sequence[Mapping[str, Any]], rows: Tensor, pieces: Sequence[slice]
) -> dict[int, dict[str, Any]]:
    """The state of these ``rows``, in ``pieces``, out of what the pieces of all runs had."""
    kept = {
        name: torch.cat([state[name] for state in before])[rows] if isinstance(value, Tensor) else value
        for name, value in before[0].items()
    }
    return {
        runs.start: {name: v[runs] if isinstance(v, Tensor) else v for name, v in kept.items()}
        for runs in pieces
    }
