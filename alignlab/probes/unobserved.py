"""Maps that learn and are of no kind that can be measured: a record that leaves most of a model out says so."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from alignlab.probes.geometry import MEASURABLE, runs_of

FEW = 0.1  # of the weights that learn: tables of positions, a gate
LOOKED_UP = (nn.Embedding, nn.EmbeddingBag)


def tell_of_unobserved(model: nn.Module, optimizer: torch.optim.Optimizer, stacklevel: int) -> None:
    """Warn if modules of ``model`` that are no layers to a probe hold more than a few of the weights that learn."""
    sizes = _trained(optimizer, lead=int(runs_of(model) is not None))
    measured = _parameters(m for m in model.modules() if isinstance(m, MEASURABLE))
    seen = measured | _parameters(m for m in model.modules() if isinstance(m, LOOKED_UP))
    others: dict[str, int] = {}
    for name, module in model.named_modules():
        own = {id(p) for p in module._parameters.values()} - seen
        if size := sum(sizes.get(p, 0) for p in own):
            others[f"{name or 'the model itself'} ({type(module).__name__})"] = size
        seen |= own
    total = sum(others.values()) + sum(sizes.get(p, 0) for p in measured)
    if sum(others.values()) <= FEW * total:
        return
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    warnings.warn(
        f"not observed: {', '.join([*others][:3])}{more}, with {sum(others.values()) / total:.0%} of the weights that learn. "
        f"Measured are {', '.join(kind.__name__ for kind in MEASURABLE)}; convert(model, 'bp') makes such layers of the maps "
        'in RNNCell, GRUCell, LSTMCell and MultiheadAttention. layers="*" says that the others are enough',
        stacklevel=stacklevel + 1,
    )


def _trained(optimizer: torch.optim.Optimizer, lead: int) -> dict[int, int]:
    """How many numbers each matrix that learns holds; the first ``lead`` dimensions are of runs, not of matrices."""
    parameters = (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad)
    return {
        id(p): p.numel()
        for p in parameters
        if not is_lazy(p) and sum(size > 1 for size in p.shape[lead:]) > 1
    }


def _parameters(modules: Iterable[nn.Module]) -> set[int]:
    return {id(p) for module in modules for p in module.parameters()}
