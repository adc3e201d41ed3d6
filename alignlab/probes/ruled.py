"""A recording is of one rule: which layers have it is noted at its start, and may not change before its end."""

from __future__ import annotations

from torch import nn

from alignlab.probes.errors import ProbeError
from alignlab.rules.credit import Credit
from alignlab.rules.layers import FeedbackLayer


class Ruled:
    """The converted layers of a model, and what their rules are like, as they were when :meth:`check` was first called."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.credits: list[Credit] = []
        self.is_backprop = self.is_direct = self.is_explicit = self.is_estimate = False
        self.is_chained = True  # whether errors are handed down from layer to layer
        self._first: dict[str, Credit] | None = None

    def check(self) -> None:
        """Raise :class:`ProbeError` for a part of a converted model, and where rules changed since: the run's coordinate
        ``rule`` would be false, and the hooks were chosen by it."""
        now = {name: m.credit for name, m in self.model.named_modules() if isinstance(m, FeedbackLayer)}
        if self._first is None:
            self._refuse_part(list(now.values()))
            self._first = now
            self._note([m for m in self.model.modules() if isinstance(m, FeedbackLayer)])
        changed = [name for name in {**self._first, **now} if self._first.get(name) is not now.get(name)]
        if changed:
            raise ProbeError(
                f"layer {changed[0] or 'root'!r} was converted or reverted while recording, so that the angles and the "
                "run's coordinate 'rule' would be false: end this recorder before, and start another after"
            )

    def _note(self, layers: list[FeedbackLayer]) -> None:
        self.credits = list({id(layer.credit): layer.credit for layer in layers}.values())
        self.is_backprop = not any(layer.rule.uses_feedback or layer.rule.whole for layer in layers)
        self.is_direct = any(layer.rule.direct for layer in layers)
        self.is_explicit = any(layer.rule.explicit for layer in layers)
        self.is_estimate = any(layer.rule.closure for layer in layers)
        self.is_chained = not (self.is_direct or self.is_explicit or self.is_estimate)

    def _refuse_part(self, shared: list[Credit]) -> None:
        if any(sum(credit is other for other in shared) < len(credit.layers) for credit in shared):
            raise ProbeError(
                f"{type(self.model).__name__} is a part of what was converted, and the error that comes to it from the "
                "other converted layers is not the true one: give the recorder the converted model"
            )
