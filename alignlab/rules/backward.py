"""The backward pass of any rule, in one call: ``loss = backward(model, closure)`` in place of ``loss.backward()``.

Rules that need more forward passes than one (perturbation, soap) take the loss as a closure; for all others the call is the
two lines that a loop would have written. So a loop written with it trains by every rule.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.passes import Passes
from alignlab.rules.runs import checked_loss, objective_of, require_graph


def backward(model: nn.Module, closure: Callable[[], Tensor]) -> Tensor:
    """Fill ``.grad`` by the model's rule, adding to what is there; return the objective, detached.

    ``closure()`` runs the model on the batch and returns the loss: one number, or the loss of each sample (N,), whose mean
    is the objective; of a model of several runs (K,) or (K, N), and K objectives. It is called once, by rules that compare
    passes several times, always on the same random state and running statistics; both end as after one call. It must not
    call ``backward`` itself, and must use the same batch each time.

    Raises ``ValueError`` for a closure that returns no loss, or a loss that the rule cannot use, ``TypeError`` for what is no
    model or closure, and ``RuntimeError`` where the closure does something else the second time.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected an nn.Module")
    if not callable(closure):
        raise TypeError(
            f"closure is {type(closure).__name__}, expected a function that returns the loss: lambda: loss_fn(model(x), y)"
        )
    layers = [m for m in model.modules() if isinstance(m, FeedbackLayer)]
    layer = next((m for m in layers if m.rule.closure), None)
    if layer is None:
        runs, who = layers[0].runs if layers else None, "alignlab.rules.backward"
        loss = checked_loss(closure(), runs, who)
        require_graph(loss, who)
        objective = objective_of(loss, runs)
        objective.backward(torch.ones_like(objective))  # type: ignore[no-untyped-call]
        return objective.detach()
    if any(m.credit is not layer.credit or m.rule is not layer.rule for m in layers):
        names = ", ".join(sorted({m.rule.name for m in layers}))
        raise ValueError(
            f"{layer.rule.name} needs the whole model, which has layers of several conversions or rules ({names}): convert it "
            "at once, to one rule"
        )
    return _teach(model, closure, layer)


def _teach(model: nn.Module, closure: Callable[[], Tensor], layer: FeedbackLayer) -> Tensor:
    credit = layer.credit
    if credit.session is not None:
        raise RuntimeError(
            "alignlab.rules.backward: the closure calls it again; it should only return the loss"
        )
    passes = Passes(model, closure, layer.rule, credit)
    credit.session = passes
    try:
        with _eager(model):
            return layer.rule.teach(passes)
    finally:
        credit.session = credit.calls = None


def _eager(model: nn.Module) -> AbstractContextManager[object]:
    """A compiled model would not see the hooks by which outputs are moved: within the block it runs uncompiled."""
    compiled = any(
        hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None
        for m in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
