"""The signals that pass the layers: where the errors of one use of a layer arrive, and what its rule makes of them.

Which node of the graph tells depends on the rule: the layer's own where errors are handed down from layer to layer, its gate
where a direct rule delivers them or a perturbation rule estimates them. What arrives where nothing may is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge

from alignlab.probes.arrivals import Arrivals
from alignlab.probes.errors import ProbeError
from alignlab.probes.hooks import broadcasts, hands_down, nodes_of
from alignlab.probes.ruled import Ruled
from alignlab.probes.truth import somebody_asks
from alignlab.probes.uses import Use, rule_of, used_feedback
from alignlab.rules.functions import gate_of
from alignlab.rules.sites import is_gate

BESIDE = (
    "layer {name!r}: the loss depends on the model past its output too (on hidden activations or weights), so the true "
    "gradient of what the rule learns from is unknown. Return such activations from the model beside its output; weight decay "
    "belongs to the optimizer"
)


class Signals:
    """Tells ``arrivals`` of the errors that reach the uses of layers, and notes beside them what is measured too."""

    def __init__(self, arrivals: Arrivals, ruled: Ruled) -> None:
        self.arrivals, self._ruled = arrivals, ruled

    def listen(self, name: str, use: Use, edge: GradientEdge) -> None:
        """Start with one use of the layer ``name``, whose error arrives at ``edge``; the use has the handles that end it."""
        node, slot, rule = edge.node, edge.output_nr, rule_of(use.layer)
        arrived = partial(self._on_error, name, use, slot)
        if rule is not None and rule.explicit:
            use.handles.append(node.register_prehook(partial(self._on_stray, name, slot)))
        elif rule is not None and rule.closure and is_gate(node):
            use.handles.append(node.register_hook(lambda passed, _: arrived(passed)))
        elif rule is not None and rule.direct:
            # by the chain nothing comes; what the rule delivers is told by the layer's gate
            gate = gate_of(node)
            assert gate is not None
            gate.apart = True
            use.handles.append(gate.tell(partial(self._on_reached, name, use)))
            use.handles.append(node.register_prehook(partial(self._on_beside, name, slot)))
        else:
            use.handles.append(node.register_prehook(arrived))
            if use.reaches_input and use.feedback is not None and hands_down(node):
                use.handles.append(node.register_hook(partial(self._on_handed, use)))

    def listen_to_broadcast(self, output: Any, uses: Sequence[Use]) -> None:
        """Note at each use the error of the model's ``output`` that a direct rule hands out."""
        for use in uses:
            use.feedback = used_feedback(use.layer)  # drawn when the first pass ended
        for node in broadcasts(nodes_of(output)):
            uses[0].handles.append(node.register_prehook(partial(self._on_broadcast, uses)))

    @property
    def _counts(self) -> bool:
        """Whether what arrives now is the run's own, and may have a part in the update."""
        return not somebody_asks(self._ruled.credits) and self.arrivals.counts()

    def _on_reached(self, name: str, use: Use, error: Tensor) -> None:
        if self._counts:
            self.arrivals.reach(name, use, error.detach().reshape(use.shape))

    def _on_error(self, name: str, use: Use, slot: int, grads: Sequence[Tensor | None]) -> None:
        if (error := grads[slot]) is not None:
            self._on_reached(name, use, error)

    def _on_stray(self, name: str, slot: int, grads: Sequence[Tensor | None]) -> None:
        """Under a rule of which nothing travels but what we ask for."""
        error = grads[slot]
        if error is not None and not somebody_asks(self._ruled.credits) and bool(error.any()):
            raise ProbeError(BESIDE.format(name=name))

    def _on_beside(self, name: str, slot: int, grads: Sequence[Tensor | None]) -> None:
        """Of a direct rule, by the chain."""
        delivered = any(credit.delivering for credit in self._ruled.credits)
        asked, extra = somebody_asks(self._ruled.credits) or delivered, grads[slot]
        # a full backward hook of the loop's own turns nothing into zeros
        if extra is not None and not asked and bool(extra.any()) and self.arrivals.counts():
            raise ProbeError(
                f"layer {name!r} receives an error beside the one that the direct rule sends it, so its true error is "
                "unknown: a loss on activations inside the model. Measure such a run under backprop or a layerwise rule"
            )

    def _on_handed(self, use: Use, passed: Sequence[Tensor | None], _: Any) -> None:
        """A layer's own backward pass has carried its error down: the product need not be formed a second time."""
        signal = passed[0]
        if signal is None or signal.shape != use.h.shape or signal.element_size() < 4:
            return  # into padding, or too coarse
        if self._counts:
            use.note("handed", self.arrivals.current, signal.detach())

    def _on_broadcast(self, uses: Sequence[Use], grads: Sequence[Tensor | None]) -> None:
        if grads[0] is not None and self._counts:
            for use in uses:
                use.note("error", self.arrivals.current, grads[0].detach())
