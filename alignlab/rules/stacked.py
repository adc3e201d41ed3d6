"""K layers side by side as one, whose weight, bias and B lead with a dimension of runs: (K, out, in), (K, C_out, C_in, k, k).

The layer is a layer with feedback like any other: the same Function, the same clock, and the very rule of its members, which
refreshes the B of all at once. Random draws alone are made run by run, each from its own seed, so that each run gets the
numbers that it would get by itself. Where the members learn by different rules, those of each rule are a lane.

What is common to all kinds of layer is here, with the linear one; :mod:`alignlab.rules.stacked_maps` has the convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from alignlab.rules.credit import Credit
from alignlab.rules.initialisation import Init
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.learned import pass_notes_on
from alignlab.rules.linear import FeedbackLinear
from alignlab.rules.rule import Rule
from alignlab.rules.runs import Seeds


class Stacked(FeedbackLayer):
    """What layers of K runs share, before the class of their members: ``(K, N, …) → (K, N, …)``, by one rule with one
    setting, or one that serves many.

    Its parameters hold copies of the members', in their order. ``weight``: where the stack of them is already.
    """

    feedback_seed: Seeds  # type: ignore[assignment]

    def __init__(
        self, members: Sequence[FeedbackLayer], credit: Credit, weight: Tensor | None = None
    ) -> None:
        nn.Module.__init__(self)
        first = members[0]
        vars(self).update({name: value for name, value in vars(first).items() if name not in vars(self)})
        self.runs, self._one = len(members), (first,)  # in a tuple it is no part of the model
        self.weight = (
            stacked([m.weight for m in members])
            if weight is None
            else nn.Parameter(weight, first.weight.requires_grad)
        )
        own = weight is None and first.bias is not None  # a lane's layer is never run
        self.bias = stacked([m.bias for m in members]) if own else None
        self.prepare(self._rule_of(members), credit, Seeds(m.feedback_seed for m in members))
        self._take_feedback(members)

    @property
    def one(self) -> Any:
        """A layer of one run, as all of them are but for their numbers."""
        return self._one[0]

    def _rule_of(self, members: Sequence[FeedbackLayer]) -> Rule:
        return members[0].rule.together([m.rule for m in members])

    def _take_feedback(self, members: Sequence[FeedbackLayer]) -> None:
        drawn = [m.feedback for m in members if m.feedback is not None]
        if drawn:
            self.feedback = stacked(drawn) if self.rule.learns_feedback else torch.stack(drawn)
        kept = [m.feedback_unscaled for m in members if m.feedback_unscaled is not None]
        if kept:
            self.feedback_unscaled = torch.stack(kept)
        sizes = [m.feedback_magnitude for m in members if m.feedback_magnitude is not None]
        if sizes:
            numbers = (1,) * self.one.weight.dim()  # to be broadcast with a weight
            self.feedback_magnitude = torch.stack(
                [size if size.dim() else size.view(numbers) for size in sizes]
            )

    def narrow(self, rows: Tensor, weight: Tensor | None = None) -> None:
        """Go on with these ``rows`` of the runs alone, in their order; between two passes.

        Its parameters are new ones then, with copies. ``weight``: where the rows of it are already.
        """
        seen = self._resume_point()
        for name, p in list(self._parameters.items()):
            if p is not None:
                kept = p.detach()[rows] if name != "weight" or weight is None else weight
                narrowed = nn.Parameter(kept, p.requires_grad)
                setattr(self, name, narrowed)
                if name == "feedback":
                    pass_notes_on(p, narrowed)
        self._buffers |= {name: None if b is None else b[rows] for name, b in self._buffers.items()}
        self._seen = seen
        self.runs, self.feedback_seed = len(rows), Seeds(self.feedback_seed[k] for k in rows.tolist())
        self.rule.narrow(rows.tolist())

    def norm(self, weight: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
        return norm

    def drawn(self, init: str | Init, seed: Seeds) -> Tensor:  # type: ignore[override]
        return torch.stack([self.one.drawn(init, own) for own in seed])

    def drawn_as(self, init: str | Init, seed: Seeds, like: Tensor) -> Tensor:  # type: ignore[override]
        return torch.stack([self.one.drawn_as(init, own, like) for own in seed])

    def drawn_magnitude(self, init: str | Init, seed: Seeds) -> Tensor:  # type: ignore[override]
        return torch.stack([self.one.drawn_magnitude(init, own) for own in seed])

    def noise(self, rows: int, like: Tensor, seed: Seeds) -> Tensor:  # type: ignore[override]
        each = torch.stack([self.one.noise(rows, like[0], own) for own in seed])
        return each.view(len(seed), *[1] * (like.dim() - 3), *each.shape[1:])

    def takes_one_sample(self, shape: tuple[int, ...]) -> bool:
        return bool(self.one.takes_one_sample(shape[1:]))


class StackedLinear(Stacked, FeedbackLinear):
    """The same linear layer of K networks, ``(K, N, in) → (K, N, out)``."""

    def neurons(self, weight: Tensor) -> Tensor:
        return weight

    def propagate(self, signal: Tensor) -> Tensor:
        return signal @ self.weight.mT.to(signal.dtype)


class SideBySide(Rule):
    """Layerwise rules of several kinds, each in its lane."""

    name = "side_by_side"


class Mixed(Stacked):
    """The same layer of K networks that learn by different rules: B of all is made of the lanes'; under backprop it is W.

    Before the class of the lanes, ``alike``.
    """

    alike: ClassVar[type[Stacked]]

    def __init__(self, members: Sequence[FeedbackLayer], credit: Credit) -> None:
        super().__init__(members, credit)
        self.lanes, at = list[Stacked](), 0
        for own in in_lanes(members):
            weight = self.weight.detach()[
                at : at + len(own)
            ]  # shares memory, and the version that clocks read
            self.lanes.append(self.alike(own, Credit(), weight))
            at += len(own)
        self._gathered = list[Tensor]()

    def narrow(self, rows: Tensor, weight: Tensor | None = None) -> None:
        super().narrow(rows, weight)
        lanes, self.lanes, at, taken = self.lanes, [], 0, 0
        for lane in lanes:
            end = at + len(lane.feedback_seed)
            own, at = rows[(rows >= at) & (rows < end)] - at, end
            if len(own):
                lane.narrow(own, self.weight.detach()[taken : taken + len(own)])
                self.lanes.append(lane)
                taken += len(own)

    def _rule_of(self, members: Sequence[FeedbackLayer]) -> Rule:
        return SideBySide()

    def _take_feedback(self, members: Sequence[FeedbackLayer]) -> None:
        """The lanes have it."""

    def tick(self, used: bool = True) -> None:
        for lane in self.lanes:
            lane.tick(used)
        parts = [lane.carrier() for lane in self.lanes]
        learns = self.weight.requires_grad and any(lane.feedback is None for lane in self.lanes)
        if used and (learns or [id(p) for p in parts] != [id(p) for p in self._gathered]):
            self.feedback, self._gathered = torch.cat([part.detach() for part in parts]), parts


class MixedLinear(Mixed, StackedLinear):
    alike = StackedLinear


def lane_of(rule: Rule) -> str:
    """What members must share to be refreshed together: the rule with its settings."""
    return repr(rule)


def mixes(rule: Rule) -> bool:
    """Whether members of this rule can stand beside members of others: all that it changes is the B that an error meets."""
    return not (rule.direct or rule.whole or rule.learns_feedback)


def company(rule: Rule) -> str:
    """What members must share to stand side by side."""
    if mixes(rule):
        return "layerwise"
    return rule.name if rule.each_its_own else lane_of(rule)


def in_lanes(members: Iterable[FeedbackLayer]) -> list[list[FeedbackLayer]]:
    """The members that follow each other by one rule with one setting."""
    return [list(own) for _, own in groupby(members, key=lambda m: lane_of(m.rule))]


def stacked(parameters: Sequence[Tensor]) -> nn.Parameter:
    """K parameters as one, (K, …)."""
    return nn.Parameter(torch.stack([p.detach() for p in parameters]), parameters[0].requires_grad)
