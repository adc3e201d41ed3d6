"""The module of a task of one's own, as a user would write it, for tests to import under names of their own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from alignlab.training import importing
from alignlab.training.tasks import TASKS

LOSSES = """
SHARE = 0.7

def pinball(output, target):
    error = target - output
    return (SHARE * error.clamp(min=0) - (1 - SHARE) * error.clamp(max=0)).sum(-1).mean()
"""
TASK = """
import torch

from alignlab.training import TASKS, Split, Task
from LOSSES import pinball


def make(seed_data):
    generator = torch.Generator().manual_seed(seed_data)
    splits = []
    for size in (40, 12, 12):
        x = torch.randn(size, 4, generator=generator)
        splits.append(Split(x, (x[:, :1] * x[:, 1:2]).tanh()))
    return Task("any", *splits, pinball, (4,), 1, has_accuracy=False)


TASKS["tab"] = make
"""


def written(folder: Path, task: str = TASK, losses: str = LOSSES, name: str = "own_tab") -> str:
    """The two files of a task; returns the name of the module to import."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_losses.py").write_text(losses)
    (folder / f"{name}.py").write_text(task.replace("LOSSES", f"{name}_losses"))
    return name


@contextmanager
def registered(
    folder: Path, task: str = TASK, losses: str = LOSSES, name: str = "own_tab"
) -> Iterator[ModuleType]:
    """The task ``tab``, as another process would have it; forgotten after the block."""
    before = set(TASKS), list(importing._imported)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(sys, "dont_write_bytecode", True)
        importing.import_own([written(folder, task, losses, name)])
        try:
            yield sys.modules[name]
        finally:
            importing._imported[:] = before[1]
            for added in set(TASKS) - before[0]:
                del TASKS[added]
            for module in (name, f"{name}_losses"):
                del sys.modules[module]
            importlib.invalidate_caches()
