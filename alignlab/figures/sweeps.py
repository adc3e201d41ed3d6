"""Outcomes of a sweep over learning rates, rule by rule: means, intervals, and the rate that is best."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.figures import contents, groups, lines
from alignlab.measures.quantities import sense

if TYPE_CHECKING:
    import xarray as xr

FAR = 10.0  # times the untrained loss, beyond which a run is merely bad


@dataclass(frozen=True)
class Sweep:
    """One rule's outcome at each learning rate (R,): mean and interval of the runs that finished, and counts.

    ``best``: the position of its optimum; ``chosen``: of all its optima, one a study, where there were several."""

    level: Hashable
    lrs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    finished: np.ndarray
    diverged: np.ndarray
    best: int | None
    chosen: tuple[int, ...] = ()

    @property
    def on_edge(self) -> bool:
        """Whether the optimum is the grid's first or last learning rate."""
        return self.best is not None and self.is_edge(self.best)

    def is_edge(self, place: int) -> bool:
        """Whether this is the grid's first or last learning rate."""
        return place in (0, len(self.lrs) - 1)

    @property
    def optima(self) -> tuple[int, ...]:
        """Where the optima are, each once."""
        return tuple(dict.fromkeys(self.chosen)) or (() if self.best is None else (self.best,))


def sweeps(
    data: xr.Dataset,
    outcome: str,
    hue: str,
    log: bool,
    chosen: Mapping[Any, float | Sequence[float]] | None = None,
) -> list[Sweep]:
    """One sweep for each level of `hue` that has a rate above 0; others have no place on a log axis.

    Its optimum, if not `chosen`, is among the rates at which no run diverged.
    """
    final, status = final_values(data, outcome), _status(data)
    found = []
    for level in groups.levels(data, hue):
        mine = groups.having(data, hue, level)
        lrs = np.unique(data["lr"].values[mine & (data["lr"].values > 0)])
        if not lrs.size:
            continue
        at = [mine & (data["lr"].values == lr) for lr in lrs]
        for lr, here in zip(lrs, at, strict=True):
            groups.replicates(data, here, level, float(lr))
        tables = [final[here & (status == "finished") & np.isfinite(final)] for here in at]
        points = [
            lines.mean_and_interval(t[:, None], log) if len(t) else (np.full(1, np.nan),) * 3 for t in tables
        ]
        mean, low, high = np.array(points)[:, :, 0].T
        diverged = np.array([np.sum(here & (status == "diverged")) for here in at])
        if chosen is None:
            best = _optimum(np.where(diverged > 0, np.nan, mean), highest=sense(outcome) > 0)
            places = []
        else:
            places = _positions(lrs, chosen.get(level, ()))
            best = max(places, key=places.count, default=None)
        counts = np.array([len(t) for t in tables])
        found.append(Sweep(level, lrs, mean, low, high, counts, diverged, best, tuple(places)))
    return found


def final_values(data: xr.Dataset, outcome: str) -> np.ndarray:
    """Each run's last finite value (R,), NaN for a run that has none."""
    table = contents.values(data, outcome, ("step",)).values
    last = table.shape[1] - 1 - np.isfinite(table)[:, ::-1].argmax(axis=1)
    return np.asarray(table[np.arange(len(table)), last])


def _status(data: xr.Dataset) -> np.ndarray:
    return np.asarray(
        data["status"].values if "status" in data.coords else np.full(data.sizes["run"], "finished")
    )


def _optimum(mean: np.ndarray, highest: bool) -> int | None:
    if not np.isfinite(mean).any():
        return None
    return int(np.nanargmax(mean) if highest else np.nanargmin(mean))


def _positions(lrs: np.ndarray, chosen: float | Sequence[float]) -> list[int]:
    there = np.isclose(lrs, np.reshape(chosen, (-1, 1)), rtol=1e-6)
    return [int(place) for place in there.argmax(axis=1)[there.any(axis=1)]]


def ceiling_of(data: xr.Dataset, outcome: str) -> float:
    """The value above which it does not matter how bad a run is; of a loss that is never below 0."""
    table = contents.values(data, outcome, ("step",)).values
    first = table[np.arange(len(table)), np.isfinite(table).argmax(axis=1)]
    first = first[np.isfinite(first)]
    a_loss = outcome.endswith("loss") and bool(np.nanmin(table) >= 0)
    return FAR * float(first.max()) if a_loss and first.any() else np.inf
