"""The loss of each measured step, with no line of the loop changed: read where ``backward()`` is called or from a criterion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from alignlab.probes.geometry import runs_of
from alignlab.probes.hooks import Hook, nothing
from alignlab.probes.observation import Observation
from alignlab.probes.probe import Probe
from alignlab.probes.roots import listen
from alignlab.rules.replay import replaying

_backward, _differentiable = torch._C._current_graph_task_id, torch.is_grad_enabled


class Loss(Probe):
    """``loss``: the training loss of the step; ``samples_seen``: samples in training forward passes so far, this step included.

    Without an argument the loss is the scalar on which ``.backward()`` is called (several micro-batches: their sum, as
    their gradients add; without the scale of a ``GradScaler``). With ``criterion``, an ``nn.Module``, it is
    that module's output, times its weight in what is differentiated (a third, where that is divided by 3): use it where
    ``backward`` is called on something else, a sum with regularisers, say, or ``torch.autograd.backward`` is. To count the
    samples it leaves one hook on the model between measured steps.
    """

    quantities = ("loss", "samples_seen")
    needs_truth = False

    def __init__(self, criterion: nn.Module | None = None) -> None:
        if criterion is not None and not isinstance(criterion, nn.Module):
            raise TypeError(
                f"Loss: criterion is {criterion!r}, expected an nn.Module, or nothing for any loss"
            )
        self.criterion = criterion
        self._values: list[tuple[int, Tensor]] = []  # by the backward pass that they began
        self._samples = _Samples(0)
        self._model: nn.Module | None = None
        self._runs: int | None = None  # of a model of several: a loss each
        self._counter: Any = None
        self._handles: list[Any] = []

    def attach(self, model: nn.Module) -> None:
        self._model, self._runs = model, runs_of(model)
        self._samples = _Samples(0 if self._runs is None else 1)
        self._counter = model.register_forward_pre_hook(self._samples, with_kwargs=True)

    def detach(self) -> None:
        self._rest()
        if self._counter is not None:
            self._counter.remove()
        self._model = None

    def prepare(self) -> None:
        self._rest()
        if self._runs is not None and self._model is not None:
            self._runs = runs_of(self._model)  # fewer, where some have ended
        if self.criterion is None:
            self._handles.append(listen(self._hear))
        else:
            hook = self.criterion.register_forward_hook(Hook(lambda module, args, value: self._hear(value)))
            self._handles.append(hook)

    def measure_step(self, observation: Observation) -> dict[str, Tensor | float]:
        found: dict[str, Tensor | float] = {}
        if (
            self._samples.seen
        ):  # none where the loop trains in the mode for evaluation, in which no passes are counted
            found["samples_seen"] = float(self._samples.seen)
        values = [value.double() for backward, value in self._values if backward in observation.passes]
        if values:
            scale = observation.scale
            found["loss"] = torch.stack(values).sum(0) / (
                1.0 if scale is None else scale.to(values[0].device)
            )
        self._rest()
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"samples_seen": self._samples.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._samples.seen = state["samples_seen"]

    def _rest(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._values = [], []

    def _hear(self, value: Any) -> None:
        if isinstance(value, Tensor) and value.numel() == (self._runs or 1) and value.requires_grad:
            kept, handles = value.detach().clone(), list[Any]()

            def note(gradient: Tensor) -> None:
                """The value takes part in the backward pass that runs; whether that pass counts is known at the step's end."""
                found = (_wide(kept) * _wide(gradient)).reshape(() if self._runs is None else (self._runs,))
                self._values.append((torch._C._current_graph_task_id(), found))
                if self.criterion is None:
                    handles[0].remove()  # each call of backward() is heard by itself

            handles.append(value.register_hook(note))  # type: ignore[no-untyped-call]
            self._handles += handles


class _Samples(Hook):
    """Counts the samples of a model's training passes along ``axis``. On unmeasured steps this is what the recorder costs: the
    step's products have driven everything else out of the caches, and each function called is microseconds."""

    def __init__(self, axis: int) -> None:
        super().__init__(nothing)
        self.axis, self.seen = axis, 0

    def __call__(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        again = _backward() != -1  # a checkpoint computes the model again
        if again or not model.training or not _differentiable() or replaying():
            return
        shape = args[0].shape if args and isinstance(args[0], Tensor) else None
        shape = shape or _batch(args, kwargs)
        if shape:
            self.seen += shape[self.axis]


def _batch(args: Any, kwargs: Any) -> torch.Size | None:
    """The shape of the first tensor of several samples in what a model is called with, however deep."""
    leaves = pytree.tree_leaves((args, kwargs))
    return next((x.shape for x in leaves if isinstance(x, Tensor) and x.dim()), None)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))  # a scaled half would overflow
