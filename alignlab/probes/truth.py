"""The second question to a graph: which errors would have come, had every layer handed its error down through its own W?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from alignlab.probes.errors import ProbeError
from alignlab.probes.hooks import frontier, topmost
from alignlab.probes.uses import Use
from alignlab.rules.credit import Credit
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.randomness import random_states_kept

Placed = list[tuple[Use, GradientEdge]]  # the uses of a forward pass, with where their errors arrive


class Switch:
    """Stands in for a credit's ``true`` while we ask, and remembers whether the layers looked at it."""

    def __init__(self, true: bool) -> None:
        self.true, self.seen = true, False

    def __bool__(self) -> bool:
        self.seen = True
        return self.true


@contextlib.contextmanager
def asking(credits_: Sequence[Credit], true: bool) -> Iterator[Switch]:
    """Within the block, converted layers hand errors down through W (``true``) or by their rule, and no observer listens."""
    switch: Any = Switch(true)
    before = [credit.true for credit in credits_]
    try:
        for credit in credits_:
            credit.true = switch
        yield switch
    finally:
        for credit, value in zip(credits_, before, strict=True):
            credit.true = value


def somebody_asks(credits_: Sequence[Credit]) -> bool:
    """Whether errors are asked for at this moment, by us or another observer: what arrives now is not the run's own."""
    return any(credit.true is not False for credit in credits_)


@contextlib.contextmanager
def untouched(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Within the block, checkpoints may compute layers again: what that does to ``buffers`` (running statistics) is undone."""
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.data.copy_(value)  # .data: the graph may have saved the buffer


def errors_at(
    places: Sequence[GradientEdge], below: GradientEdge, error: Tensor, buffers: Sequence[Tensor] = ()
) -> tuple[Tensor | None, ...]:
    """The errors at ``places`` that ``error`` at the model's output causes; the random state stays as it is."""
    try:
        with random_states_kept(error.device), untouched(buffers):
            return torch.autograd.grad([below], places, [error], retain_graph=True, allow_unused=True)
    except RuntimeError as failure:
        raise ProbeError(
            f"the true errors could not be computed on this model's graph ({failure}). If it uses activation "
            "checkpointing, pass use_reentrant=False; if it is compiled, attach to the uncompiled module"
        ) from failure


def some_lie_deeper(asked: Sequence[Use], fresh: Placed, below: GradientEdge) -> bool:
    """Whether an error from ``below`` reaches some of the uses through other layers alone, converted ones among them."""
    if not any(isinstance(use.layer, FeedbackLayer) and use.reaches_input for use in asked):
        return False  # no feedback is in use
    ends = {edge.node: use for use, edge in fresh}
    first = {ends[node] for node in topmost(frontier([below.node], ends)) if node in ends}
    return any(use not in first for use in asked)
