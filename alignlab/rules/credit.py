"""The switch between what a rule sends and what backprop would have sent, and the record of one forward pass.

Every converted layer of a model holds the same :class:`Credit`. While ``credit.true`` is set, a backward pass through
the layers hands down ``delta W`` (backprop, no weight gradients); otherwise it hands down what the rule says. One graph
so serves the training step and the probes. Direct rules (Nøkland 2016) also need to know which layers ran and where
their signals meet the network again; that record is the list of :class:`Call` kept here during a forward pass.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from alignlab.rules.layers import FeedbackLayer


class _Unheard:
    """A ``Credit.true`` that is not true, and not ``False``."""

    def __bool__(self) -> bool:
        return False


@dataclass(eq=False)
class Delivery:
    """What reaches one layer's output under a direct rule, and what the layer hands down.

    The node of the graph that acts for the layer, its gate, holds this and nothing else of the record: an edge held there
    would make the graph own itself, and no pass would ever be freed. The gate is the layer's own Function, or a node above it.
    """

    credit: Credit
    above: bool = False  # whether the gate is a node above the layer's Function
    linked: bool = False  # whether the pass went through the converted model, so that an error will come
    apart: bool = False  # whether the rule's signal must not mix with losses on activations: somebody listens
    delta: Tensor | None = None  # what the rule delivers, from the error's arrival until the gate takes it
    below: Tensor | None = None  # what the layer hands down to the one below, until it has
    task: int = (
        -1
    )  # the backward pass that both are for; another must not find what one cut short left behind
    listeners: OrderedDict[int, Callable[[Tensor], None]] = field(default_factory=OrderedDict)

    def receive(self, arrived: Tensor | None) -> Tensor | None:
        """What the layer's output gets where ``arrived`` came by the chain: in the rule's passes, what the rule delivers.

        The chain then brings the gradients of losses on hidden activations alone: those act on the layer that made them.
        """
        if self.credit.true:
            return arrived
        if self.credit.delivering:
            return None
        if not self.linked:
            raise RuntimeError(
                "a direct rule's layer ran outside its model's forward pass, so that no error can be sent to it: call "
                "the converted model itself, not its parts, and checkpoint with use_reentrant=False"
            )
        delta, self.delta = self.delta, None
        if delta is None or self.task != torch._C._current_graph_task_id():
            delta = arrived
        elif arrived is not None:
            delta = delta + arrived
        if delta is not None:
            for tell in self.listeners.values():
                tell(delta)
        return delta

    def take_below(self) -> Tensor | None:
        """``below``, once, in the rule's passes."""
        if self.credit.true or self.credit.delivering:
            return None
        found, self.below = self.below, None
        return found if self.task == torch._C._current_graph_task_id() else None

    def tell(self, listener: Callable[[Tensor], None]) -> RemovableHandle:
        """Call ``listener`` with each signal that the rule brings to the layer's output."""
        handle = RemovableHandle(self.listeners)
        self.listeners[handle.id] = listener
        return handle


Chain: TypeAlias = bool | Delivery  # whether a layer hands delta down, or what a direct rule brings it


@dataclass
class Call:
    """One differentiable use of a layer in a forward pass: where its input came from and where its output goes."""

    layer: FeedbackLayer
    delivery: Delivery
    input_edge: GradientEdge | None
    input_shape: tuple[int, ...]
    output_edge: GradientEdge | None = None
    target: Call | None = None  # the call whose input this output reaches first
    source: Delivery | None = None  # of the last earlier call whose output reaches this input
    reads: tuple[int, ...] = ()  # the shape in which its B takes the error: rows, and the entries of each
    feeds_output: bool = False  # whether this output reaches the network's output and no call before it
    flows: bool = (
        False  # whether its signal need not be taken there: the region where it enters leads nowhere else
    )
    teaches: list[nn.Parameter] = field(
        default_factory=list
    )  # unconverted parameters that learn from this signal


@dataclass
class Credit:
    """What the layers of one converted model share. ``true`` asks for backprop's cotangents."""

    true: Any = False  # read by its truth; observers listen only where it is False itself
    layers: Any = field(default_factory=weakref.WeakSet)  # that share this, and are still in use
    delivering: bool = (
        False  # while a direct rule takes its signals to the layers: none passes a second layer
    )
    calls: list[Call] | None = None  # None outside a forward pass of the converted model
    session: Any = None  # the Passes of the rules.backward that runs

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Within the block, backward passes go by the rule, and observers know that these are not the run's own."""
        before, self.true = self.true, _Unheard()
        try:
            yield
        finally:
            self.true = before

    @contextmanager
    def deliver(self) -> Iterator[None]:
        """Within the block, gates let nothing through: a signal meets its own layer and no other."""
        self.delivering = True
        try:
            yield
        finally:
            self.delivering = False

    def require_pass(self, rule: str) -> None:
        """Raise ``RuntimeError`` outside a forward pass of the converted model (or its repetition by a checkpoint)."""
        if self.calls is None and torch._C._current_graph_task_id() == -1:
            raise RuntimeError(
                f"{rule}: a layer ran outside its model's forward pass, where the rule does not see it: call the converted "
                "model itself, not its parts"
            )

    def record(self, layer: FeedbackLayer, x: Tensor) -> Call:
        """Note that ``layer`` is about to be used on ``x``."""
        call = Call(layer, Delivery(self), _edge(x) if x.requires_grad else None, tuple(x.shape))
        if self.calls is not None:
            self.calls.append(call)
        return call

    def __getstate__(self) -> dict[str, Any]:
        # A pass in progress stays behind: graph edges can be neither pickled nor copied.
        return {"true": False, "delivering": False, "calls": None, "session": None}


def _edge(x: Tensor) -> GradientEdge:
    """``x``'s place in the graph, which it keeps alive: a node of C++ does so by itself, which spares a view."""
    node = x.grad_fn
    if node is None or isinstance(node, torch._C._FunctionBase):
        return get_gradient_edge(x)
    return GradientEdge(node, x.output_nr)
