"""Columns and rows of a study's table: what became of each arm, by how much it differs from its baseline, or of one over time.

The values come from :mod:`alignlab.audit.outcomes`; :func:`alignlab.study.aligned` makes the rows text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alignlab.audit.outcomes import around, final, lost
from alignlab.audit.statistics import paired

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["at_steps", "by_arm", "counterparts", "counts", "differences", "settings", "tuning"]


def by_arm(columns: Mapping[str, Mapping[str, Any] | pd.Series], title: str = "arm") -> list[dict[str, Any]]:
    """A row for each arm. ``columns``: by title, the value of each arm; an empty cell where it has none.

    >>> by_arm({"lr": {"bp": 0.1, "fa": 0.3}, "more": {"fa": 2}})
    [{'arm': 'bp', 'lr': 0.1, 'more': ''}, {'arm': 'fa', 'lr': 0.3, 'more': 2}]
    """
    cells = {name: dict(own) for name, own in columns.items()}
    arms = dict.fromkeys(arm for own in cells.values() for arm in own)
    return [{title: arm, **{name: own.get(arm, "") for name, own in cells.items()}} for arm in arms]


def differences(table: pd.DataFrame, baseline: str | Mapping[str, str], spec: str = "+.2f") -> dict[str, str]:
    """By arm the mean of arm − baseline with its 95 % interval, paired by seed, in the number format ``spec``.

    ``table``: seed × arm. ``baseline``: the arm to compare with, one for all or each arm's own; an arm has no difference to
    itself. Raises ``ValueError`` for a baseline that is no arm, and for a seed that one of both lacks.
    """
    own = {arm: baseline if isinstance(baseline, str) else baseline[str(arm)] for arm in table}
    if missing := [base for base in own.values() if base not in table]:
        raise ValueError(f"no arm {missing[0]!r} to compare with: there are {', '.join(map(str, table))}")
    pairs = {arm: (table[arm] - table[base]).to_numpy() for arm, base in own.items() if arm != base}
    return {str(arm): format(paired(pair), spec) for arm, pair in pairs.items()}


def counterparts(runs: xr.Dataset, same: Sequence[str], **having: Any) -> dict[str, str]:
    """By arm the one arm that agrees with it in the coordinates ``same`` and whose coordinates have the values ``having``.

    Such as backprop in a net of the same depth: ``counterparts(runs, ["hidden"], rule="bp")``. An arm is one condition: its
    first run stands for it. Raises ``ValueError`` where an arm has none or several.
    """
    arms = runs["arm"].values.tolist()
    names = (*same, *having)
    about = {arm: {name: runs[name].values[arms.index(arm)] for name in names} for arm in dict.fromkeys(arms)}
    fits = [arm for arm, own in about.items() if all(own[name] == value for name, value in having.items())]
    found = {}
    for arm, own in about.items():
        there = [base for base in fits if all(about[base][name] == own[name] for name in same)]
        if len(there) != 1:
            wanted = ", ".join(f"{name} {value}" for name, value in having.items())
            raise ValueError(
                f"{arm!r} has {len(there)} arms of {wanted} with its {', '.join(same)}: one is needed"
            )
        found[arm] = there[0]
    return found


def settings(runs: xr.Dataset, name: str) -> dict[str, str]:
    """By arm the values that the coordinate ``name``, a number, takes in its runs: in order, with commas."""
    arms, values = runs["arm"].values, runs[name].values.astype(np.float64)
    return {
        arm: ", ".join(f"{value:g}" for value in np.unique(values[arms == arm]))
        for arm in dict.fromkeys(arms.tolist())
    }


def counts(runs: xr.Dataset, hits: xr.DataArray | NDArray[Any]) -> dict[str, str]:
    """By arm of how many of its runs ``hits`` (run,) is true, of how many: ``3/12``."""
    arms, did = runs["arm"].values, np.asarray(hits, bool)
    return {arm: f"{did[arms == arm].sum()}/{(arms == arm).sum()}" for arm in dict.fromkeys(arms.tolist())}


def tuning(runs: xr.Dataset, chosen: xr.Dataset, outcome: str) -> dict[str, Mapping[str, Any] | pd.Series]:
    """Columns for arms that ran at several rates: those that are best, how often one is at the grid's end, and what came of it.

    ``chosen``: of ``runs`` those at the best rates (:func:`alignlab.audit.crossfit.tuned`), of which the mean final ``outcome``
    is told. Lost are runs, at any rate, that ended no better than they began (:func:`alignlab.audit.outcomes.lost`).
    """
    return {
        "best rates": settings(chosen, "lr"),
        "on the grid's edge": counts(chosen, chosen["on_edge"]),
        outcome.replace("_", " "): final(chosen, outcome).mean(),
        "lost, all rates": counts(runs, lost(runs, outcome)),
    }


def at_steps(
    steps: Mapping[str, float],
    columns: Mapping[str, tuple[xr.Dataset, str, str | None]],
    title: str = "moment",
) -> list[dict[str, Any]]:
    """A row for each of ``steps``, by what happens there: the means over runs of the values that are nearest to the step.

    ``columns``: by title the runs, the quantity, and its layer or None (:func:`alignlab.audit.outcomes.around`).
    """
    return [
        {title: moment, "step": f"{step:,.0f}"}
        | {
            name: float(around(runs, quantity, step, layer=layer).to_numpy().mean())
            for name, (runs, quantity, layer) in columns.items()
        }
        for moment, step in steps.items()
    ]
