"""Does the difference survive when both arms get the learning rate that suits them?

Both arms search the same log-spaced grid with the same number of tuning seeds, apart from the claim's own; the rate is
chosen on the validation split; the claim's seeds then run at the chosen rates. An optimum on the grid's edge extends the
grid by its own factor, and invalidates the audit if it still sits there in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from alignlab.audit.bench import Bench, Group
from alignlab.audit.budget import budget_curve
from alignlab.audit.claim import Arm, Claim
from alignlab.audit.controls.control import Control, Finding
from alignlab.audit.evidence import Check
from alignlab.training.spec import RunSpec, SpecError

FIRST_TUNING_SEED = 1_000_003  # far from anybody's seeds
EXTENSIONS = 3


class Tuning(Control):
    """Best against best: N = both tuned; S = the treatment as claimed against the tuned baseline."""

    name = "tuning"
    without, given = "tuned against tuned", "against the tuned baseline"

    def check(self, claim: Claim) -> None:
        """The rates are chosen on seeds of their own."""
        if shared := set(claim.seeds) & set(_tuning_seeds(claim)):
            raise SpecError(f"seeds {sorted(shared)} are those that choose the learning rates: take others")

    def foreseen(self, bench: Bench) -> list[RunSpec]:
        """The grids; which rates are then taken, they will say."""
        return [
            spec
            for arm in (bench.claim.treatment, bench.claim.baseline)
            for specs in _grids(bench, arm, bench.claim.learning_rates).values()
            for spec in specs
        ]

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        claim = bench.claim
        searches = [_Search(bench, arm) for arm in (claim.treatment, claim.baseline)]
        while any([search.extend() for search in searches]):
            for search in searches:  # equal budgets: what one arm gets, the other gets
                search.rates = sorted({rate for s in searches for rate in s.rates})
        bench.run("both, tuned", [spec for s in searches for spec in bench.specs(s.arm, lr=s.best)])
        best_t, best_b = (bench.outcomes(f"{s.arm.label}, tuned", s.arm, lr=s.best) for s in searches)
        finding = Finding(self.samples(best_t - best_b, treatment - best_b))
        finding.checks = [search.edge_check() for search in searches]
        finding.checks.append(_budget_check(searches))
        finding.caveats = [
            f"learning rates were chosen once, on {claim.tuning_seeds} tuning seeds; the intervals leave out what another "
            "choice would give"
        ]
        finding.details = {search.arm.label: search.summary() for search in searches}
        return finding


class _Search:
    """One arm's grid search."""

    def __init__(self, bench: Bench, arm: Arm) -> None:
        self.bench, self.arm = bench, arm
        self.rates = list(bench.claim.learning_rates)
        self.metric = "validation_" + bench.claim.outcome.split("_")[1]
        self.extended = 0
        self.scores: dict[float, Any] = {}

    def run(self) -> None:
        """Score every rate of the grid that has no score yet."""
        grids = _grids(self.bench, self.arm, [rate for rate in self.rates if rate not in self.scores])
        self.bench.run(
            f"{self.arm.label}, learning rates", [spec for specs in grids.values() for spec in specs]
        )
        for rate, specs in grids.items():
            self.scores[rate] = self.bench.values(specs, self.metric)
            group = f"{self.arm.label}, lr {rate:g}"
            self.bench.groups[group] = Group(tuple(specs), self.arm.label, "search")

    @property
    def best(self) -> float:
        """The rate with the best mean validation score."""
        return max(self.scores, key=lambda rate: float(np.mean(self.scores[rate])))

    def extend(self) -> bool:
        """Run the grid; if its optimum is on an edge, add a rate beyond. Whether it did."""
        self.run()
        grid = sorted(self.scores)
        if self.extended >= EXTENSIONS or self.best not in (grid[0], grid[-1]):
            return False
        self.extended += 1
        beyond = grid[0] ** 2 / grid[1] if self.best == grid[0] else grid[-1] ** 2 / grid[-2]
        self.rates.append(float(f"{beyond:.3g}"))
        return True

    def edge_check(self) -> Check:
        """Whether the optimum lies inside the grid."""
        grid = sorted(self.scores)
        inside = self.best not in (grid[0], grid[-1])
        where = "inside" if inside else "on the edge of"
        detail = f"best learning rate {self.best:g}, {where} the grid from {grid[0]:g} to {grid[-1]:g}"
        return Check(f"grid edge: {self.arm.label}", inside, detail)

    def summary(self) -> dict[str, Any]:
        """Rates, scores and the expected best by budget, for the result."""
        grid = sorted(self.scores)
        means = [float(np.mean(self.scores[rate])) for rate in grid]
        sign = 1 if self.metric.endswith("accuracy") else -1
        curve = sign * budget_curve(means, maximize=True)
        return {
            "metric": self.metric,
            "best_lr": self.best,
            "learning_rates": grid,
            "mean_scores": [sign * mean for mean in means],
            "expected_best_by_budget": [float(value) for value in curve],
        }


def _grids(bench: Bench, arm: Arm, rates: Sequence[float]) -> dict[float, list[RunSpec]]:
    """The tuning runs of an arm at each rate."""
    return {rate: bench.specs(arm, _tuning_seeds(bench.claim), lr=rate) for rate in rates}


def _tuning_seeds(claim: Claim) -> range:
    return range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + claim.tuning_seeds)


def _budget_check(searches: list[_Search]) -> Check:
    trials = {s.arm.label: len(s.scores) * s.bench.claim.tuning_seeds for s in searches}
    detail = ", ".join(f"{label}: {n} tuning runs" for label, n in trials.items())
    return Check("budgets", len(set(trials.values())) == 1, detail)
