"""How the layers of one forward pass hang together, read from autograd's graph (for the direct rules of Nøkland 2016).

A direct rule's signal for a layer enters where the layer's output next meets a converted layer, and goes from there to
that layer alone. Between two layers lies a *region* of the graph: nonlinearities, normalisations, skip connections. Its
borders are the gates that direct rules put on the outputs of converted layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge

from alignlab.rules.credit import Call, Delivery
from alignlab.rules.functions import gate_of

_LEAF: Any = vars(torch._C._functions)["AccumulateGrad"]


@dataclass(eq=False, slots=True)
class Region:
    """What lies below an edge, down to the next layers: their gates, and the uses of parameters by leaf."""

    gates: list[Delivery] = field(default_factory=list)
    uses: dict[int, set[Any]] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)  # of this pass that end here, in order


def explore(edge: GradientEdge | None) -> Region:
    """The region below ``edge``."""
    found = Region()
    waiting: list[Any] = [] if edge is None else [edge.node]
    seen: set[Any] = set(waiting)
    while waiting:
        node = waiting.pop()
        if (gate := gate_of(node)) is not None:
            found.gates.append(gate)
            continue
        if type(node).__name__ == "CompiledFunctionBackward":
            raise RuntimeError(
                "a direct rule cannot see through a compiled part of the model: call the model without torch.compile, or "
                "convert it to a layerwise rule"
            )
        for parent, _ in node.next_functions:
            if isinstance(parent, _LEAF):
                found.uses.setdefault(id(parent.variable), set()).add(node)
            elif parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return found


def link(
    calls: Sequence[Call], output: GradientEdge, trained: Callable[[], Mapping[str, nn.Parameter]]
) -> list[Call]:
    """The calls that the output depends on, in order and linked: to the later one that each output reaches first, to
    the earlier one that reaches each input last, and to those ``trained`` parameters (none of converted layers; asked for
    if there are any uses) that learn from each signal."""
    order = {id(call.delivery): i for i, call in enumerate(calls)}
    below, top = [explore(call.input_edge) for call in calls], explore(output)
    for region in (top, *below):  # gates of other models or passes are not ours
        region.calls = sorted(order[id(gate)] for gate in region.gates if id(gate) in order)
    for call in calls:
        call.delivery.linked = True
    alive = _alive(top, below)
    for i in alive:
        for earlier in below[i].calls:
            calls[i].source = calls[earlier].delivery  # the last one stays
            calls[earlier].target = calls[earlier].target or calls[i]
    for i in top.calls:
        calls[i].feeds_output = calls[i].target is None
    at = {id(calls[i]): below[i] for i in alive}
    entered = [(call, at[id(call.target)] if call.target else top) for call in (calls[i] for i in alive)]
    regions = [top, *at.values()]
    if any(region.uses for region in regions):
        _assign(entered, regions, trained())
    for call, region in entered:
        call.flows = _leads_to(call, region)
    return [calls[i] for i in alive]


def _leads_to(call: Call, region: Region) -> bool:
    """Whether what enters the ``region`` reaches ``call``'s layer and nothing else: autograd's own pass may carry it."""
    return len(region.gates) == 1 and region.gates[0] is call.delivery and not region.uses


def _alive(top: Region, below: Sequence[Region]) -> list[int]:
    """The calls that the network's output depends on."""
    found: set[int] = set()
    waiting = [top]
    while waiting:
        for i in waiting.pop().calls:
            if i not in found:
                found.add(i)
                waiting.append(below[i])
    return sorted(found)


def _assign(
    entered: list[tuple[Call, Region]], regions: list[Region], trained: Mapping[str, nn.Parameter]
) -> None:
    """Give every use of a parameter to the first signal that passes it, so that none learns twice from one use."""
    unreached = []
    for name, parameter in trained.items():
        taken: set[Any] = set()
        for call, region in entered:
            uses = region.uses.get(id(parameter), set())
            if uses <= taken:
                continue
            if uses & taken:
                raise RuntimeError(
                    f"a direct rule cannot separate the uses of {name} on both ways around a skip connection: "
                    "give each place a module of its own"
                )
            taken |= uses
            call.teaches.append(parameter)
        if any(region.uses.get(id(parameter), set()) - taken for region in regions):
            unreached.append(name)
    if unreached:
        raise RuntimeError(
            f"a direct rule sends no error to {', '.join(unreached)}: below every trained layer, or on a branch that no "
            "signal takes; freeze it (requires_grad_(False)) or build its module without parameters (affine=False)"
        )
