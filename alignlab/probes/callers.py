"""Who makes an optimizer step, where the stack alone tells: a ``GradScaler``, or the step of a class derived from it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

Hook = Callable[..., Any]


def stepping_scaler() -> Any:
    """The scaler by whose ``step`` an optimizer steps now, None without."""
    return next(_running(torch.amp.GradScaler.step), None)


def outermost(hook: Hook, optimizer: torch.optim.Optimizer) -> Hook:
    """``hook``, for the steps of the ``optimizer`` that are no part of another one of its own.

    Of a class whose ``step`` calls ``super().step()`` torch calls hooks twice, once an optimizer of the base class was made.
    """
    bases = type(optimizer).__mro__[: -len(torch.optim.Optimizer.__mro__)]
    if len({inspect.unwrap(vars(c)["step"]) for c in bases if "step" in vars(c)}) < 2:
        return hook  # AdamW's is Adam's

    def called(*args: Any) -> Any:
        running = sum(other is optimizer for other in _running(type(optimizer).step))
        return None if running > 1 else hook(*args)

    return called


def _running(method: Any) -> Iterator[Any]:
    """The objects whose ``method`` runs, from the innermost call on; all steps that have hooks are one function to Python."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code is method.__code__:
            yield frame.f_locals.get("self")
        frame = frame.f_back
