"""What comes to the weights: which backward passes brought it, whether it is the deltaᵀ h of the signals seen, and itself where
a rule's weight gradient is none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.probes.arrivals import Arrivals, learns
from alignlab.probes.hooks import Hook, weakly
from alignlab.probes.ruled import Ruled
from alignlab.probes.selftest import GradientTest
from alignlab.probes.truth import somebody_asks
from alignlab.probes.uses import Use, weights_behind


class Landing:
    """Tells ``arrivals`` of the gradients that land in its layers' weights, and keeps or tests them."""

    def __init__(self, arrivals: Arrivals, ruled: Ruled) -> None:
        self.arrivals, self.test = arrivals, GradientTest()
        self.landed: dict[str, Tensor] = {}  # by layer, of what was last settled
        self._ruled = ruled
        self._heard: dict[str, list[nn.Parameter]] = {}  # the weights that are listened to
        self._parts: dict[str, dict[int, Tensor]] = {}  # by layer and backward pass

    def listen(self, name: str, layer: nn.Module) -> list[Any]:
        """Start with one layer's weight, or with what became trainable since; returns the handles that end it."""
        heard = self._heard.setdefault(name, [])
        weights: list[Any] = [
            w for w in weights_behind(layer) if w.requires_grad and not any(w is other for other in heard)
        ]
        heard += weights
        handles = [w.register_post_accumulate_grad_hook(weakly(self.arrivals.accumulate)) for w in weights]
        if weights and learns(layer):
            handles.append(weights[0].register_hook(Hook(weakly(self._on_gradient, name))))
        return handles

    def settle(self, passes: Mapping[str, Collection[int]]) -> None:
        """Add up what the ``passes`` that count for each layer brought; begin anew."""
        parts, self._parts = self._parts, {}
        counted = {
            name: [gradient for p, gradient in by_pass.items() if p in passes[name]]
            for name, by_pass in parts.items()
        }
        self.landed = {name: sum(found[1:], found[0]) for name, found in counted.items() if found}

    def check(self, taken: Mapping[str, Sequence[Use]], passes: Mapping[str, Collection[int]]) -> None:
        """Compare what landed with the deltaᵀ h of what was ``taken``, see :meth:`GradientTest.check`."""
        if not self._ruled.is_explicit:
            self.test.check(taken, self.arrivals.layers, passes)

    def clear(self) -> None:
        """Drop what was not settled; the handles that listen were removed."""
        self._parts, self._heard = {}, {}

    def _on_gradient(self, name: str, gradient: Tensor | None) -> None:
        if gradient is None:
            return  # a direct rule sends nothing below its own layers
        if somebody_asks(self._ruled.credits):
            return
        self.arrivals.land(name)
        if self._ruled.is_explicit:
            by_pass, task = self._parts.setdefault(name, {}), torch._C._current_graph_task_id()
            by_pass[task] = by_pass.get(task, 0) + gradient.detach().clone()  # .grad takes its memory
        else:
            self.test.note(name, self.arrivals.layers[name], gradient)
