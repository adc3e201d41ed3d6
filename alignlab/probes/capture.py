"""Capture: what each layer's teaching signal was, and what backprop's would have been, from one forward pass and one graph.

While armed, a forward hook on each layer keeps its input and asks the graph to report the error that arrives at its output
(``delta_rule``, :mod:`alignlab.probes.signals`). A tap on the model's output meets the output's own error before, and asks
autograd, re-entrantly, for the true errors ``delta_bp`` at the same places, with every converted layer switched to its own W.
No parameter gradient is formed on that way, so nothing reaches ``.grad``. Under backprop the two are one and the second pass
is saved, as it is where nobody reads the true errors. Where a weight's gradient is no deltaᵀ h, what came to the weight is
kept instead (:mod:`alignlab.probes.landing`).

Signals are taken from graph *nodes*: in-place nonlinearities may overwrite the tensors, they cannot change the node.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from alignlab.probes import selftest
from alignlab.probes.above import Above
from alignlab.probes.arrivals import Arrivals, learning
from alignlab.probes.compiled import hold_eager, release_eager, unwrapped
from alignlab.probes.errors import ProbeError
from alignlab.probes.hooks import (
    Hook,
    depends_on_tap,
    frontier,
    nodes_of,
    passes_by_tap,
    signal_edge,
    tapped,
    topmost,
    weakly,
)
from alignlab.probes.landing import Landing
from alignlab.probes.roots import listen
from alignlab.probes.ruled import Ruled
from alignlab.probes.selection import is_stepped, learning_rates
from alignlab.probes.signals import BESIDE, Signals
from alignlab.probes.truth import Placed, asking, errors_at, some_lie_deeper, somebody_asks
from alignlab.probes.uses import Use, used_feedback, weight_of
from alignlab.probes.wholeness import check_seen, complete
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.ranks import are_several


class Capture:
    """Collects the :class:`Use`\\ s of ``layers`` (by name) between :meth:`arm` and :meth:`take`.

    ``truth``: the true errors too. ``optimizer``: whose weights may take the place of others while it is armed, and are those
    that nobody else steps.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Module],
        truth: bool = True,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.model, self.layers, self._truth = unwrapped(model), layers, truth
        self.arrivals = Arrivals(layers)
        self.passes: frozenset[int] = frozenset()  # the backward passes behind what was last taken
        self._fresh: Placed = []  # the uses of the forward pass that runs
        self._asked: list[Placed] = []  # those of the passes whose true errors were asked for
        self._count = 0
        self._in_part = False  # whether other processes take part in the step
        self._handles: list[Any] = []
        self._buffers: list[Tensor] = []
        self._ruled = Ruled(self.model)
        self._optimizer = optimizer
        self._foreign: set[str] = set()  # the layers that learn by another optimizer
        self._landing = Landing(self.arrivals, self._ruled, partial(is_stepped, optimizer))
        self._signals = Signals(self.arrivals, self._ruled)
        self._above = Above(self)
        self._following = False  # whether it is, since it was armed
        self._root: Any = None  # the end of the graph that is differentiated, as far as it is known

    def arm(self) -> None:
        """Start to listen."""
        self._ruled.check()
        if self._handles:
            return
        hold_eager()
        outside = [self._above.watch()]
        if self._follows and self._ruled.is_chained:
            outside.append(listen(weakly(self._on_root)))
        self._release = weakref.finalize(self, _release, outside)  # also where nobody disarms it
        plain = (m for m in self.model.modules() if not isinstance(m, FeedbackLayer))
        # feedback is replaced, never changed in place
        self._buffers = [buffer for m in plain for buffer in m._buffers.values() if buffer is not None]
        if self._optimizer is not None:
            ours = learning_rates(self._optimizer, self.layers)
            self._foreign = {name for name in self.layers if name not in ours}
        for name, layer in self.layers.items():
            hook = Hook(partial(self._on_layer, name))
            self._handles.append(layer.register_forward_hook(hook, prepend=True, with_kwargs=True))
            self._handles += self._landing.listen(name, layer)
        self._following = self._follows
        if self._following:
            self._handles.append(self.model.register_forward_pre_hook(Hook(self._on_start)))
            self._handles.append(self.model.register_forward_hook(Hook(self._on_output), with_kwargs=True))

    def disarm(self) -> None:
        """Stop listening and drop what was not taken."""
        if self._handles:
            self._release()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._let_go()
        self._landing.clear()
        self.arrivals.clear()

    def take(self, trained: Collection[int] | None = None) -> dict[str, list[Use]]:
        """The uses of each layer whose errors had a part in the gradients, in forward order; layers without are left out.

        ``trained``: the ids of the parameters that the step is of, by default all. Raises :class:`ProbeError` where a layer
        learnt without its signals being known.
        """
        self._ruled.check()
        found = self.arrivals.take(trained)
        taken, passes, self.passes, _, _ = found
        self._landing.settle(found)
        self._let_go()
        complete(taken, self._ruled.is_backprop, self._asks)
        check_seen(found, self.layers)
        if taken:
            selftest.check_paths(taken)
            self._landing.check(taken, passes)
        if self._follows and not self._following:
            self.disarm()
            self.arm()
        return taken

    @property
    def _asks(self) -> bool:
        """Whether to ask for the true errors; under a rule that sends none to the units, they are all that there is."""
        return self._truth or self._ruled.is_explicit

    @property
    def _follows(self) -> bool:
        """Whether the model's output is listened to: for the true errors, and for the errors that a direct rule sends."""
        if self._ruled.is_backprop:
            return self._above.seen
        return self._asks or self._ruled.is_direct

    @property
    def landed(self) -> dict[str, Tensor]:
        """By layer, the weights' gradients where they are the rule's own, of what was last taken."""
        return self._landing.landed

    def hears(self, name: str, weight: nn.Parameter) -> bool:
        """Whether the gradients that come to a layer's weight are noted."""
        return self._landing.knows(name, weight)

    @property
    def elsewhere(self) -> dict[str, None]:
        """The layers whose weights get other gradients too, as far as is known."""
        return self._landing.test.elsewhere

    @property
    def attrs(self) -> dict[str, str]:
        """What a reader of the run must know."""
        elsewhere = ", ".join(self.elsewhere)
        return {"weights_that_learn_elsewhere_too": elsewhere} if elsewhere else {}

    def _let_go(self) -> None:
        """Cut the ties to graphs that the loop may keep (a list of losses, say)."""
        for placed in self._asked:
            placed.clear()
        self._fresh, self._asked, self._count, self._root = [], [], 0, None
        self._in_part = False

    def _on_root(self, value: Tensor | None) -> None:
        self._root = None if value is None else value.grad_fn

    def _on_start(self, model: nn.Module, args: Any) -> None:
        self._fresh = []  # of a forward pass that did not reach its end
        self._above.inside = True

    def _on_layer(self, name: str, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # a checkpoint with use_reentrant=True shows the call itself after the pass
        self._in_part = self._in_part or are_several()
        if self.arrivals.closed or not isinstance(output, Tensor) or not output.requires_grad:
            return
        if not self._ruled.is_backprop and torch._C._current_graph_task_id() != -1:
            return  # a checkpoint computes the layer again; its first call was seen
        self._handles += self._landing.listen(name, layer)  # to a weight that was frozen before, too
        if torch._C._are_functorch_transforms_active():
            self._on_transformed(name)
            return
        x = args[0] if args else kwargs["input"]
        edge = signal_edge(output, owned=self._follows)
        use = Use(
            layer, x.detach(), used_feedback(layer), x.requires_grad, output.shape, self._count, x._version
        )
        use.in_part = self._in_part
        if name in self._foreign and learning(layer):
            use.weight = weight_of(layer).clone()
        self._count += 1
        self._signals.listen(name, use, edge)
        if self._follows:
            if self._ruled.is_direct:
                earlier = {edge.node: other for other, edge in self._fresh}
                use.below = [earlier[node] for node in frontier(nodes_of(x), earlier) if node in earlier]
            self._fresh.append((use, edge))

    def _on_transformed(self, name: str) -> None:
        """What passes a layer within ``torch.func`` is of no graph that we see; backprop's gradient comes to the weight."""
        self.arrivals.derive()
        if self._follows:
            raise ProbeError(
                f"layer {name!r} is called inside a torch.func transform (grad, vmap, ...), where its true error cannot be "
                "told: in measured steps call the model outside of it, or record the run under backprop"
            )

    def _on_output(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        fresh, self._fresh, self._above.inside = self._fresh, [], False
        if not fresh:
            return None
        if depends_on_tap(nodes_of((args, kwargs)), self):
            raise ProbeError(
                f"{type(model).__name__} is called on its own output, and the errors of the calls cannot be told apart. "
                "Put the loop into a module and give that to the recorder"
            )
        ends = {edge.node: use for use, edge in fresh}
        last = frontier(nodes_of(output), ends)
        for use in (ends[node] for node in topmost(last) if node in ends):
            use.feeds_output, use.feeds_alone = True, len(last) == 1
        if self._ruled.is_direct:
            self._signals.listen_to_broadcast(output, [use for use, _ in fresh])
        return tapped(output, self, partial(self._on_error, fresh))

    def _on_error(self, fresh: Placed, below: GradientEdge, error: Tensor) -> None:
        """The output's error has arrived: ask for the true errors of the layers, before their own arrive."""
        if not fresh or not self._asks or somebody_asks(self._ruled.credits) or not self.arrivals.counts():
            return
        self._asked.append(fresh)
        with asking(self._ruled.credits, true=True) as switch:
            asked = self._ask("delta_bp", fresh, below, error)
        if not switch.seen and some_lie_deeper([use for use, _ in asked], fresh, below):
            self._ruled.check()
            raise ProbeError(
                "the layers' backward pass did not look at the switch to the true weights, so that every angle would be a "
                "false 0: a compiled or traced graph, or a layer of your own that does not ask credit.true"
            )
        if any(credit.session is not None and credit.session.beside for credit in self._ruled.credits):
            raise ProbeError(BESIDE.format(name=next(iter(self.layers))))
        if self._ruled.is_explicit:
            names = {layer: name for name, layer in self.layers.items()}
            for use, signal in asked:
                self.arrivals.reach(names[use.layer], use, signal)
        if self._ruled.is_chained and (self._landing.test.due or self._may_be_reached_beside(fresh)):
            with asking(self._ruled.credits, true=False):
                self._ask("expected", fresh, below, error)

    def _may_be_reached_beside(self, fresh: Placed) -> bool:
        """Whether what is differentiated depends on a layer past the model's output too: on hidden activations. What
        ``torch.autograd.backward`` and ``grad`` differentiate is not known."""
        return self._root is None or passes_by_tap(self._root, self, {edge.node: use for use, edge in fresh})

    def _ask(self, kind: str, fresh: Placed, below: GradientEdge, error: Tensor) -> list[tuple[Use, Tensor]]:
        """Note the errors that ``error`` at the output causes; return the uses that one reaches, with theirs."""
        signals = errors_at([edge for _, edge in fresh], below, error, self._buffers)
        found = [
            (use, signal.reshape(use.shape))
            for (use, _), signal in zip(fresh, signals, strict=True)
            if signal is not None
        ]
        for use, signal in found:
            use.note(kind, self.arrivals.current, signal)
        return found


def _release(handles: Sequence[Any]) -> None:
    """End what was begun outside of the model."""
    release_eager()
    for handle in handles:
        handle.remove()
