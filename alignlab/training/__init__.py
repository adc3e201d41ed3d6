"""Training: tasks, models, the spec of a run, and the loop that makes a recorded dataset from a spec."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignlab.training.errors import DataError, SpecError, SweepError
    from alignlab.training.estimators import estimator_statistics
    from alignlab.training.loop import train
    from alignlab.training.population import train_population
    from alignlab.training.replaying import replayed_noise, replayed_sizes
    from alignlab.training.spec import Graft, RunSpec, StepSizes
    from alignlab.training.sweep import Sweep
    from alignlab.training.task import Split, Task
    from alignlab.training.tasks import TASKS, load
    from alignlab.training.workers import Workers

__all__ = [
    "TASKS",
    "DataError",
    "Graft",
    "RunSpec",
    "SpecError",
    "Split",
    "StepSizes",
    "Sweep",
    "SweepError",
    "Task",
    "Workers",
    "estimator_statistics",
    "load",
    "replayed_noise",
    "replayed_sizes",
    "train",
    "train_population",
]

_PUBLIC = {
    "errors": ("DataError", "SpecError", "SweepError"),
    "estimators": ("estimator_statistics",),
    "loop": ("train",),
    "population": ("train_population",),
    "replaying": ("replayed_noise", "replayed_sizes"),
    "spec": ("Graft", "RunSpec", "StepSizes"),
    "sweep": ("Sweep",),
    "task": ("Split", "Task"),
    "tasks": ("TASKS", "load"),
    "workers": ("Workers",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: worker processes can be started before torch is there."""
    if name in _HOME:
        return getattr(importlib.import_module(f"alignlab.training.{_HOME[name]}"), name)
    if name in _PUBLIC:
        return importlib.import_module(f"alignlab.training.{name}")
    raise AttributeError(f"module 'alignlab.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
