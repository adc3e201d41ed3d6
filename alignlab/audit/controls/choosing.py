"""What controls share that give each arm the setting that suits it: a search, then best against best; and both arms at
each common setting."""

from __future__ import annotations

from typing import Any, ClassVar

from alignlab.audit.bench import Bench
from alignlab.audit.claim import Arm, Claim
from alignlab.audit.controls.control import GIVEN, WITHOUT, Control, Finding
from alignlab.audit.search import Grid, Value, check_seeds, in_order, told
from alignlab.audit.studies import Searches
from alignlab.training.spec import RunSpec


class BestAgainstBest(Control):
    """N = both arms at what their searches chose; S = the treatment as claimed against the baseline at its choice.

    With several studies (``tuning_studies`` of the claim) the differences are the means over each study's seeds.
    """

    chosen: ClassVar[str]  # what an arm is called at its choice, "…, tuned"

    def grid(self, claim: Claim) -> Grid:
        """What is searched."""
        raise NotImplementedError

    def check(self, claim: Claim) -> None:
        """What chooses are seeds of its own."""
        check_seeds(claim, f"{self.grid(claim).word}s")

    def foreseen(self, bench: Bench) -> list[RunSpec]:
        """The grids; what is then taken, they will say."""
        return Searches(bench, self.grid(bench.claim)).missing()

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        return self.searched(bench, treatment, baseline)[1]

    def searched(self, bench: Bench, treatment: Any, baseline: Any) -> tuple[Searches, Finding]:
        """The searches, and what they found."""
        searches = Searches(bench, self.grid(bench.claim))
        searches.run()
        best_t, best_b = searches.outcomes(self.chosen)
        left, given = best_t - best_b, treatment - best_b
        removed = None if searches.study_size is None else searches.averaged(treatment - baseline - left)
        samples = self.samples(
            searches.averaged(left), searches.averaged(given), removed, searches.study_size
        )
        found = Finding(samples, searches.checks(), caveats=searches.caveats(), details=searches.details())
        arms = (bench.claim.treatment, bench.claim.baseline)
        found.curves = {
            f"{arm.label}, {self.chosen}": name for arm, name in zip(arms, (WITHOUT, GIVEN), strict=True)
        }
        return searches, found


class Crossed(BestAgainstBest):
    """Besides, both arms at each value of the grid, on the claim's own seeds: is the advantage one of a single value?"""

    def foreseen(self, bench: Bench) -> list[RunSpec]:
        claim, grid = bench.claim, self.grid(bench.claim)
        return super().foreseen(bench) + [
            spec
            for value in _others(claim, grid)
            for arm in (claim.treatment, claim.baseline)
            for spec in bench.specs(arm, **grid.at(value))
        ]

    def crossed(self, bench: Bench, treatment: Any, baseline: Any) -> dict[Value, tuple[Any, Any]]:
        """By value the outcomes of both arms at it; at the claim's own value those as claimed."""
        claim, grid = bench.claim, self.grid(bench.claim)
        found = {own_value(claim, grid): (treatment, baseline)}
        for value in _others(claim, grid):
            t, b = (
                bench.outcomes(crossed_name(arm, grid, value), arm, kind="crossed", **grid.at(value))
                for arm in (claim.treatment, claim.baseline)
            )
            found[value] = t, b
        return {value: found[value] for value in in_order(grid.values)}


def crossed_name(arm: Arm, grid: Grid, value: Value) -> str:
    """What the runs of an arm at a common value are called."""
    return f"{arm.label} at {grid.short} {told(value)}"


def own_value(claim: Claim, grid: Grid) -> Value:
    """The value in the claim itself, which both arms share."""
    value: Value = getattr(claim.spec(claim.treatment, claim.seeds[0]), grid.field)
    return value


def _others(claim: Claim, grid: Grid) -> list[Value]:
    return [value for value in grid.values if value != own_value(claim, grid)]
