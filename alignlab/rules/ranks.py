"""One B in all processes that train a model together (``nn.parallel.DistributedDataParallel``).

DistributedDataParallel sends round what a model holds when it is wrapped. What layers draw later (direct rules at the first
pass, ``brsf``, ``rerandomised`` and ``weight_mirror`` at each step) they draw from seeds of their own, and where each process
has converted from another seed, the gradient would be the mean of those of several feedbacks: no rule's. So the first
process's seeds go round as well, before anything is drawn by them: in the first pass through the wrapped model, in which all
processes take part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import nn

if TYPE_CHECKING:
    from alignlab.rules.layers import FeedbackLayer

_wrapper: Any = nn.parallel.DistributedDataParallel
_done: WeakSet[nn.Module] = WeakSet()  # layers whose processes agree


def forget(layer: nn.Module) -> None:
    """``layer`` gets another rule, and another seed."""
    _done.discard(layer)


def agree(layer: nn.Module) -> None:
    """Within a pass through a wrapped model, ``layer``'s first: give the model's the first process's seeds, and what they drew.

    Raises ``RuntimeError`` where a B that learns would take each process's own steps.
    """
    wrapped = _wrapper._active_ddp_module
    if wrapped is None or layer in _done:
        return
    every = [m for m in wrapped.modules() if hasattr(m, "feedback_seed")]
    layers = [m for m in every if m.rule.uses_feedback]
    averaged = {id(p) for p in wrapped._module_parameters}
    for own in layers:
        if own.rule.learns_feedback and id(own.feedback) not in averaged:
            raise RuntimeError(
                f"{own.rule.name}: the model was converted after DistributedDataParallel had wrapped it, which does not "
                "average the gradients of a B that it does not know: convert first, and then wrap"
            )
    _done.update([layer, *every])
    _share(wrapped.process_group, layers)


def are_several() -> bool:
    """Whether this is a pass through a wrapped model that more than one process trains."""
    wrapped = _wrapper._active_ddp_module
    return wrapped is not None and wrapped.process_group.size() > 1


@torch.no_grad()
def _share(group: Any, layers: Iterable[FeedbackLayer]) -> None:
    first = torch.distributed.get_global_rank(group, 0)
    for layer in layers:
        seed = torch.tensor(layer.feedback_seed, device=layer.weight.device)
        drawn = (layer.feedback, layer.feedback_magnitude, layer.feedback_unscaled)
        for value in (seed, *drawn):  # of a model that was converted after it was wrapped
            if value is not None:
                torch.distributed.broadcast(value, first, group=group)
        layer.feedback_seed = int(seed)
