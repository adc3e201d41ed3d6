"""Reaching a level: the share of runs that are there at each step, and when each was there first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignlab.audit.outcomes import as_stored, sense, steps_to
from alignlab.audit.shares import share_of
from alignlab.figures import contents, groups, style
from alignlab.figures.finishing import finish
from alignlab.figures.scales import step_axis
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import pandas as pd
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Looks = Mapping[Hashable, style.Look]


def reaching(dataset: xr.Dataset, outcome: str, level: float, *, what: str = "") -> Figure:
    """Left, the share of an arm's runs with ``outcome`` at ``level`` or better over training, with Wilson's 95 % interval;
    right, the step at which each run was first there, and the median of all, where more than half were.

    ``dataset``: several runs (data contract); an arm's runs are its seeds, all evaluated at the same steps. ``what`` says in
    words what reaching the level means. Raises ``ValueError`` if the outcome was not recorded, and where an arm's runs were
    evaluated at different steps.
    """
    contents.need_outcome(dataset, outcome)
    data = as_runs(dataset)
    for key in ("arm", "seed"):
        groups.levels(data, key)
    taken = steps_to(data, outcome, level)
    what = what or f"{outcome.replace('_', ' ')} {'≤' if sense(outcome) < 0 else '≥'} {level:g}"
    look = style.looks(list(taken.columns))
    with style.styled():
        figure, axes = style.grid(1, 2, 3.7, 2.9)
        _shares(axes[0, 0], data, outcome, level, look)
        axes[0, 0].set(ylabel=f"share of runs: {what}", ylim=(-0.02, 1.02))
        _durations(axes[0, 1], taken, look)
        axes[0, 1].set_title("first reached", loc="left")
        evaluated = contents.values(data, outcome, ("step",)).notnull().any("run").values
        for ax in axes.flat:
            step_axis(ax)
            ax.set(xlabel="optimizer step", xlim=(0, max(1, data["step"].values[evaluated].max()) * 1.02))
        n = sorted({int(taken[arm].count()) for arm in taken})
        runs = f"{n[0]} run{'s' if n[0] > 1 else ''}" if len(n) == 1 else f"{n[0]} to {n[-1]} runs"
        note = f"{runs} an arm; bands: 95 % Wilson interval. Right: the runs that were ever there; bar: the median of all."
        entries = {text: _entry(look[arm]) for arm, text in style.level_texts(look).items()}
        return finish(figure, groups.context(data, "arm", "layer"), entries, "arm", note)


def _entry(look: style.Look) -> Artist:
    from matplotlib.lines import Line2D

    return Line2D([], [], **look._asdict(), markeredgecolor="white")


def _shares(ax: Axes, data: xr.Dataset, outcome: str, level: float, look: Looks) -> None:
    sign, level = sense(outcome), as_stored(level, data[outcome])
    table = contents.values(data, outcome, ("step",)).values
    for arm, own in look.items():
        ours = np.flatnonzero(data["arm"].values == arm)
        mine = table[ours]
        evaluated = _evaluated(arm, data.isel(run=ours), np.isfinite(mine), np.isfinite(table).any(0))
        steps, there = data["step"].values[evaluated], sign * mine[:, evaluated] >= sign * level
        shares = [share_of(column) for column in there.T]
        ax.fill_between(
            steps, [s.low for s in shares], [s.high for s in shares], color=own.color, alpha=0.2, linewidth=0
        )
        every = max(1, len(steps) // 8)
        ax.plot(steps, [s.estimate for s in shares], color=own.color, linestyle=own.linestyle, marker=own.marker,
                markevery=every, markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip


def _evaluated(arm: Hashable, runs: xr.Dataset, known: np.ndarray, any_arm: np.ndarray) -> np.ndarray:
    """The steps at which an arm's runs were evaluated, (R, S) ``known``; once all have diverged, those of the other arms."""
    diverged = runs["status"].values == "diverged" if "status" in runs.coords else np.zeros(len(known), bool)
    going = np.logical_or.accumulate(known[:, ::-1], axis=1)[:, ::-1] | ~diverged[:, None]
    if (going & ~known & known.any(0)).any():
        raise ValueError(
            f"the runs of arm {arm!r} were evaluated at different steps: at some of them there is no share of all runs; select "
            "the steps that all have"
        )
    return np.asarray(known.any(0) | (any_arm & ~going.any(0)))


def _durations(ax: Axes, taken: pd.DataFrame, look: Looks) -> None:
    rng = np.random.default_rng(0)
    for row, (arm, own) in enumerate(look.items()):
        steps = taken[arm].to_numpy()
        reached = steps[np.isfinite(steps)]
        y = row + rng.uniform(-0.28, 0.28, len(reached))
        ax.plot(reached, y, ".", color=own.color, alpha=0.45, markersize=4, markeredgewidth=0)
        middle = taken[arm].median()  # of all: those that never arrive are late
        if np.isfinite(middle):
            ax.plot([middle] * 2, [row - 0.36, row + 0.36], color="black", linewidth=2, label="_median")
    labels = [f"{int(np.isfinite(taken[arm]).sum())} of {int(taken[arm].count())}" for arm in look]
    ax.set_yticks(range(len(look)), labels)
    ax.set_ylim(len(look) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
