"""A site, one use of a layer in a training step's first pass: its gate in the graph, and what else lies in that graph.

The gate is the identity on the layer's output; backward, it lets the rule put its own delta there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import GradientEdge

from alignlab.rules.credit import Credit
from alignlab.rules.outlet import Outlet

OUTLET: Any = Outlet._backward_cls
_LEAF: Any = vars(torch._C._functions)["AccumulateGrad"]


@dataclass(eq=False)
class Site:
    """One use of a layer: what its output looks like, and the delta that the rule delivers there."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    edge: GradientEdge | None = None
    delta: Tensor | None = None
    rows: slice | None = None  # of the units, where the others' outputs were not used

    @property
    def where(self) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
        """Shape, dtype and device of the output."""
        return self.shape, self.dtype, self.device


def is_gate(node: Any) -> bool:
    """Whether a node of the graph is a site's gate; a frozen layer below which nothing learns otherwise has none."""
    return isinstance(node, _GATE)


@dataclass(eq=False)
class Held:
    """What a gate knows of its site: the graph must not own itself, as it would by the site's edge."""

    delta: Tensor | None = None


class SiteGate(Function):
    """The identity; backward it hands down the rule's delta while gradients land, and what arrives at other times."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, held: Held, credit: Credit) -> Tensor:
        ctx.held, ctx.credit = held, credit
        ctx.set_materialize_grads(False)
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor | None) -> tuple[Tensor | None, None, None]:
        session = ctx.credit.session
        landing = session is not None and session.landing and not ctx.credit.true
        return ctx.held.delta if landing else deltas[0], None, None


_GATE: Any = SiteGate._backward_cls


class Relay(Function):
    """The loss's value; backward, of a gradient of 1, the model's outputs get their errors and nothing else gets anything."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, errors: Sequence[Tensor | None], *outputs: Tensor) -> Tensor:
        ctx.errors = errors
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.errors)


Move = Callable[[Site, Tensor], Tensor]


@dataclass
class Found:
    """What lies below some nodes of a graph: the parameters by ``id``, a site's gate, a checkpoint that hides its layers."""

    parameters: set[int]
    gates: bool = False
    reentrant: bool = False


def leaves(nodes: Iterable[Any], stop: tuple[Any, ...]) -> Found:
    """The leaves below ``nodes``, and whether a site's gate lies there, without passing a node of the ``stop`` types."""
    found, waiting = Found(set()), list(nodes)
    seen: set[Any] = set(waiting)
    while waiting:
        node = waiting.pop()
        if isinstance(node, stop):
            continue
        found.reentrant |= type(node).__name__ == "CheckpointFunctionBackward"
        found.gates |= isinstance(node, SiteGate._backward_cls)
        for parent, _ in node.next_functions:
            if isinstance(parent, _LEAF) and not isinstance(node, OUTLET):  # which has all of them at hand
                found.parameters.add(id(parent.variable))
            elif parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return found


def of_used_units(site: Site) -> Tensor | None:
    """The site's delta without what is at units whose outputs were not used: observers would take it for a signal."""
    if site.delta is None or site.rows is None:
        return site.delta
    kept = torch.zeros_like(site.delta)
    kept[..., site.rows] = site.delta[..., site.rows]
    return kept
