"""Measured steps run without ``torch.compile``: a compiled graph ignores the switch to the true weights, silently.

Its angle would be a false 0. Uncompiled, the same module has the same gradients, to rounding and but for dropout, whose
masks a compiled graph may draw otherwise; other steps stay compiled.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_lock = threading.RLock()  # a finalizer may come in between
_holders = 0
_stance: Any = None


def hold_eager() -> None:
    """From now on compiled modules run uncompiled, until each who asked for it has called :func:`release_eager`."""
    global _holders, _stance
    with _lock:
        if _holders == 0:
            _stance = torch.compiler.set_stance("force_eager")  # works from here on
        _holders += 1


def release_eager() -> None:
    """Undo one :func:`hold_eager`; the last one brings back the stance that was set before the first."""
    global _holders, _stance
    with _lock:
        _holders -= 1
        if _holders == 0:
            _stance.__exit__(None, None, None)
            _stance = None


def outside_graphs(hook: Callable[..., Any]) -> Callable[..., Any]:
    """``hook``, which is no part of the graph where an optimizer's ``step`` is compiled."""
    apart = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]

    def called(*args: Any) -> Any:
        return apart(*args) if torch.compiler.is_compiling() else hook(*args)

    return called


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside wrappers that change neither output nor names: ``torch.compile``'s, DistributedDataParallel."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def tell_if_compiled(model: nn.Module) -> None:
    """Say once that a compiled model's measured steps take longer than its others, and what the run is then equal to."""
    if any(
        hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None
        for m in model.modules()
    ):
        warnings.warn(
            "the model is compiled: measured steps run uncompiled. Gradients are the same to rounding, but dropout may draw "
            "other masks, so that the run is not bit for bit what it is without a recorder",
            stacklevel=4,
        )
