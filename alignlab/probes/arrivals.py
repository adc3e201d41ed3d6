"""Which of the signals that arrive in a step have a part in its update.

Loops do more than one backward pass a step: they add up micro-batches, throw batches away, ask for gradients of inputs
(adversarial examples), train one part of a model and then another, evaluate a closure again and again. A pass counts for a
layer if it added to the ``.grad`` of its weight and that was not cleared since; of a closure's evaluations the first counts,
the only one at this step's weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alignlab.probes.uses import Use, parameter_of, weights_behind


class Taken(NamedTuple):
    """What came in a step."""

    uses: dict[str, list[Use]]  # by layer, in forward order and with their signals settled
    passes: dict[str, frozenset[int]]  # by layer, the backward passes behind these
    shared: frozenset[int]  # those behind the update
    learnt: frozenset[str]  # the layers whose weights got gradients
    derived: (
        bool  # whether the loss may hold a derivative of the model, which no signal at the layers tells of
    )


class Arrivals:
    """The uses of ``layers`` that errors reached since the last :meth:`take`, and the backward passes that brought these."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self._uses: dict[str, dict[Use, None]] = {}
        self._landed: dict[str, set[int]] = {}
        self._added: dict[int, set[int]] = {}  # by the weight's id, what went into .grad
        # by the same: the version of .grad then, and whether it was not zero
        self._left: dict[int, tuple[int, bool | Tensor]] = {}
        self._heard: dict[Use, None] = {}  # every use that was reached, thrown away or not
        self.derives = False  # whether a pass of this run was itself to be differentiated (create_graph)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._restart()
        for use in self._heard:
            use.settle(())
        self._heard, self._graphed = {}, set[int]()
        self.current = -1  # autograd's number of the backward pass that runs
        self.closed = False  # whether what comes is of a later evaluation of a closure
        self._evaluated = False  # whether a closure has brought gradients

    def counts(self) -> bool:
        """Whether the backward pass that runs may have a part in the update; asked at each signal, before it is noted."""
        backward = torch._C._current_graph_task_id()
        if backward != self.current:
            self.current = backward
            if self._added and not self.closed:
                self.forget_cleared()
        return not self.closed

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """An optimizer evaluates a closure within the block.

        Not the first time, or with what came before the step used up: at other weights. One that ends with an error leaves
        the next batch to count.
        """
        before = self._all_landed()
        self.closed = self._evaluated or next(self._cleared(), None) is not None
        try:
            yield
        except BaseException:
            self.closed = self._evaluated = False
            raise
        self._evaluated = self._evaluated or bool(self._all_landed() - before)

    def reach(self, name: str, use: Use, error: Tensor) -> None:
        """An error has arrived at a use of a layer."""
        if torch.is_grad_enabled():
            self.derive(self.current)
        use.note("delta_rule", self.current, error)
        self._uses.setdefault(name, {})[use] = None
        self._heard[use] = None

    def derive(self, backward: int = -1) -> None:
        """The pass ``backward``, or one of ``torch.func``'s, makes a graph of its own: the loss may hold what it brings."""
        self.derives = True
        self._graphed.add(backward)

    def land(self, name: str) -> None:
        """The pass that runs has brought a gradient to a layer's weight."""
        if not self.closed:
            self._landed.setdefault(name, set()).add(torch._C._current_graph_task_id())

    def accumulate(self, weight: Tensor) -> None:
        """The pass that runs has added to a weight's ``.grad``; what ``autograd.grad`` returns goes elsewhere."""
        if not self.closed:
            self._added.setdefault(id(weight), set()).add(torch._C._current_graph_task_id())
            if (gradient := weight.grad) is not None:
                self._left[id(weight)] = gradient._version, _some(gradient)

    def forget_cleared(self) -> None:
        """Passes count no longer for the weights whose gradients were cleared since."""
        if not (cleared := list(self._cleared())):
            return
        for weight in cleared:
            del self._added[id(weight)]
        if not self._added:
            self._restart()  # a batch that was thrown away
            return
        gone = {id(weight) for weight in cleared}
        for name in list(self._landed):
            if gone & {id(weight) for weight in weights_behind(self.layers[name])}:
                del self._landed[name]

    def take(self, trained: Collection[int] | None = None) -> Taken:
        """What came since. ``trained``: the ids of the parameters that the optimizer steps; by default all."""
        passes, shared = self._counted(trained)
        uses, learnt = self._uses, frozenset(self._landed)
        derived = bool(self._graphed.difference(*passes.values()))
        for name, found in uses.items():
            for use in found:
                use.settle(sorted(passes[name]))
        self._uses = {}
        self.clear()
        settled = {
            name: sorted(
                (use for use in uses.get(name, ()) if use.delta_rule is not None), key=lambda use: use.place
            )
            for name in self.layers
        }
        return Taken(
            {name: found for name, found in settled.items() if found}, passes, shared, learnt, derived
        )

    def _counted(self, trained: Collection[int] | None) -> tuple[dict[str, frozenset[int]], frozenset[int]]:
        """The passes that count for each layer, and those that count for any whose weight is ``trained``.

        Where a weight takes no gradients, the latter are its own.
        """
        weights = {name: learning(layer) for name, layer in self.layers.items()}
        own = {name: self._behind(name, found) for name, found in weights.items() if found}
        ours = [name for name in own if trained is None or any(id(w) in trained for w in weights[name])]
        shared = frozenset[int]().union(*(own[name] for name in ours)) if ours else _all_passes(self._uses)
        return {name: own.get(name, shared) for name in self.layers}, shared

    def _behind(self, name: str, weights: Collection[nn.Parameter]) -> frozenset[int]:
        if not self._added:  # all by autograd.grad: gradients put together by hand
            by_hand = self._landed.get(name, ())
            return frozenset(by_hand if self._landed else _all_passes(self._uses))
        return frozenset[int]().union(*(self._added.get(id(weight), ()) for weight in weights))

    def _all_landed(self) -> set[int]:
        return set[int]().union(*self._landed.values(), *self._added.values())

    def _cleared(self) -> Iterator[nn.Parameter]:
        weights = {w: None for layer in self.layers.values() for w in weights_behind(layer)}
        left = [(weight, _some(weight.grad)) for weight in weights if id(weight) in self._added]
        # read after all is asked: a GPU waits once
        return (weight for weight, some in left if not some and not self._brought_zeros(weight))

    def _brought_zeros(self, weight: nn.Parameter) -> bool:
        """Whether ``.grad`` is zero since the passes brought nothing else, as of units that are all dead."""
        version, some = self._left.get(id(weight), (-1, True))
        return weight.grad is not None and weight.grad._version == version and not some

    def _restart(self) -> None:
        for use in self._heard:
            use.signals = {}  # it may be reached again, by another pass on the same graph
        self._uses, self._landed, self._added, self._left = {}, {}, {}, {}


def learns(layer: nn.Module) -> bool:
    """Whether the weight is a parameter that takes gradients (not frozen, nor computed from others)."""
    weight = parameter_of(layer)
    return weight is not None and weight.requires_grad


def learning(layer: nn.Module) -> list[nn.Parameter]:
    """The weight, or what it is computed from, as far as it takes gradients."""
    return [weight for weight in weights_behind(layer) if weight.requires_grad]


def _some(gradient: Tensor | None) -> bool | Tensor:
    """Whether it is there, and not zero. The first entries settle it for nearly all on the host."""
    if gradient is None or (gradient.device.type == "cpu" and bool(gradient.flatten()[:64].any())):
        return gradient is not None
    return gradient.any()


def _all_passes(arrived: Mapping[str, Mapping[Use, None]]) -> frozenset[int]:
    return frozenset(
        p for uses in arrived.values() for use in uses for p in use.signals.get("delta_rule", ())
    )
