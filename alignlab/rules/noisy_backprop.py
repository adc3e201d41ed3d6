"""Backprop whose weight gradients are turned by noise to a given angle: what is a rule's angle alone worth?

Two rules of one cosine to backprop may still differ in the direction of what is not backprop. This is the comparison: the
same cosine, layer by layer and step by step if wanted, and a random rest (the noise that Lillicrap et al. 2016 have in mind
when they ask how far within 90° a gradient must lie).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignlab.checks import is_number, is_whole
from alignlab.rules.convertible import feedback_layers
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.outlet import Errors, Handout, backprop_gradients
from alignlab.rules.replay import Noise
from alignlab.rules.rule import Rule
from alignlab.rules.runs import Seeds, beside, each_run

if TYPE_CHECKING:
    from torch.autograd.graph import GradientEdge

    from alignlab.rules.credit import Credit

Table = Mapping[str, Sequence[float]]
Number = float | Tensor  # one, or (K, 1) for K runs


class NoisyBackprop(Rule):
    """``G = gain ‖G_bp‖ (c Ĝ_bp + √(1 − c²) N̂)`` with N̂ random of length 1, orthogonal to G_bp; one draw a layer and step.

    ``cosine``: c between −1 and 1, for all layers; or a table {layer name: [c at the first step, …]}. ``gain``: a factor, or
    such a table. ``steps``: at which steps (changes of the weights, from 0) the tables' entries begin to hold, each up to
    the next; without it, 0, 1, 2, …. Layers that a table leaves out keep cosine 1 or gain 1.

    Weights alone are turned. A layer's bias takes the gain, so that its whole step is louder and nothing else, and
    normalisations learn by backprop. The error travels down through W as it is, to the model's first layer and no further:
    what lies before the model gets no gradient.
    G_bp is the weight's whole gradient from one call of the model, so tied weights and layers used twice are turned once.
    Micro-batches of one step are turned one by one, with the same draw: their sum has another cosine. What a loss sends
    to hidden activations or adds as a penalty past the model's output is not turned.
    """

    name = "noisy_backprop"
    uses_feedback = False
    explicit = True
    each_its_own = True

    def __init__(
        self, cosine: float | Table = 0.5, gain: float | Table = 1.0, steps: Sequence[int] | None = None
    ) -> None:
        tables = [t for t in (cosine, gain) if isinstance(t, Mapping)]
        length = _length(tables, steps)
        self.steps = None if steps is None else _steps(steps)
        self.cosine = _checked("cosine", cosine, length, -1, 1)
        self.gain = _checked("gain", gain, length, 0, math.inf)

    def start(self, layer: FeedbackLayer) -> None:
        """Raise ``ValueError`` for a weight that has no direction orthogonal to its gradient."""
        if layer.weight.numel() < 2:
            raise ValueError(f"{self.name}: a weight of one entry cannot be turned to a cosine")

    def refresh(self, layer: FeedbackLayer) -> None:
        """Nothing to bring up to date; but noise and tables follow the clock, which so has to tick."""

    def fits(self, names: Sequence[str]) -> None:
        for table in (self.cosine, self.gain):
            unknown = [name for name in table if name not in names] if isinstance(table, Mapping) else []
            if unknown:
                raise ValueError(
                    f"{self.name}: {', '.join(map(repr, unknown))} names no converted layer; there are {', '.join(names)}"
                )

    def together(self, members: Sequence[Rule]) -> Rule:
        own = [rule for rule in members if isinstance(rule, NoisyBackprop)]
        return self if len({repr(rule) for rule in own}) == 1 else _EachItsOwn(own)

    def handout(
        self,
        model: nn.Module,
        credit: Credit,
        edges: list[GradientEdge],
        learning: dict[str, nn.Parameter],
    ) -> Handout:
        turned, louder = self._turned(model), self._louder(model)

        def given(p: nn.Parameter, g: Tensor) -> Tensor:
            return turn(g, *turned[id(p)]) if id(p) in turned else _scaled(g, louder.get(id(p), 1.0))

        def handout(errors: Errors) -> tuple[Errors, Errors]:
            parameters = list(learning.values())
            found = backprop_gradients(edges, errors, parameters, credit)
            each = zip(parameters, found, strict=True)
            return [None] * len(errors), [None if g is None else given(p, g) for p, g in each]

        return handout

    def _turned(self, model: nn.Module) -> dict[int, tuple[Number, Number, int | Seeds]]:
        """Cosine, gain and noise of each weight at this step; of tied layers the first one's."""
        found: dict[int, tuple[Number, Number, int | Seeds]] = {}
        for name, layer in feedback_layers(model).items():
            wanted = self._wanted(name, layer.clock)
            found.setdefault(id(layer.weight), (*wanted, layer.feedback_seed + layer.clock))
        return found

    def _louder(self, model: nn.Module) -> dict[int, Number]:
        """The gain of what else a layer learns: its bias."""
        found: dict[int, Number] = {}
        for name, layer in feedback_layers(model).items():
            gain = self._wanted(name, layer.clock)[1]
            for own, parameter in layer.named_parameters(recurse=False):
                if own != "weight":
                    found.setdefault(id(parameter), gain)
        return found

    def _wanted(self, name: str, step: int) -> tuple[Number, Number]:
        """Cosine and gain of a layer."""
        return self._at(self.cosine, name, step), self._at(self.gain, name, step)

    def _at(self, table: float | Table, name: str, step: int) -> float:
        if not isinstance(table, Mapping):
            return table
        if name not in table:
            return 1.0
        values = table[name]
        place = step if self.steps is None else bisect.bisect_right(self.steps, step) - 1
        return values[min(max(place, 0), len(values) - 1)]


class _EachItsOwn(NoisyBackprop):
    """The rule of several runs side by side, of which each has its own cosines and gains."""

    def __init__(self, rules: Sequence[NoisyBackprop]) -> None:
        self._rules = rules

    def narrow(self, rows: Sequence[int]) -> None:
        self._rules = [self._rules[k] for k in rows]

    def _wanted(self, name: str, step: int) -> tuple[Number, Number]:
        each = torch.tensor(
            [rule._wanted(name, step) for rule in self._rules], dtype=torch.float64, device="cpu"
        )
        return each[:, :1], each[:, 1:]


def turn(gradient: Tensor, cosine: Number, gain: Number, seed: int | Seeds) -> Tensor:
    """``gain ‖g‖ (c ĝ + √(1 − c²) n̂)`` with n̂ drawn from ``seed``; a zero gradient has no direction and stays.

    With a seed for each of several runs every run's gradient, (K, …), is turned by itself; cosines and gains of theirs (K, 1).
    """
    wide = torch.promote_types(gradient.dtype, torch.float32)
    noise = Noise(seed).like(tuple(gradient.shape), wide, gradient.device)
    g, n = (each_run(x, len(seed) if isinstance(seed, Seeds) else None) for x in (gradient.to(wide), noise))
    square = (g * g).sum(1, keepdim=True)
    # in place: of many runs each new tensor would cost as much as a draw
    for _ in range(2):  # once more, for what rounding left
        n.addcmul_(torch.where(square > 0, (n * g).sum(1, keepdim=True) / square, 0), g, value=-1)
    size = square.sqrt() / n.norm(dim=1, keepdim=True)
    along, across = (
        share.to(g) if isinstance(share, Tensor) else share
        for share in (gain * cosine, gain * (1 - cosine**2) ** 0.5)
    )
    return n.mul_(across * size).add_(along * g).to(gradient.dtype).view(gradient.shape)


def _scaled(gradient: Tensor, gain: Number) -> Tensor:
    """``gain`` times it; a gain for each of several runs, (K, 1)."""
    return gradient * (beside(gain[:, 0].to(gradient), gradient) if isinstance(gain, Tensor) else gain)


def _length(tables: Sequence[Table], steps: Sequence[int] | None) -> int | None:
    """How many entries each row of the tables must have; None where any number will do."""
    if steps is not None and not tables:
        raise ValueError("noisy_backprop: steps belong to a table of cosines or gains, and there is none")
    return None if steps is None else len(steps)


def _steps(steps: Sequence[int]) -> list[int]:
    whole = all(is_whole(step, -math.inf) for step in steps)
    if not steps or not whole or list(steps) != sorted(set(steps)):
        raise ValueError(f"noisy_backprop: steps is {steps!r:.60}, expected whole numbers in ascending order")
    return list(steps)


def _checked(name: str, given: Any, length: int | None, low: float, high: float) -> Any:
    """A number, or a table of numbers as plain lists."""
    if not isinstance(given, Mapping):
        _check_number(name, given, low, high)
        return float(given)
    for layer, values in given.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(
                f"noisy_backprop: {name} of {layer!r} is {values!r:.60}, expected a list of numbers"
            )
        if length is not None and len(values) != length:
            raise ValueError(
                f"noisy_backprop: {name} of {layer!r} has {len(values)} entries for {length} steps"
            )
        for value in values:
            _check_number(f"{name} of {layer!r}", value, low, high)
    return {str(layer): [float(v) for v in values] for layer, values in given.items()}


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if not is_number(value) or not low <= value <= high:
        bounds = f"between {low:g} and {high:g}" if high < math.inf else f"of at least {low:g}"
        raise ValueError(f"noisy_backprop: {name} is {value!r}, expected a number {bounds}")
