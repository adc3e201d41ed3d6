"""Who makes an optimizer step, where the stack alone tells: a ``GradScaler``, or the step of a class derived from it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from alignlab.probes.errors import ProbeError

Hook = Callable[..., Any]

# by their code, which stays what it is where a library puts its own function in a method's place; the second is that of what
# torch makes of each step that has hooks
_SCALED: Any = inspect.unwrap(torch.amp.GradScaler.step).__code__
_HOOKED: Any = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__


def stepping_scaler() -> Any:
    """The scaler by whose ``step`` an optimizer steps now, None without."""
    return next(_running(_SCALED), None)


def outermost(hook: Hook, optimizer: torch.optim.Optimizer) -> Hook:
    """``hook``, for the steps of the ``optimizer`` that are no part of another one of its own.

    Of a class whose ``step`` calls ``super().step()`` torch calls hooks twice, once an optimizer of the base class was made.
    Raises :class:`ProbeError` where such a step is compiled, whose calls the stack does not show.
    """
    bases = type(optimizer).__mro__[: -len(torch.optim.Optimizer.__mro__)]
    if len({inspect.unwrap(vars(c)["step"]) for c in bases if "step" in vars(c)}) < 2:
        return hook  # AdamW's is Adam's

    def called(*args: Any) -> Any:
        running = sum(other is optimizer for other in _running(_HOOKED))
        if not running:
            raise ProbeError(
                f"the step of {type(optimizer).__name__} calls its base class's and is compiled: which of the two ends cannot "
                "be told, so that steps would be counted twice. Compile the model and not this optimizer"
            )
        return None if running > 1 else hook(*args)

    return called


def _running(code: Any) -> Iterator[Any]:
    """The objects whose method of this ``code`` runs, from the innermost call on."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code is code:
            yield frame.f_locals.get("self")
        frame = frame.f_back
