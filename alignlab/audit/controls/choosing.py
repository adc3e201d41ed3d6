"""What controls share that give each arm the setting that suits it: a search, then best against best."""

from __future__ import annotations

from typing import Any, ClassVar

from alignlab.audit.bench import Bench
from alignlab.audit.claim import Claim
from alignlab.audit.controls.control import Control, Finding
from alignlab.audit.search import Grid, Searches, check_seeds
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
        return searches, Finding(
            samples, searches.checks(), caveats=[searches.caveat()], details=searches.details()
        )
