"""Training: tasks, models, the spec of a run, and the loop that makes a recorded dataset from a spec."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignlab.training.estimators import estimator_statistics
    from alignlab.training.loop import train
    from alignlab.training.replaying import replayed_noise
    from alignlab.training.spec import Graft, RunSpec, SpecError
    from alignlab.training.sweep import Sweep
    from alignlab.training.tasks import Split, Task, load

__all__ = [
    "Graft",
    "RunSpec",
    "SpecError",
    "Split",
    "Sweep",
    "Task",
    "estimator_statistics",
    "load",
    "replayed_noise",
    "train",
]

_HOME = {
    "estimator_statistics": "estimators",
    "train": "loop",
    "replayed_noise": "replaying",
    "Graft": "spec",
    "RunSpec": "spec",
    "SpecError": "spec",
    "Sweep": "sweep",
    "Split": "tasks",
    "Task": "tasks",
    "load": "tasks",
}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: worker processes can be started before torch is there."""
    if name in _HOME:
        return getattr(importlib.import_module(f"alignlab.training.{_HOME[name]}"), name)
    raise AttributeError(f"module 'alignlab.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
