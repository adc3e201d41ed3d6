"""K networks side by side: linear layers whose weight, bias and B lead with a dimension of runs, (K, out, in).

The layer is a layer with feedback like any other: the same Function, the same clock, and the very rule of its members, which
refreshes the B of all at once. Random draws alone are made run by run, each from its own seed, so that each run gets the
numbers that it would get by itself. Where the members learn by different rules, those of each rule are a lane.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from alignlab.rules.credit import Credit
from alignlab.rules.initialisation import Init, draw, draw_magnitude
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.learned import pass_notes_on
from alignlab.rules.linear import FeedbackLinear
from alignlab.rules.rule import Rule
from alignlab.rules.runs import Seeds


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


class StackedLinear(FeedbackLinear):
    """The same layer of K networks, ``(K, N, in) → (K, N, out)``, by one rule with one setting, or one that serves many.

    Its parameters hold copies of the members', in their order. ``weight``: where the stack of them is already.
    """

    feedback_seed: Seeds  # type: ignore[assignment]

    def __init__(
        self, members: Sequence[FeedbackLayer], credit: Credit, weight: Tensor | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.runs, first = len(members), members[0]
        self.out_features, self.in_features = first.weight.shape
        self.weight = (
            stacked([m.weight for m in members])
            if weight is None
            else nn.Parameter(weight, first.weight.requires_grad)
        )
        own = weight is None and first.bias is not None  # a lane's layer is never run
        self.bias = stacked([m.bias for m in members]) if own else None
        self.prepare(self._rule_of(members), credit, Seeds(m.feedback_seed for m in members))
        self._take_feedback(members)

    def _rule_of(self, members: Sequence[FeedbackLayer]) -> Rule:
        return members[0].rule.together([m.rule for m in members])

    def _take_feedback(self, members: Sequence[FeedbackLayer]) -> None:
        drawn = [m.feedback for m in members if m.feedback is not None]
        if drawn:
            self.feedback = stacked(drawn) if self.rule.learns_feedback else torch.stack(drawn)
        sizes = [m.feedback_magnitude for m in members if m.feedback_magnitude is not None]
        if sizes:
            self.feedback_magnitude = torch.stack([size if size.dim() else size.view(1, 1) for size in sizes])

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

    def neurons(self, weight: Tensor) -> Tensor:
        return weight

    def norm(self, weight: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.matrix_norm(weight, keepdim=True)
        return norm

    def drawn(self, init: str | Init, seed: Seeds) -> Tensor:  # type: ignore[override]
        return self.drawn_as(init, seed, self.weight[0])

    def drawn_as(self, init: str | Init, seed: Seeds, like: Tensor) -> Tensor:  # type: ignore[override]
        return torch.stack([draw(init, like, own) for own in seed])

    def drawn_magnitude(self, init: str | Init, seed: Seeds) -> Tensor:  # type: ignore[override]
        return torch.stack([draw_magnitude(init, self.weight[0], own) for own in seed])

    def noise(self, rows: int, like: Tensor, seed: Seeds) -> Tensor:  # type: ignore[override]
        return torch.stack([super(StackedLinear, self).noise(rows, like[0], own) for own in seed])

    def propagate(self, signal: Tensor) -> Tensor:
        return signal @ self.weight.mT.to(signal.dtype)

    def takes_one_sample(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2


class SideBySide(Rule):
    """Layerwise rules of several kinds, each in its lane."""

    name = "side_by_side"


class MixedLinear(StackedLinear):
    """The same layer of K networks that learn by different rules: B of all is made of the lanes'; under backprop it is W."""

    def __init__(self, members: Sequence[FeedbackLayer], credit: Credit) -> None:
        super().__init__(members, credit)
        self.lanes, at = list[StackedLinear](), 0
        for own in in_lanes(members):
            weight = self.weight.detach()[
                at : at + len(own)
            ]  # shares memory, and the version that clocks read
            self.lanes.append(StackedLinear(own, Credit(), weight))
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


def stack_layers(members: Sequence[FeedbackLayer], credit: Credit) -> StackedLinear:
    """One layer of K runs out of K layers of one run each; those of one lane side by side.

    Raises ``ValueError`` where they are no linear layers of one shape, or learn by rules that cannot stand side by side.
    """
    kinds = {type(m).__name__ for m in members}
    if kinds != {"FeedbackLinear"}:
        raise ValueError(f"only linear layers can be stacked, not {', '.join(sorted(kinds))}")
    if len({company(m.rule) for m in members}) > 1:
        alone = sorted({repr(m.rule) for m in members if not mixes(m.rule)})
        raise ValueError(
            f"members of {', '.join(alone)} cannot be stacked with members of other rules or settings"
        )
    one_rule = members[0].rule.each_its_own or len(in_lanes(members)) == 1
    return StackedLinear(members, credit) if one_rule else MixedLinear(members, credit)


def in_lanes(members: Iterable[FeedbackLayer]) -> list[list[FeedbackLayer]]:
    """The members that follow each other by one rule with one setting."""
    return [list(own) for _, own in groupby(members, key=lambda m: lane_of(m.rule))]


def stacked(parameters: Sequence[Tensor]) -> nn.Parameter:
    """K parameters as one, (K, …)."""
    return nn.Parameter(torch.stack([p.detach() for p in parameters]), parameters[0].requires_grad)
