"""How the probes listen: hooks that stay behind when a model is copied, a tap on its outputs, walks in the graph.

A backward pass meets the tap before any layer, with the error that comes from outside the model alone, even where one
output is computed from another. The tap knows its own place in the graph without holding on to it, so that a forward pass
that is never differentiated is freed as it would be without a recorder.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import _pytree as pytree

from alignlab.rules.direct import Broadcast
from alignlab.rules.functions import GeometryFunction, LinearFunction, RuleFunction


class Hook:
    """A callable for a module's hooks. Copies of the module (averaged weights, checkpoints) get one that does nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __deepcopy__(self, memo: Any) -> Hook:
        return Hook(nothing)

    def __reduce__(self) -> Any:
        return Hook, (nothing,)


def weakly(method: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """``method(*args, …)`` for as long as its owner lives: for hooks on parameters, whose cycles are never collected."""
    found = weakref.WeakMethod(method)

    def call(*more: Any) -> Any:
        bound = found()
        return None if bound is None else bound(*args, *more)

    return call


def nothing(*args: Any) -> None:
    """What the hooks of a copy do."""


class Tap(RuleFunction):
    """The identity on a model's output; backward it first reports ``(edge below, error)`` to ``arrived``."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, owner: object, arrived: Callable[[GradientEdge, Tensor], None]
    ) -> Tensor:
        ctx.owner, ctx.arrived = owner, arrived
        ctx.set_materialize_grads(False)
        return output.clone()  # a view could not be changed in place

    @staticmethod
    def backward(ctx: Any, *errors: Tensor | None) -> tuple[Tensor | None, None, None]:
        (error,) = errors
        if error is not None:
            ctx.arrived(GradientEdge(*ctx.next_functions[0]), error)
        return error, None, None


_TAP: Any = Tap._backward_cls
_BROADCAST: Any = Broadcast._backward_cls
_LAYERS: Any = tuple(made._backward_cls for made in (LinearFunction, GeometryFunction))


def tapped(output: Any, owner: object, arrived: Callable[[GradientEdge, Tensor], None]) -> Any:
    """A model's output, a tensor or any nesting of them, with a tap on each tensor that can carry an error."""

    def tap(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.grad_fn is None:
            return x
        return Tap.apply(x, owner, arrived)

    return pytree.tree_map(tap, output)


def nodes_of(values: Any) -> list[Any]:
    """The graph nodes that made the tensors in a nesting."""
    leaves = pytree.tree_leaves(values)
    return [x.grad_fn for x in leaves if isinstance(x, Tensor) and x.grad_fn is not None]


def frontier(nodes: Iterable[Any], ends: Mapping[Any, object]) -> list[Any]:
    """The nodes of ``ends``, and of other converted layers, that ``nodes`` depend on without another one in between."""

    def stops(node: Any) -> bool:
        return node in ends or isinstance(node, _LAYERS)

    return [node for node in _walk(nodes, stops) if stops(node)]


def hands_down(node: Any) -> bool:
    """Whether the node is a converted layer's own: it passes on, first of all, what the layer hands to its input."""
    return isinstance(node, _LAYERS)


def topmost(nodes: Sequence[Any]) -> list[Any]:
    """Those of the nodes that no other one of them depends on."""
    if len(nodes) < 2:
        return list(nodes)
    parents = [parent for node in nodes for parent, _ in node.next_functions if parent is not None]
    below = set(_walk(parents, lambda node: False))
    return [node for node in nodes if node not in below]


def broadcasts(nodes: Iterable[Any]) -> list[Any]:
    """The nodes at which a direct rule hands the output's error out, if any lies at the end of the model."""
    return [
        node
        for node in _walk(nodes, lambda node: isinstance(node, (_BROADCAST, *_LAYERS)))
        if isinstance(node, _BROADCAST)
    ]


def depends_on_tap(nodes: Iterable[Any], owner: object) -> bool:
    """Whether a tap of ``owner`` lies below the nodes."""
    return any(isinstance(node, _TAP) and node.owner is owner for node in _walk(nodes, lambda node: False))


def passes_by_tap(root: Any, owner: object, ends: Mapping[Any, object]) -> bool:
    """Whether a way leads from ``root`` down to one of ``ends`` past no tap of ``owner``."""

    def stops(node: Any) -> bool:
        return node in ends or (isinstance(node, _TAP) and node.owner is owner)

    return any(node in ends for node in _walk([root], stops))


def _walk(nodes: Iterable[Any], stops: Callable[[Any], bool]) -> Iterator[Any]:
    waiting = list(nodes)
    seen: set[Any] = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        if stops(node):
            continue
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)


def signal_edge(output: Tensor, owned: bool = True) -> GradientEdge:
    """Where the error of a layer's output arrives; ``owned``: for as long as the edge lives, whatever becomes of the graph.

    Some layers return a view of what they computed (three-dimensional input, a single image); an in-place operation that
    follows would take that view's node out of the graph, so the error is taken at its base, in the base's shape.
    """
    base, source = output._base, output
    if (
        base is not None
        and base.grad_fn is not None
        and base.numel() == output.numel()
        and base.is_contiguous()
        and output.is_contiguous()
    ):
        source = base
    if owned or source.grad_fn is None:
        return get_gradient_edge(source)
    return GradientEdge(source.grad_fn, source.output_nr)
