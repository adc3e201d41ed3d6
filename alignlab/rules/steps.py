"""How a layer knows that its weights changed: by autograd's version counters, which every change in place advances.

Except by the fused optimizers of PyTorch, and by optimizers that write through ``.data``: both leave the counters as
they were, and a schedule that follows them would stand still without a word. So every optimizer's step advances them
here, once there is a layer that may follow them. (A gradient scaler leaves it to a fused optimizer to skip a step by itself;
such a step counts.)
"""

from __future__ import annotations

from typing import Any

from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from alignlab.rules import compiling
from alignlab.rules.learned import Notes


def _advance(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not compiling.any_layers():
        return  # a loop that has converted nothing finds its counters as they would be without alignlab
    stepped = [(p, group) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    increment_version([parameter for parameter, _ in stepped])
    for parameter, group in stepped:
        notes = vars(parameter).get("notes")
        if isinstance(notes, Notes):  # on feedback that learns
            notes.stepped(group)


register_optimizer_step_post_hook(_advance)
