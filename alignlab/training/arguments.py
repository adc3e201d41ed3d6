"""What :func:`~alignlab.training.train` and :func:`~alignlab.training.population.train_population` are called with, and where:
one line for whoever hands over something else, before anything is built."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from alignlab.measures.precision import full_precision
from alignlab.training import tasks
from alignlab.training.errors import SpecError
from alignlab.training.spec import RunSpec
from alignlab.training.task import Task

# held while what is the process's, torch's random state and its number of threads among it, is a run's
ALONE = threading.RLock()


def _freed() -> None:
    """The thread that trained is not in a forked process, and would hold the lock there for ever."""
    if not ALONE._is_owned():  # type: ignore[attr-defined]
        ALONE._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_freed)


def spec_of(given: Any) -> RunSpec:
    """The spec that was given. Raises :class:`SpecError` for anything else."""
    if isinstance(given, RunSpec):
        return given
    way_out = "RunSpec(**fields)" if isinstance(given, dict) else "RunSpec(task=…)"
    raise SpecError(f"expected a RunSpec, not {type(given).__name__} ({given!r:.60}): make one by {way_out}")


def specs_of(given: Any) -> list[RunSpec]:
    """The specs that were given, one at least. Raises :class:`SpecError` for anything else."""
    if isinstance(given, RunSpec):  # which pydantic makes iterable
        raise SpecError("expected several specs, not one: give a list, [spec], or train it by train(spec)")
    if isinstance(given, dict | str) or not isinstance(given, Iterable):
        raise SpecError(f"expected a list of RunSpecs, not {type(given).__name__} ({given!r:.60})")
    specs = [spec_of(spec) for spec in given]
    if not specs:
        raise SpecError("expected a list of RunSpecs, not an empty one: there is nothing to train")
    return specs


def task_of(spec: RunSpec, given: Any) -> Task:
    """The task that was given, or else the one that the spec names. Raises :class:`SpecError` for anything but a task."""
    if given is None:
        return tasks.load(spec.task)
    if not isinstance(given, Task):
        raise SpecError(
            f"task is {given!r:.60}, expected a Task of your own: one of alignlab's is named by the spec, RunSpec(task=…)"
        )
    return given


@contextmanager
def learning(task: Task) -> Iterator[None]:
    """Within the block a run's numbers are its spec's, whatever the caller has set: gradients are computed, numbers are of the
    data's type, products of full precision, tensors on the CPU unless moved, and no other thread trains."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("nothing can be trained within torch.inference_mode(): call it outside")
    with (
        ALONE,
        torch.enable_grad(),
        full_precision(),
        _default_dtype(task),
        ExitStack() as settings,
    ):
        for device in ("cpu", "cuda"):
            settings.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            settings.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _default_dtype(task: Task) -> Iterator[None]:
    before, own = torch.get_default_dtype(), task.train.inputs.dtype
    torch.set_default_dtype(own if own.is_floating_point else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
