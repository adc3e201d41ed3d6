"""Which of the signals that arrive in a step have a part in its update.

Loops do more than one backward pass a step: they add up micro-batches, throw batches away, ask for gradients of inputs
(adversarial examples), evaluate a closure again and again. A pass counts if it brought gradients to the layers' weights
and these were not cleared since; of a closure's evaluations the first counts, the only one at this step's weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from alignlab.probes.uses import Use, parameter_of


class Arrivals:
    """The uses of ``layers`` that errors reached since the last :meth:`take`, and the backward passes that brought these.

    ``within_step``: set it while the optimizer runs a closure.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self.within_step = False
        self._uses: dict[str, dict[Use, None]] = {}
        self._landed: set[int] = set()
        self._accumulated: set[int] = set()  # of these, the passes that went into .grad
        self._learnt: set[str] = set()
        self._heard: dict[Use, None] = {}  # every use that was reached, thrown away or not
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._restart()
        for use in self._heard:
            use.settle(())
        self._heard = {}
        self.current = -1  # autograd's number of the backward pass that runs
        self.closed = False  # whether a closure's first evaluation is over

    def counts(self) -> bool:
        """Whether the backward pass that runs may have a part in the update; asked at each signal, before it is noted."""
        backward = torch._C._current_graph_task_id()
        if backward != self.current:
            self.current = backward
            if self._uses and (self._accumulated or self.within_step) and self._gradients_are_cleared():
                self.closed = self.within_step and bool(self._landed)
                if not self.closed:
                    self._restart()  # a batch that was thrown away
        return not self.closed

    def reach(self, name: str, use: Use, error: Tensor) -> None:
        """An error has arrived at a use of a layer."""
        use.note("delta_rule", self.current, error)
        self._uses.setdefault(name, {})[use] = None
        self._heard[use] = None

    def land(self, name: str) -> None:
        """The pass that runs has brought a gradient to a layer's weight."""
        if not self.closed:
            self._landed.add(torch._C._current_graph_task_id())
            self._learnt.add(name)

    def accumulate(self, weight: Tensor) -> None:
        """The pass that runs has added to a weight's ``.grad``; what ``autograd.grad`` returns goes elsewhere."""
        if not self.closed:
            self._accumulated.add(torch._C._current_graph_task_id())

    def take(self) -> tuple[dict[str, list[Use]], frozenset[int], frozenset[str]]:
        """The uses by layer, in forward order and with their signals settled; the passes that count; the layers that learnt."""
        uses, learnt = self._uses, frozenset(self._learnt)
        landed = self._accumulated or self._landed  # all by autograd.grad: gradients put together by hand
        counted = frozenset(landed if any(map(learns, self.layers.values())) else _all_passes(uses))
        for use in (use for found in uses.values() for use in found):
            use.settle(sorted(counted))
        self._uses = {}
        self.clear()
        settled = {
            name: sorted(
                (use for use in uses.get(name, ()) if use.delta_rule is not None), key=lambda use: use.place
            )
            for name in self.layers
        }
        return {name: found for name, found in settled.items() if found}, counted, learnt

    def _restart(self) -> None:
        for use in self._heard:
            use.signals = {}  # it may be reached again, by another pass on the same graph
        self._uses, self._landed, self._accumulated, self._learnt = {}, set(), set(), set()

    def _gradients_are_cleared(self) -> bool:
        weights = [parameter_of(layer) for layer in self.layers.values() if learns(layer)]
        gradients = [weight.grad for weight in weights if weight is not None]
        return bool(gradients) and not any(isinstance(g, Tensor) and bool(g.any()) for g in gradients)


def learns(layer: nn.Module) -> bool:
    """Whether the weight is a parameter that takes gradients (not frozen, nor computed from others)."""
    weight = parameter_of(layer)
    return weight is not None and weight.requires_grad


def _all_passes(arrived: Mapping[str, Mapping[Use, None]]) -> set[int]:
    return {p for uses in arrived.values() for use in uses for p in use.signals.get("delta_rule", ())}
