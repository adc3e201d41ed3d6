"""What comes to the weights: which backward passes brought it, whether it is the deltaᵀ h of the signals seen, and itself where
a rule's weight gradient is none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.probes.arrivals import Arrivals, Taken, learns
from alignlab.probes.errors import ProbeError
from alignlab.probes.hooks import Hook, weakly
from alignlab.probes.ruled import Ruled
from alignlab.probes.selftest import GradientTest
from alignlab.probes.truth import somebody_asks
from alignlab.probes.uses import Use, parameter_of, weights_behind


class Landing:
    """Tells ``arrivals`` of the gradients that land in its layers' weights, and keeps or tests them."""

    def __init__(self, arrivals: Arrivals, ruled: Ruled, steps: Callable[[nn.Parameter], bool]) -> None:
        self.arrivals, self.test, self.steps = arrivals, GradientTest(), steps
        self.landed: dict[str, Tensor] = {}  # by layer, of what was last settled
        self._ruled = ruled
        self._known: dict[str, list[nn.Parameter]] = {}
        self._frozen: dict[str, list[nn.Parameter]] = {}  # the weights that are not listened to yet
        self._parts: dict[str, dict[int, Tensor]] = {}  # by layer and backward pass
        self._derived = False  # whether the weights' gradients of what was last settled are no deltaᵀ h

    def listen(self, name: str, layer: nn.Module) -> list[Any]:
        """Start with one layer's weight, or, called again, with what was frozen and is no more, and with one that took
        another's place and that the optimizer steps (``torch.func`` lends layers others for a call); returns the handles."""
        found: list[Any] = list(weights_behind(layer))
        if name in self._known:
            known = self._known[name]
            new = [w for w in found if all(w is not other for other in known) and self.steps(w)]
            known += new
            found = self._frozen[name] + new
        else:
            self._known[name] = list(found)
        weights = [weight for weight in found if weight.requires_grad]
        self._frozen[name] = [weight for weight in found if not weight.requires_grad]
        handles = [w.register_post_accumulate_grad_hook(weakly(self.arrivals.accumulate)) for w in weights]
        if weights and learns(layer):
            handles.append(weights[0].register_hook(Hook(weakly(self._on_gradient, name, id(weights[0])))))
        return handles

    def knows(self, name: str, weight: nn.Parameter) -> bool:
        """Whether the layer's weight is listened to, or will be once it takes gradients."""
        return any(weight is known for known in self._known.get(name, ()))

    def settle(self, taken: Taken) -> None:
        """Add up what the passes that count for each layer brought, where it is asked for; begin anew."""
        parts, self._parts = self._parts, {}
        self._derived = taken.derived and self._ruled.is_backprop
        if self._derived:
            _check_known(taken, parts)
        elif not self._ruled.is_explicit:
            parts = {}
        counted = {
            name: [gradient for p, gradient in by_pass.items() if p in taken.passes[name]]
            for name, by_pass in parts.items()
        }
        self.landed = {name: sum(found[1:], found[0]) for name, found in counted.items() if found}

    def check(self, taken: Mapping[str, Sequence[Use]], passes: Mapping[str, Collection[int]]) -> None:
        """Compare what landed with the deltaᵀ h of what was ``taken``, see :meth:`GradientTest.check`."""
        if not self._ruled.is_explicit:
            self.test.check(
                taken, self.arrivals.layers, dict.fromkeys(passes, ()) if self._derived else passes
            )

    def clear(self) -> None:
        """Drop what was not settled; the handles that listen were removed."""
        self._parts, self._frozen, self._known = {}, {}, {}

    def _on_gradient(self, name: str, of: int, gradient: Tensor | None) -> None:
        if gradient is None:
            return  # a direct rule sends nothing below its own layers
        if (weight := parameter_of(self.arrivals.layers[name])) is not None and id(weight) != of:
            return  # another took its place, and it goes on in another layer
        if somebody_asks(self._ruled.credits):
            return
        self.arrivals.land(name)
        if self._keeps:
            by_pass, task = self._parts.setdefault(name, {}), torch._C._current_graph_task_id()
            by_pass[task] = by_pass.get(task, 0) + gradient.detach().clone()  # .grad takes its memory
        if not (self._ruled.is_explicit or self.arrivals.closed):
            self.test.note(name, self.arrivals.layers[name], gradient)

    @property
    def _keeps(self) -> bool:
        """Whether what lands may be asked for. The first steps of all are: a derivative may follow in the same step."""
        may_derive = self._ruled.is_backprop and (self.arrivals.derives or self.test.due)
        return self._ruled.is_explicit or may_derive


def _check_known(taken: Taken, parts: Mapping[str, Mapping[int, Tensor]]) -> None:
    for name in taken.uses:
        if not taken.passes[name] <= parts.get(name, {}).keys():
            raise ProbeError(
                f"layer {name!r}: the loss holds a derivative of the model (create_graph=True), so that the weight's gradient "
                "is no deltaᵀ h, and what came to the weight is not known (it is frozen, computed from others, or the "
                "derivative came late): leave the layer out with layers="
            )
