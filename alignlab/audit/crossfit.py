"""Each method at its own best learning rate, chosen by other seeds than the one that is reported.

A rate that is chosen and judged by the same runs flatters whoever has more rates to choose from. Here each seed is reported
at the rate that the *other* seeds favour (leave-one-out cross-fitting): every run serves both purposes, none for itself.

The choices of different seeds share data, though, so that what is reported is not independent from seed to seed: intervals
are too narrow where several rates are about equally good. Of two equal arms with three equally good rates, 95 % intervals
of the difference cover 0 in .91 of cases with 3 seeds, .83 with 10 and .74 with 30, with ten such rates in .90, .76 and .64;
where one rate is clearly best, in .95.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alignlab.measures.quantities import sense
from alignlab.store.shaping import on_runs

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["each_its_best", "favoured", "scores_of", "tuned"]


def favoured(scores: NDArray[Any]) -> NDArray[np.intp]:
    """For each of n seeds (rows) the column of ``scores`` (n, R) that the other seeds favour: (n,).

    That is the one with the fewest infinite scores, then with the lowest mean of the others; the first of equals. Intervals
    over the chosen are too narrow where columns are about equally good (see the module's head). Raises ``ValueError`` for
    fewer than two seeds, and for a score that is missing (NaN).

    >>> favoured(np.array([[1.0, 9.0], [3.0, 2.0], [3.0, 2.0]]))  # the first seed alone favours the first column
    array([1, 0, 0])
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or len(table) < 2 or not table.shape[1]:
        raise ValueError(
            f"scores have shape {table.shape}: expected (seeds, rates), two seeds or more of which each is judged by the others"
        )
    if np.isnan(table).any():
        row, column = np.argwhere(np.isnan(table))[0]
        raise ValueError(
            f"the score of seed {row} at rate {column} is missing: every seed needs a run at every rate"
        )
    return np.array([_best(np.delete(table, seed, axis=0)) for seed in range(len(table))])


def tuned(runs: xr.Dataset, outcome: str, by: Sequence[str]) -> xr.Dataset:
    """Of each condition and seed one run: that at the learning rate which the condition's other seeds favour.

    ``runs``: dims (run, step) with the coordinates ``lr``, ``seed`` and those that make a condition, ``by``. The last value
    of ``outcome`` decides: an accuracy should be high, anything else low; a run that diverged is worst. The coordinate
    ``on_edge`` (run) says whether the rate is the lowest or the highest of several. Intervals over these runs are too narrow
    where rates are about equally good (see the module's head). Raises ``ValueError`` where a condition lacks a run at some
    rate, or has one twice.
    """
    scores = scores_of(runs, outcome)
    keys: list[tuple[Hashable, ...]] = list(zip(*(runs[name].values.tolist() for name in by), strict=True))
    chosen: list[int] = []
    edge: list[bool] = []
    for condition in dict.fromkeys(keys):
        rows = np.flatnonzero([key == condition for key in keys])
        places = _places(runs.isel(run=rows), condition)
        columns = favoured(scores[rows][places])
        chosen += rows[places[np.arange(len(places)), columns]].tolist()
        edge += [places.shape[1] > 1 and c in (0, places.shape[1] - 1) for c in columns]
    return runs.isel(run=chosen).assign_coords(on_edge=("run", edge))


def each_its_best(runs: xr.Dataset) -> xr.Dataset:
    """Tuned runs as one condition an arm, for figures: ``lr`` says "each its best", ``rate`` has the rates themselves.

    Intervals over them are too narrow where rates are about equally good (see the module's head).
    """
    words = np.full(runs.sizes["run"], "each its best")
    return runs.assign_coords(rate=("run", runs["lr"].values), lr=("run", words))


def scores_of(runs: xr.Dataset, outcome: str) -> NDArray[np.float64]:
    """The last value of each run, (run,), as something to be low: an accuracy's negative; infinite for a run that diverged."""
    runs = on_runs(runs)
    table = runs[outcome].transpose("run", "step").values.astype(np.float64)
    last = table.shape[1] - 1 - np.isfinite(table)[:, ::-1].argmax(axis=1)
    values = table[np.arange(len(table)), last]
    scores = -sense(outcome) * values
    return np.where(np.isfinite(scores) & (runs["status"].values != "diverged"), scores, np.inf)


def _best(scores: NDArray[np.float64]) -> int:
    """The column of ``scores`` (n, R) with the fewest infinite ones, then with the lowest sum, which is the lowest mean."""
    failed = np.isinf(scores)
    return int(np.lexsort((np.where(failed, 0.0, scores).sum(0), failed.sum(0)))[0])


def _places(runs: xr.Dataset, condition: tuple[Hashable, ...]) -> NDArray[np.intp]:
    """Which of a condition's runs is of each seed (rows) at each rate (columns)."""
    rates, at = np.unique(runs["lr"].values, return_inverse=True)
    seeds, of = np.unique(runs["seed"].values, return_inverse=True)
    found = np.full((len(seeds), len(rates)), -1)
    found[of, at] = np.arange(len(at))
    if len(at) != found.size or (found < 0).any():
        raise ValueError(
            f"{', '.join(map(str, condition))}: {len(at)} runs of {len(seeds)} seeds at {len(rates)} learning rates; tuning "
            "needs one run of every seed at every rate"
        )
    return found
