"""A rule's feedback with its direction and its scale taken apart: is it where B points, or how large it is?

The scale of B is its root mean square, layer by layer. An error that passes a B larger than W by a factor c arrives c times as
loud, one more time at every layer that it passes: unscaled signs, whose entries are ±1 where those of W are about 1/√fan_in,
are the case that alignlab began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignlab.rules.initialisation import Init
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.rule import Rule

SOURCES = ("rule", "weight")


class Rescaled(Rule):
    """``B = D · rms(S) / rms(D)`` in each layer, with D the B of another rule or W, and S likewise; new at every step.

    ``of``: the rule whose B it is, by name or with its arguments, ``{"rule": "sign_sync", "period": 10}``. ``direction``: whose
    D is, ``rule`` or ``weight``; ``scale``: whose rms B has. By default the rule's B at the scale of W. (rule, rule) is the
    rule itself, (weight, weight) backprop. The rms is over all entries of a layer's weight. A D of zeros has no direction:
    B is 0, as it is where S is.

    The rule goes on with a B of its own, the buffer ``feedback_unscaled``: what it keeps there from refresh to refresh is not
    touched, and a mirror learns as it would. Only layerwise rules have a B in the shape of W, and one that the optimizer
    steps cannot be another than the one that errors pass: direct, perturbation and ``soap`` rules, ``bp`` and
    ``kolen_pollack`` raise ``ValueError``.
    """

    name = "rescaled"

    def __init__(
        self,
        of: str | Rule | Mapping[str, Any] = "sign_sync",
        direction: str = "rule",
        scale: str = "weight",
        init: str | Init | None = None,
    ) -> None:
        for key, value in (("direction", direction), ("scale", scale)):
            if value not in SOURCES:
                raise ValueError(f"rescaled: {key} is {value!r}, expected 'rule' or 'weight'")
        self._rule = _made(of, init)
        self.of = {"rule": self._rule.name, **self._rule.settings()}
        self.direction, self.scale, self.init = direction, scale, self._rule.init

    @property
    def every_forward(self) -> bool:  # type: ignore[override]
        return self._rule.every_forward

    @property
    def rests(self) -> bool:  # type: ignore[override]
        return self._rule.rests or not self._rule.has_clock  # a B that stays follows W when it is asked for

    @property
    def stacks(self) -> bool:  # type: ignore[override]
        return self._rule.stacks

    @property
    def draws(self) -> bool:
        return self._rule.draws

    @property
    def made_of(self) -> tuple[Rule, ...]:
        return (self, *self._rule.made_of)

    def taught_weight(self, layer: FeedbackLayer, x: Tensor) -> Tensor:
        return self._rule.taught_weight(layer, x)

    def start(self, layer: FeedbackLayer) -> None:
        self._rule.start(layer)
        self._rescale(layer)

    def refresh(self, layer: FeedbackLayer) -> None:
        layer.feedback = layer.feedback_unscaled
        self._rule.refresh(layer)
        self._rescale(layer)

    def _rescale(self, layer: FeedbackLayer) -> None:
        assert layer.feedback is not None
        layer.feedback_unscaled = layer.feedback
        sources = {"rule": layer.feedback, "weight": layer.weight.detach()}
        D, length, size = (
            sources[self.direction],
            *(_norm(layer, sources[k]) for k in (self.direction, self.scale)),
        )
        layer.feedback = (D * torch.where(length == 0, 0, size / length)).to(D.dtype)


def _norm(layer: FeedbackLayer, x: Tensor) -> Tensor:
    """In float32 at least, for each run: norms of tensors of one shape are to each other as their rms."""
    return layer.norm(x.to(torch.promote_types(x.dtype, torch.float32)))


def _made(of: Any, init: str | Init | None) -> Rule:
    """The rule that ``of`` names. Raises ``ValueError`` where it has no B that could be rescaled."""
    from alignlab.rules.choosing import make_rule  # which knows this rule among all others

    arguments = {k: v for k, v in of.items() if k != "rule"} if isinstance(of, Mapping) else {}
    if isinstance(of, Mapping) and not isinstance(of.get("rule"), str | Rule):
        raise ValueError(
            f'rescaled: of is {of!r}, expected a rule\'s name or {{"rule": name, argument: value}}'
        )
    named = of["rule"] if isinstance(of, Mapping) else of
    made = make_rule(named, **({} if init is None else {"init": init}) | arguments)
    if why := _why_not(made):
        raise ValueError(f"rescaled: {made.name} {why}; take a layerwise rule, fa or sign_sync for example")
    return made


def _why_not(rule: Rule) -> str:
    """Why there is no B in the shape of W to rescale; empty where there is."""
    if isinstance(rule, Rescaled):
        return "is rescaled already"
    if rule.direct:
        return "sends the error straight to each layer, by a B that is not of W's shape"
    if rule.whole or not rule.hands_down:
        return "does not learn by what a B alone hands down from layer to layer"
    if not rule.uses_feedback:
        return "has no B of its own"
    return (
        "has a B that the optimizer steps, which cannot have another scale than it learns"
        if rule.learns_feedback
        else ""
    )
