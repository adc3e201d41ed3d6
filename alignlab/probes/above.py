"""Converted layers above the recorded model: between its output and the loss, where its hooks do not reach.

The error that comes through such a layer was handed down by B, and the true one is not known. A head that is called outside of
the model's ``forward``, or a second model, converted by itself, that takes what the first one returns.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from alignlab.probes.errors import ProbeError
from alignlab.probes.hooks import Hook, depends_on_tap, nodes_of, signal_edge, weakly
from alignlab.probes.truth import somebody_asks
from alignlab.rules.layers import FeedbackLayer

# torch warns of hooks on all modules where a compiled one is called: measured steps run uncompiled, and ours looks on alone
warnings.filterwarnings(
    "ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks", category=UserWarning
)


class Above:
    """Looks at every converted layer that is called while it watches, outside of the forward pass of the ``owner`` of taps."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.inside = False  # whether the recorded model's own forward pass runs
        self.seen = False  # whether there is such a layer, be it above or elsewhere

    def watch(self) -> Any:
        """Start; returns the handle that ends it."""
        self.inside = False
        return register_module_forward_hook(Hook(weakly(self._on_call)))

    def _on_call(self, layer: nn.Module, args: Any, output: Any) -> None:
        if self.inside or not isinstance(layer, FeedbackLayer) or torch._C._current_graph_task_id() != -1:
            return
        if not (layer.rule.uses_feedback and isinstance(output, Tensor) and output.requires_grad):
            return
        self.seen = True
        if layer.rule.direct or not depends_on_tap(nodes_of(args), self.owner):
            return  # hands nothing down; or lies below

        def handed(errors: Sequence[Tensor | None]) -> None:
            if any(error is not None for error in errors) and not somebody_asks([layer.credit]):
                raise ProbeError(
                    f"a {type(layer).__name__} that learns by {layer.rule.name} stands between the recorded model's output and "
                    "the loss, so that the error which comes from it is not the true one: put both into one module, convert "
                    "that, and give it to the recorder"
                )

        signal_edge(output, owned=False).node.register_prehook(handed)
