"""How much longer one method takes than another to reach a level: ratios of steps, paired by seed, with runs that never arrive.

"Twice as long" is a ratio, so logarithms are averaged: a geometric mean with Student's interval. A run that has not arrived
when its steps are over is censored, not dropped: it counts as arriving at the last step, and the ratio becomes a bound. Which
ratio it is depends on the level and on the learning rates, so both are swept; and methods can be compared each at the rate
that is its own best for that level, chosen by the other seeds (:mod:`alignlab.audit.crossfit`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignlab.audit.crossfit import favoured
from alignlab.audit.outcomes import last_steps, steps_to
from alignlab.audit.statistics import paired

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["LevelRatio", "Ratio", "duration_ratio", "duration_ratios"]


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of n ratios treatment / baseline, with its interval.

    ``sign``: ``=``; ``≥`` where ``late`` runs of the treatment did not arrive in time, then ``high`` is infinite; ``≤`` where
    ``baseline_late`` ones of the baseline did not, then ``low`` is 0; ``?`` where both happened, and nothing is known.
    """

    estimate: float
    low: float
    high: float
    sign: str
    n: int
    late: int = 0
    baseline_late: int = 0

    def __str__(self) -> str:
        if self.sign == "?":
            return "?"
        return f"{self.sign.strip('=')}{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def duration_ratio(
    treatment: Sequence[float] | NDArray[Any],
    baseline: Sequence[float] | NDArray[Any],
    budget: float,
    alpha: float = 0.05,
) -> Ratio:
    """Ratio of the durations (n,) of two methods, paired by seed; infinite where a run had not arrived after ``budget`` steps.

    exp of the mean of log(treatment / baseline) with the interval of :func:`alignlab.audit.paired` at 1 − alpha. Infinite
    durations count as ``budget``; where only one method has such, the true ratio lies on one side of what that gives, and the
    end of the interval that is kept bounds it about as surely as an end does where all arrive. By simulation, at 95 % and with
    a tenth to four fifths of the runs late, it lies beyond the true ratio in at most 4 % for normal logarithms of 3 to 20 runs
    (2.5 % where all arrive; of the cases in which one is late, in up to 7 % of 3 runs, 5 % of 5 and 4 % of 10); where early
    arrivals have a long tail, in 13 % of 3 to 5 runs (12 %), and where one run in ten is 20 times as early as the others, which
    so few have most often not seen, in 60 % (48 to 60 %). Waiting longer may all the same give an interval that reaches beyond
    this end, as the late runs then show their spread. Raises ``ValueError`` for
    durations that are not positive or beyond the budget.

    >>> print(duration_ratio([200, 400, 330], [100, 200, 150], budget=1000))
    2.06 [1.80, 2.37]
    >>> print(duration_ratio([200, np.inf, 300], [100, 200, 150], budget=1000))
    ≥2.71 [0.73, inf]
    """
    a, b = np.asarray(treatment, np.float64), np.asarray(baseline, np.float64)
    for values in (a, b):
        wrong = ~((values > 0) & ((values <= budget) | np.isinf(values)))
        if wrong.any():
            raise ValueError(
                f"a duration is {values[wrong][0]}: expected steps above 0 and up to the budget of {budget:g}, or inf for a "
                "run that did not arrive (a level must lie beyond where all runs begin)"
            )
    late, baseline_late = int(np.isinf(a).sum()), int(np.isinf(b).sum())
    if late and baseline_late:
        return Ratio(math.nan, 0.0, math.inf, "?", len(a), late, baseline_late)
    found = paired(np.log(np.minimum(a, budget) / np.minimum(b, budget)), alpha)
    estimate, low, high = (math.exp(end) for end in (found.estimate, found.low, found.high))
    if late:
        return Ratio(estimate, low, math.inf, "≥", len(a), late, 0)
    if baseline_late:
        return Ratio(estimate, 0.0, high, "≤", len(a), 0, baseline_late)
    return Ratio(estimate, low, high, "=", len(a))


class LevelRatio(NamedTuple):
    """The ratio of an arm to the baseline at one level, both at the learning rate ``lr``, or each at its best where it is None.

    ``rates``: the rates that treatment and baseline ran at, seed by seed.
    """

    arm: str
    lr: float | None
    level: float
    ratio: Ratio
    rates: NDArray[np.float64]


def duration_ratios(
    runs: xr.Dataset, outcome: str, levels: Sequence[float], *, baseline: str = "bp", alpha: float = 0.05
) -> list[LevelRatio]:
    """Steps to each level of ``outcome``, every other arm over ``baseline``: at each learning rate, and best against best.

    ``runs``: the same seeds and learning rates in every arm. A best rate has the lowest geometric mean of steps, those of the
    seed in question left out. Times between evaluations are interpolated (:func:`steps_to`). Raises ``ValueError`` for no
    level or one that is not finite, runs without a learning rate (NaN), an arm that lacks a run, a run that had not arrived
    when it stopped before others did (one that diverged never arrives), and as :func:`duration_ratio` does. The budget is the
    last step at which any run was evaluated. Best against best, intervals are too narrow where rates are about equally good
    (:mod:`alignlab.audit.crossfit`).
    """
    given = np.asarray(levels, np.float64)
    if given.ndim != 1 or not given.size or not np.isfinite(given).all():
        raise ValueError(f"levels is {levels!r}, expected a list of finite numbers, one at least")
    if unknown := int(np.isnan(runs["lr"].values.astype(np.float64)).sum()):
        raise ValueError(
            f"{unknown} of {runs.sizes['run']} runs have no learning rate (lr is NaN), by which arms are compared: leave them "
            "out, runs.isel(run=runs['lr'].notnull().values), or give them one by assign_coords"
        )
    rates = np.unique(runs["lr"].values)
    ends, found = last_steps(runs, outcome), []
    budget = float(ends.max())
    for level in levels:
        taken = _durations(runs, outcome, level, rates, ends)
        if baseline not in taken:
            raise ValueError(f"no arm {baseline!r} to compare with: there are {', '.join(taken)}")
        for arm in (arm for arm in taken if arm != baseline):
            for lr, a, b, at in _pairs(taken[arm], taken[baseline], rates):
                found.append(LevelRatio(arm, lr, float(level), duration_ratio(a, b, budget, alpha), at))
    return found


def _durations(
    runs: xr.Dataset, outcome: str, level: float, rates: NDArray[Any], ends: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Of each arm the steps that each seed (rows) took at each rate (columns); ``ends``: each run's last evaluation, (run,)."""
    tables = []
    for lr in rates:
        own = np.flatnonzero(runs["lr"].values == lr)
        tables.append(steps_to(runs.isel(run=own), outcome, level, interpolated=True))
        _check_ends(runs.isel(run=own), tables[-1], ends[own], float(ends.max()), level)
    arms = dict.fromkeys(runs["arm"].values.tolist())
    found = {
        arm: np.stack([t.reindex(tables[0].index).get(arm, t.index * np.nan) for t in tables], 1)
        for arm in arms
    }
    for arm, table in found.items():
        if np.isnan(table).any():
            raise ValueError(
                f"arm {arm!r} lacks a run: every arm needs the same seeds at the same learning rates"
            )
    return found


def _check_ends(
    runs: xr.Dataset, taken: pd.DataFrame, ends: NDArray[np.float64], budget: float, level: float
) -> None:
    """Raise for a late run that stopped before the others: it would count as late at their last step, and be no bound."""
    about = (runs[name].values.tolist() for name in ("arm", "seed", "lr", "status"))
    for arm, seed, lr, status, end in zip(*about, ends.tolist(), strict=True):
        if end < budget and status != "diverged" and math.isinf(taken.loc[seed, arm]):
            raise ValueError(
                f"the run of arm {arm!r}, seed {seed}, lr {lr:g} was last evaluated at step {end:g}, short of the level "
                f"{level:g}, and others at step {budget:g}: when it would have arrived is not bounded by their last step; "
                f"select the steps that all have, runs.sel(step=slice(0, {end:g}))"
            )


def _pairs(
    a: NDArray[np.float64], b: NDArray[np.float64], rates: NDArray[np.float64]
) -> Iterator[tuple[float | None, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Durations of both methods (n,) and their rates (n, 2): at each common rate, then each method at its best."""
    for column, lr in enumerate(rates.tolist()):
        yield lr, a[:, column], b[:, column], np.full((len(a), 2), lr)
    best = [favoured(np.log(table)) for table in (a, b)]
    rows = np.arange(len(a))
    yield None, a[rows, best[0]], b[rows, best[1]], np.stack([rates[own] for own in best], 1)
