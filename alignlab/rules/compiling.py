"""How feedback that follows a clock enters a graph of ``torch.compile``: through an operation that is run as it is.

A compiled graph cannot compare version counters, count, or draw from a generator of its own: it would keep what it saw
when it was traced. So the graph calls :func:`feedback_in_graph`, which at every run ticks the layer outside of the graph
and hands in a copy of its B. Rules without a clock need none of this: their B is an input of the graph.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from alignlab.rules.layers import FeedbackLayer

_LAYERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

# "Changed" by every run, so that the compiler leaves none out, merges none, and puts none off to the backward pass.
_RUNS = torch.zeros(())


def remember(layer: FeedbackLayer) -> None:
    """Make ``layer`` one that graphs can ask for its B, or of a direct rule one that stays out of them."""
    _LAYERS[id(layer)] = layer
    if layer.rule.direct:
        _disable()


def any_layers() -> bool:
    """Whether a converted layer is alive."""
    return bool(_LAYERS)


def feedback_in_graph(layer: FeedbackLayer, used: bool) -> Tensor:
    """A copy of ``layer``'s B, brought up to date when the graph runs (``used``: as in the layer's ``tick``)."""
    feedback: Tensor = _feedback(_RUNS, layer.weight.detach(), id(layer), used)
    return feedback


@torch.library.custom_op("alignlab::feedback", mutates_args=("runs",), tags=(torch.Tag.cudagraph_unsafe,))
def _feedback(runs: torch.Tensor, weight: torch.Tensor, layer: int, used: bool) -> torch.Tensor:
    found = _LAYERS[layer]
    found.tick(used)
    return torch.empty_like(weight).copy_(found.feedback)


@_feedback.register_fake
def _(runs: Tensor, weight: Tensor, layer: int, used: bool) -> Tensor:
    return torch.empty_like(weight)


def uncompiled(function: Any, *args: Any) -> Any:
    """``function(*args)``, outside of the graph where one is being made."""
    return _outside(function, *args) if torch.compiler.is_compiling() else function(*args)


def _call(function: Any, *args: Any) -> Any:
    return function(*args)


_outside: Any = _call


def _disable() -> None:
    """Before a graph can be made; not on import, since it imports the compiler, which takes longer than all else."""
    global _outside
    if _outside is _call:
        reason = (
            "direct rules read autograd's graph: call the model itself, or convert it to a layerwise rule"
        )
        _outside = torch.compiler.disable(_call, reason=reason)  # type: ignore[no-untyped-call]
