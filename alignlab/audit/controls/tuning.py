"""Does the difference survive when both arms get the learning rate that suits them?

Both arms search the same log-spaced grid, and the rates that the claim gives them, with the same number of tuning seeds,
apart from the claim's own; the rate is chosen on the validation split; the claim's seeds then run at the chosen rates. An
optimum on the grid's edge extends the grid by its own factor, and invalidates the audit if it still sits there in the end.
"""

from __future__ import annotations

from dataclasses import replace

from alignlab.audit.claim import Claim
from alignlab.audit.controls.choosing import BestAgainstBest
from alignlab.audit.search import Grid


class Tuning(BestAgainstBest):
    """Best against best: N = both tuned; S = the treatment as claimed against the tuned baseline.

    The claim's ``tuning_studies`` R says how often the rates are chosen anew, on other tuning seeds. With one study the
    intervals are those of the rates that happened to be chosen: they tell of other seeds, not of another choice. With R > 1
    N and S are means over each study's seeds, n is R, and the intervals tell of both. With R = 2 they are as wide as two
    numbers make them (t = 12.7); a study for every seed is best, at R times the price. By simulation, where tuning seeds
    scatter more than the rates differ, 43 % of one study's 95 % intervals held the mean over choices, and 96 % from 2, 5 and
    10 studies of 10 seeds; where the choice is sure, 95 % of all. What no study varies are the grid and the data. Source:
    Bouthillier et al. 2021.
    """

    name = "tuning"
    without, given = "tuned against tuned", "against the tuned baseline"
    chosen = "tuned"

    def grid(self, claim: Claim) -> Grid:
        """The claim's grid, and of both arms' own rates those within a step of it: beside what a grid happens to hold, a well
        chosen rate of an arm's own would seem more than a rate. One further out would leave a hole that no edge tells of; and
        with one beyond an edge goes the whole step, beside which a rate next to the edge tells nothing of what lies there."""
        rates, arms = claim.learning_rates, (claim.treatment, claim.baseline)
        grid = Grid(
            "lr", rates, "learning rate", "lr", ratio=(rates[-1] / rates[0]) ** (1 / (len(rates) - 1))
        )
        beyond = grid.edges(rates)
        low, high = beyond[rates[0]], beyond[rates[-1]]
        near = {lr for arm in arms if low <= (lr := claim.spec(arm, claim.seeds[0]).lr) <= high}
        steps = [low] * any(lr < rates[0] for lr in near) + [high] * any(lr > rates[-1] for lr in near)
        return replace(grid, values=tuple(sorted({*rates, *near, *steps})))
