"""What :func:`~alignlab.training.train` and :func:`~alignlab.training.population.train_population` are called with, and where:
one line for whoever hands over something else, before anything is built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from alignlab.training import tasks
from alignlab.training.spec import RunSpec, SpecError
from alignlab.training.tasks import Task


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
def learning() -> Iterator[None]:
    """Within the block gradients are computed, whatever the caller switched off."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("nothing can be trained within torch.inference_mode(): call it outside")
    with torch.enable_grad():
        yield
