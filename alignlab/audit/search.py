"""A grid search of one arm over one field of RunSpec: values, tuning seeds, and what is chosen.

What an arm takes is chosen on the validation split by tuning seeds, apart from the claim's own. An optimum on the grid's edge
extends the grid. Both arms' searches, and several studies of them: :mod:`alignlab.audit.studies`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignlab.audit.bench import Bench, Group
from alignlab.audit.budget import budget_curve
from alignlab.audit.claim import Arm, Claim
from alignlab.measures.quantities import sense
from alignlab.training.errors import SpecError
from alignlab.training.spec import RunSpec

__all__ = ["Grid", "Search", "Value", "check_seeds", "in_order", "told", "tuning_seeds"]

FIRST_TUNING_SEED = 1_000_003  # far from anybody's seeds
EXTENSIONS = 3
Value = float | None


@dataclasses.dataclass(frozen=True)
class Grid:
    """The ``values`` of a ``field`` of RunSpec that are tried; of equally good ones the first is taken. None is without end,
    beyond which there is nothing.

    ``word``: what one value is called (its plural ends in s), and ``short`` in the names of runs. ``ratio``: of the value
    beyond an edge to that on it, or its inverse; by default that of the two at the edge. ``upwards``: whether the upper edge
    is extended, and is one. ``also``: what else changes in the runs that are tried.
    """

    field: str
    values: tuple[Value, ...]
    word: str
    short: str
    ratio: float | None = None
    upwards: bool = True
    also: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def at(self, value: Value) -> dict[str, Any]:
        """What changes in a spec."""
        return {**self.also, self.field: value}

    def edges(self, tried: Sequence[Value]) -> dict[Value, float]:
        """By each edge of the values ``tried``, what lies beyond it."""
        finite = [value for value in in_order(tried) if value is not None]
        ends = [finite[:2]] + ([finite[:-3:-1]] if self.upwards else [])
        return {end: self._beyond(end, inner) for end, inner in ends}

    def _beyond(self, end: float, inner: float) -> float:
        if self.ratio is None:
            return float(f"{end**2 / inner:.3g}")
        return float(f"{end * self.ratio if end > inner else end / self.ratio:.3g}")


def in_order(values: Sequence[Value]) -> list[Value]:
    """From the smallest to None."""
    return sorted(values, key=lambda value: math.inf if value is None else value)


def several(name: str, values: Sequence[float], more: str) -> tuple[float, ...]:
    """The values of a grid. Raises ``ValueError`` for fewer than three, equal ones, and those that are not finite and > 0;
    ``more``: what else is told of them."""
    wrong = [value for value in values if isinstance(value, bool) or not (math.isfinite(value) and value > 0)]
    if wrong or len(set(values)) < max(3, len(values)):
        raise ValueError(f"{name} is {values!r}, expected three or more, all different and > 0{more}")
    return tuple(float(value) for value in values)


def told(value: Value) -> str:
    """A value in words."""
    return "none" if value is None else f"{value:g}"


def tuning_seeds(claim: Claim, study: int) -> range:
    """The seeds on which a study chooses; no two studies share one."""
    first = FIRST_TUNING_SEED + study * claim.tuning_seeds
    return range(first, first + claim.tuning_seeds)


def check_seeds(claim: Claim, what: str) -> None:
    """Refuse seeds that also choose, and studies among which the seeds cannot be split evenly."""
    claim.check_studies()
    choosing = {seed for r in range(claim.tuning_studies) for seed in tuning_seeds(claim, r)}
    if shared := set(claim.seeds) & choosing:
        raise SpecError(f"seeds {sorted(shared)} are those that choose the {what}: take others")


class Search:
    """One arm's search in one study."""

    def __init__(self, bench: Bench, arm: Arm, grid: Grid, study: int = 0) -> None:
        self.bench, self.arm, self.grid, self.study = bench, arm, grid, study
        self.values = list(grid.values)
        self.metric = "validation_" + bench.claim.outcome.split("_")[1]
        self.extended = 0
        self.scores: dict[Value, Any] = {}
        self.groups: dict[Value, str] = {}

    def specs(self, value: Value) -> list[RunSpec]:
        """The tuning runs at a value."""
        seeds = tuning_seeds(self.bench.claim, self.study)
        return self.bench.specs(self.arm, seeds, **self.grid.at(value))

    def missing(self) -> dict[Value, list[RunSpec]]:
        """The runs at values of the grid that have no score yet."""
        return {value: self.specs(value) for value in self.values if value not in self.scores}

    def score(self) -> None:
        """Score what is missing, whose runs are in the store."""
        several = self.bench.claim.tuning_studies > 1
        for value, specs in self.missing().items():
            self.scores[value] = self.bench.values(specs, self.metric)
            name = f"{self.arm.label}, {self.grid.short} {told(value)}"
            self.groups[value] = f"{name}, study {self.study + 1}" if several else name
            self.bench.groups[self.groups[value]] = Group(tuple(specs), self.arm.label, "search")

    @property
    def best(self) -> Value:
        """The value with the best mean validation score."""
        return max(self.scores, key=lambda value: float(np.mean(self.scores[value])))

    def missed(self) -> tuple[Value, float]:
        """Which value the tuning runs favour in a training outcome of the claim, and by how much it is ahead of :attr:`best` in
        that. Validation does not estimate it; a test outcome it does, so that there is nothing to tell but luck."""
        if not self.bench.claim.outcome.startswith("train"):
            return self.best, 0.0
        means = {value: float(self.bench.values(self.specs(value)).mean()) for value in self.scores}
        favoured = max(means, key=lambda value: means[value])
        return favoured, means[favoured] - means[self.best]

    @property
    def inside(self) -> bool:
        """Whether the optimum lies inside the grid."""
        return self.best not in self.grid.edges([*self.scores])

    def run(self) -> None:
        """Search alone, and extend the grid as far as that goes."""
        while missing := [spec for specs in self.missing().values() for spec in specs]:
            self.bench.run(f"{self.arm.label}, {self.grid.word}s", missing)
            self.score()
            self.extend()

    def extend(self) -> bool:
        """If the optimum is on an edge, add a value beyond. Whether it did."""
        if self.extended >= EXTENSIONS or self.inside:
            return False
        self.extended += 1
        self.values.append(self.grid.edges([*self.scores])[self.best])
        return True

    def where(self) -> str:
        """The optimum and the grid in words."""
        place, tried = "inside" if self.inside else "on the edge of", in_order([*self.scores])
        span = f"from {told(tried[0])} to {told(tried[-1])}"
        return f"best {self.grid.word} {told(self.best)}, {place} the grid {span}"

    def summary(self) -> dict[str, Any]:
        """Values, scores, the names of their runs, and the expected best by budget."""
        values = in_order([*self.scores])
        means = [float(np.mean(self.scores[value])) for value in values]
        sign = sense(self.metric)
        return {
            "metric": self.metric,
            f"best_{self.grid.field}": self.best,
            f"{self.grid.word}s".replace(" ", "_"): values,
            "mean_scores": [sign * mean for mean in means],
            "expected_best_by_budget": [float(v) for v in sign * budget_curve(means, maximize=True)],
            "groups": [self.groups[value] for value in values],
        }
