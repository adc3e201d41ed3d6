"""What is differentiated: who listens is told of each tensor whose ``backward()`` is called, before it runs, and of its end."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Listener = Callable[[Tensor | None], None]

_listeners: list[Listening] = []
_calls = threading.local()
_installed: Any = None


class Listening:
    """One listener's; :meth:`remove` ends it."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def remove(self) -> None:
        """Tell it no more; ``backward`` is torch's own again when nobody listens."""
        if self in _listeners:
            _listeners.remove(self)
        if not _listeners and torch.Tensor.backward is _installed:
            torch.Tensor.backward = vars(_installed)["__wrapped__"]  # type: ignore[method-assign]


def listen(listener: Listener) -> Listening:
    """Call ``listener`` with each tensor whose ``backward()`` is called from now on, but within another such call; and with
    None when that has ended."""
    global _installed
    if torch.Tensor.backward is not _installed:
        _installed = _announced(torch.Tensor.backward)
        torch.Tensor.backward = _installed  # type: ignore[method-assign]
    _listeners.append(found := Listening(listener))
    return found


def _announced(original: Any) -> Any:
    """``Tensor.backward`` that first tells the listeners; once, even where others wrapped it and we wrapped them again."""

    @functools.wraps(original)
    def backward(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        outer = getattr(_calls, "inside", False)
        told = () if outer else tuple(_listeners)
        for each in told:
            each.listener(self)
        _calls.inside = True
        try:
            return original(self, *args, **kwargs)
        finally:
            _calls.inside = outer
            for each in told:
                each.listener(None)

    return backward
