"""Maps that learn and are of no kind that can be measured: a record that leaves most of a model out says so."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn
from torch.nn.parameter import is_lazy

from alignlab.probes.geometry import MEASURABLE, runs_of

FEW = 0.1  # of the weights that learn: tables of positions, a gate
LOOKED_UP = (nn.Embedding, nn.EmbeddingBag)


def tell_of_unobserved(model: nn.Module, stacklevel: int) -> None:
    """Warn if modules of ``model`` that are no layers to a probe hold more than a few of its weights (matrices) that learn."""
    modules, lead = dict(model.named_modules()), int(runs_of(model) is not None)
    known = {id(p): p for m in modules.values() if isinstance(m, MEASURABLE) for p in m.parameters()}
    seen = known.keys() | {
        id(p) for m in modules.values() if isinstance(m, LOOKED_UP) for p in m.parameters()
    }
    others: dict[str, int] = {}
    for name, module in modules.items():
        own = {id(p): p for p in module._parameters.values() if p is not None and id(p) not in seen}
        if size := _matrices(own.values(), lead):
            others[f"{name or 'the model itself'} ({type(module).__name__})"] = size
        seen |= own.keys()
    total = sum(others.values()) + _matrices(known.values(), lead)
    if not others or sum(others.values()) <= FEW * total:
        return
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    warnings.warn(
        f"not observed: {', '.join([*others][:3])}{more}, with {sum(others.values()) / total:.0%} of the weights that learn. "
        f"Measured are {', '.join(kind.__name__ for kind in MEASURABLE)}; convert(model, 'bp') makes such layers of the maps "
        'in RNNCell, GRUCell, LSTMCell and MultiheadAttention. layers="*" says that the others are enough',
        stacklevel=stacklevel + 1,
    )


def _matrices(parameters: Iterable[nn.Parameter], lead: int) -> int:
    """How many numbers the matrices that learn hold; the first ``lead`` dimensions are of runs, not of matrices."""
    learning = (p for p in parameters if p.requires_grad and not is_lazy(p))
    return sum(p.numel() for p in learning if sum(size > 1 for size in p.shape[lead:]) > 1)
