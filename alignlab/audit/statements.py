"""Statements of others about arms ("clipping ruins training"), held against runs at several learning rates.

A statement is read as a difference of arms and a margin. It is judged with each arm at the rate that suits it, and again at
each rate that all its arms have: what holds at one rate alone tells how that rate suits the arms, not which arm is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignlab.audit.crossfit import favoured, tuned
from alignlab.audit.outcomes import by, final, sense
from alignlab.audit.statistics import Interval, paired
from alignlab.training.spec import RunSpec
from alignlab.training.tasks import load

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["Judged", "Statement", "as_rows", "judged"]

Side = Sequence[str | tuple[str, ...]]


@dataclass(frozen=True)
class Statement:
    """What was ``said`` ``about`` something, read as: the ``outcome`` of ``more`` exceeds that of ``less`` by over ``margin``.

    ``more``, ``less``: arms, whose outcomes are added up; of several arms in a tuple that counts, for each seed, which the
    other seeds favour: the better one of the seed itself would be chosen by the very luck that it is judged on.
    ``picture``: the arms to draw, the baseline first; without it those compared. ``repeats``: whether it can only show once
    training sees images again.
    """

    about: str
    said: str
    more: Side
    less: Side
    outcome: str = "test_error"
    margin: float = 0.0
    picture: tuple[str, ...] = ()
    repeats: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms that it compares, those of ``less`` first."""
        sides = (*self.less, *self.more)
        return tuple(arm for side in sides for arm in ((side,) if isinstance(side, str) else side))

    @property
    def shown(self) -> dict[str, str]:
        """The arms of its picture, by their own names."""
        return {arm: arm for arm in self.picture or self.arms}


class Judged(NamedTuple):
    """A statement with the difference at best rates, that at each rate which all arms have, and what follows."""

    statement: Statement
    interval: Interval
    at: Mapping[float, Interval]
    verdict: str


def judged(
    runs: xr.Dataset, statements: Sequence[Statement], choose: str = "validation_accuracy"
) -> list[Judged]:
    """Judge each statement; the last value of ``choose`` picks an arm's rate for each seed, by the arm's other seeds.

    ``runs``: dims (run, step) with the coordinates arm, lr and seed, and the statements' outcomes. The verdict is "holds" if
    the 95 % interval of the difference lies above the margin, "does not hold" if below, else "undecided"; rates at which it
    holds nonetheless are named.

    Where the truth is the margin itself, "holds" and "does not hold" are said in 2.5 % of cases each if each arm has one rate
    that is clearly best. Choices among what is equally good share data (:mod:`alignlab.audit.crossfit`): with three such rates
    either is said in 5 % of cases with 3 seeds, 9 % with 10 and 11 % with 19, with six in 5, 11 and 15 %; with the better of
    two equal arms in up to 7 % at one rate and 19 % at six. And each rate is read at 95 % by itself: of three, one or more is
    named beside another verdict in 5 to 7 % of cases, of six in 10 to 13 %.

    Raises ``ValueError`` where an arm has no run, or not one of every seed at every rate.
    """
    best, rates, found = tuned(runs, choose, ("arm",)), by(runs, "lr"), []
    for one in statements:
        own = _difference(best, one)
        complete = [lr for lr in sorted(rates) if set(one.arms) <= set(rates[lr]["arm"].values)]
        at = {lr: _difference(rates[lr], one) for lr in complete}
        unseen = one.repeats and _epochs(runs) <= 1
        verdict = "cannot show: no image seen twice" if unseen else _verdict(own, at, one.margin)
        found.append(Judged(one, own, at, verdict))
    return found


def as_rows(found: Sequence[Judged], units: str) -> list[dict[str, Any]]:
    """A row of a table for each statement; ``units`` are those of the outcomes."""
    return [
        {
            "about": one.about,
            "said": one.said,
            f"difference [{units}]": f"{' + '.join(_words(one.more))} − {' − '.join(_words(one.less))} ({one.outcome})",
            "at best rates [95 %]": f"{interval:+.1f}",
            "at one rate": ", ".join(f"{lr:g}: {own.estimate:+.1f}" for lr, own in at.items()),
            "holds if above": one.margin,
            "verdict": verdict,
        }
        for one, interval, at, verdict in found
    ]


def _difference(runs: xr.Dataset, one: Statement) -> Interval:
    table = final(runs, one.outcome)
    if missing := [arm for arm in one.arms if arm not in table]:
        raise ValueError(f"no arm {missing[0]!r} to judge by: there are {', '.join(map(str, table))}")
    more, less = (sum(_values(table, side, one.outcome) for side in own) for own in (one.more, one.less))
    return paired(more - less)


def _values(table: pd.DataFrame, side: str | tuple[str, ...], outcome: str) -> Any:
    if isinstance(side, str):
        return table[side].to_numpy()
    several = table[list(side)].to_numpy()
    return several[np.arange(len(several)), favoured(-sense(outcome) * several)]


def _verdict(own: Interval, at: Mapping[float, Interval], margin: float) -> str:
    if own.low > margin:
        return "holds"
    only = ", ".join(f"{lr:g}" for lr, one in at.items() if one.low > margin)
    word = "does not hold" if own.high <= margin else "undecided"
    return f"{word}; holds at lr {only}" if only else word


def _words(side: Side) -> list[str]:
    return [part if isinstance(part, str) else f"best of ({' | '.join(part)})" for part in side]


def _epochs(runs: xr.Dataset) -> float:
    """How often training has seen each image."""
    spec = RunSpec.from_yaml(str(runs["spec"].values[0]))
    return float(runs["last_step"].max()) * spec.batch_size / len(load(spec.task).train)
