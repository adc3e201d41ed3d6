"""Training: tasks, models, the spec of a run, and the loop that makes a recorded dataset from a spec."""

from alignlab.training.loop import train
from alignlab.training.spec import Graft, RunSpec, SpecError
from alignlab.training.tasks import Split, Task, load

__all__ = ["Graft", "RunSpec", "SpecError", "Split", "Task", "load", "train"]
