"""A grid search of both arms, repeated in independent studies (Bouthillier et al. 2021).

In a study each arm tries the same values with the same number of tuning seeds, apart from the claim's own and from those of
every other study; an optimum on the grid's edge extends the grid of both. The claim's seeds are dealt out to the studies, and
run at what their own study chose: seeds of one study share its choice, so that the means over each study's seeds are
independent of each other where single seeds are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.audit.bench import Bench
from alignlab.audit.evidence import Check
from alignlab.audit.search import Grid, Search, in_order, told
from alignlab.training.spec import RunSpec


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

    def caveats(self) -> list[str]:
        """What the intervals leave out, and which arms would do better in the claim's own outcome at another choice."""
        return [
            self._left_out(),
            *(told for arm in zip(*self.studies, strict=True) for told in self._missed(arm)),
        ]

    def _missed(self, searches: Sequence[Search]) -> list[str]:
        """A caveat where validation chose, for an arm in some study, what is worse by more than m in a training outcome."""
        claim = self.bench.claim
        search, (value, ahead) = max(((s, s.missed()) for s in searches), key=lambda one: one[1][1])
        if ahead <= claim.smallest_effect:
            return []
        return [
            f"{search.metric} chose the {self.grid.word} {told(search.best)} for {search.arm.label}; {claim.outcome} would "
            f"choose {told(value)}, where it is better by {ahead:.3g} (on the tuning seeds): what is left against an arm at "
            f"its choice may be owed to the {self.grid.word} all the same"
        ]

    def _left_out(self) -> str:
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
