"""Training: tasks, models, the spec of a run, and the loop that makes a recorded dataset from a spec."""

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
