"""A grid search of both arms over one field of RunSpec, repeated in independent studies (Bouthillier et al. 2021).

In a study each arm tries the same values with the same number of tuning seeds, apart from the claim's own and from those of
every other study; what it takes is chosen on the validation split. An optimum on the grid's edge extends the grid of both
arms. The claim's seeds are dealt out to the studies, and run at what their own study chose: seeds of one study share its
choice, so that the means over each study's seeds are independent of each other where single seeds are not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.audit.bench import Bench, Group
from alignlab.audit.budget import budget_curve
from alignlab.audit.claim import Arm, Claim
from alignlab.audit.evidence import Check
from alignlab.training.spec import RunSpec, SpecError

__all__ = ["Grid", "Search", "Searches", "check_seeds", "tuning_seeds"]

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
        sign = 1 if self.metric.endswith("accuracy") else -1
        return {
            "metric": self.metric,
            f"best_{self.grid.field}": self.best,
            f"{self.grid.word}s".replace(" ", "_"): values,
            "mean_scores": [sign * mean for mean in means],
            "expected_best_by_budget": [float(v) for v in sign * budget_curve(means, maximize=True)],
            "groups": [self.groups[value] for value in values],
        }


class Searches:
    """The treatment's and the baseline's searches of one grid, in each of the claim's studies."""

    def __init__(self, bench: Bench, grid: Grid) -> None:
        self.bench, self.grid, claim = bench, grid, bench.claim
        self.studies = [
            (Search(bench, claim.treatment, grid, r), Search(bench, claim.baseline, grid, r))
            for r in range(claim.tuning_studies)
        ]

    @property
    def every(self) -> list[Search]:
        """All searches."""
        return [search for both in self.studies for search in both]

    def missing(self) -> list[RunSpec]:
        """The runs that the searches ask for now."""
        return [spec for s in self.every for specs in s.missing().values() for spec in specs]

    def run(self) -> None:
        """Search, and extend the grids as far as that goes."""
        while missing := self.missing():
            self.bench.run(f"both, {self.grid.word}s", missing)
            for search in self.every:
                search.score()
            for both in self.studies:
                _extend(both)

    def outcomes(self, named: str) -> list[NDArray[np.float64]]:
        """The arms' final outcomes, treatment first, on the claim's seeds, each at the choice of its study."""
        groups = {}
        for place, arm in enumerate((self.bench.claim.treatment, self.bench.claim.baseline)):
            groups[f"{arm.label}, {named}"] = (
                arm,
                [
                    self.bench.claim.spec(arm, seed, **self.grid.at(both[place].best))
                    for both, seed in self._dealt()
                ],
            )
        self.bench.run(f"both, {named}", [spec for _, specs in groups.values() for spec in specs])
        return [self.bench.outcomes_of(name, arm, specs) for name, (arm, specs) in groups.items()]

    def _dealt(self) -> list[tuple[tuple[Search, Search], int]]:
        """Each of the claim's seeds with its study, in blocks: further studies of the same size change no other's."""
        seeds = self.bench.claim.seeds
        return [(self.studies[i * len(self.studies) // len(seeds)], seed) for i, seed in enumerate(seeds)]

    def averaged(self, by_seed: Any) -> NDArray[np.float64]:
        """The mean over each study's seeds, (R,); of a single study the values as they are, (n,)."""
        values, studies = np.asarray(by_seed, np.float64), len(self.studies)
        return values if studies == 1 else values.reshape(studies, -1).mean(axis=1)

    @property
    def study_size(self) -> int | None:
        """The seeds of each study, where there are several studies."""
        studies = len(self.studies)
        return None if studies == 1 else len(self.bench.claim.seeds) // studies

    def checks(self) -> list[Check]:
        """Whether the optima lie inside the grids, an arm a line, and whether both arms had the same budget."""
        return [*(self._edge_check(of_arm) for of_arm in zip(*self.studies, strict=True)), self._budgets()]

    def _edge_check(self, searches: Sequence[Search]) -> Check:
        outside = [search for search in searches if not search.inside]
        detail = (outside or searches)[0].where()
        if len(searches) > 1:
            chosen = ", ".join(map(told, in_order([*{search.best for search in searches}])))
            detail = (
                f"{detail} in study {outside[0].study + 1}, on an edge in {len(outside)} of {len(searches)} studies"
                if outside
                else f"best {self.grid.word}s {chosen}, inside the grid in all {len(searches)} studies"
            )
        return Check(f"{self._checked()}: {searches[0].arm.label}", not outside, detail)

    def _budgets(self) -> Check:
        trials = [[len(search.scores) * self.bench.claim.tuning_seeds for search in s] for s in self.studies]
        unequal = [r for r, counts in enumerate(trials) if len(set(counts)) > 1]
        labels = [search.arm.label for search in self.studies[0]]
        worst = max(unequal, key=lambda r: abs(trials[r][0] - trials[r][1]), default=None)
        counts = trials[worst] if worst is not None else np.sum(trials, axis=0).tolist()
        detail = ", ".join(f"{label}: {n} tuning runs" for label, n in zip(labels, counts, strict=True))
        if len(trials) > 1:
            detail += f" in {len(trials)} studies" if worst is None else f" in study {worst + 1}"
        return Check(
            "budgets" if self.grid.field == "lr" else f"budgets: {self.grid.word}s", not unequal, detail
        )

    def _checked(self) -> str:
        return "grid edge" if self.grid.field == "lr" else f"grid edge, {self.grid.word}s"

    def caveat(self) -> str:
        """What the intervals leave out."""
        seeds, studies = self.bench.claim.tuning_seeds, len(self.studies)
        if studies == 1:
            return (
                f"{self.grid.word}s were chosen once, on {seeds} tuning seeds; the intervals leave out what another choice "
                "would give"
            )
        return (
            f"{self.grid.word}s were chosen in {studies} independent studies of {seeds} tuning seeds each, all on one grid and "
            "the same validation data; the intervals leave out what others of these would give"
        )

    def details(self) -> dict[str, Any]:
        """By arm the search, or under ``studies`` those of several studies."""
        found = {}
        for searches in zip(*self.studies, strict=True):
            each = [search.summary() for search in searches]
            found[searches[0].arm.label] = each[0] if len(each) == 1 else {"studies": each}
        return found


def _extend(both: tuple[Search, Search]) -> None:
    """Extend either grid where its optimum is on an edge; equal budgets: what one arm gets, the other gets."""
    if any([search.extend() for search in both]):
        tried = in_order([*{value for search in both for value in search.values}])
        for search in both:
            search.values = list(tried)
