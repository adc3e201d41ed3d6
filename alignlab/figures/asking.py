"""Several questions in one figure: a panel each, with the final outcome of a few arms against the learning rate.
An arm looks the same in all of them.

A comparison at one learning rate answers how well that rate suits each arm; a panel shows at a glance where the answer
depends on it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignlab.audit.crossfit import tuned
from alignlab.figures import contents, groups, lines, scales, style, widths
from alignlab.figures.finishing import finish
from alignlab.figures.sweeps import Sweep, final_values, sweeps
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Looks = Mapping[Hashable, style.Look]

COLUMNS = 4
HEIGHT, ENTRY, ROOM = (
    2.65,
    0.155,
    0.35,
)  # in: of a panel and a legend's entry; the share of the means' span below them
CURVES = 1.2  # in: what is left of a panel's height for the means
INSIDE = 4  # arms that a legend within a panel has room for; those of more stand below the panels
LETTERS, ALONE = (
    42,
    34,
)  # of a title in a line: of a panel that shares its y axis, and of one that has its own
BELOW = 0.45  # in: the axis' ticks and name


class Question(NamedTuple):
    """A panel: its title, and the arms that answer it with what the panel calls each, the baseline first."""

    title: str
    arms: Mapping[str, str]


def questions(
    dataset: xr.Dataset,
    asked: Sequence[Question],
    outcome: str,
    *,
    choose: str = "",
    words: str = "",
    chance: float | None = None,
    note: str = "",
) -> Figure:
    """The final ``outcome`` (one value a step) of each question's arms against the learning rate, on one log axis
    (a linear one, with plain means, where a run ended at 0).

    ``dataset``: runs with the coordinates ``arm`` and ``lr``. Points are geometric means of the runs that finished, bars
    95 % t-intervals; "k of n diverged" stands beside an arm's name where some did. Rings: with ``choose`` (an outcome) the
    rates that it picks for each seed by the arm's other seeds, as :func:`alignlab.audit.crossfit.tuned` does, which may be
    several; without it the arm's best mean. Legends stand in the panels, or below them where one has more than four arms.
    ``words`` name the y axis, ``chance`` draws a line there.

    Raises ``ValueError`` for an arm without runs or without a rate above 0, if an outcome was not recorded, with ``choose`` if
    an arm lacks a seed at some rate, where an arm has a seed twice at one rate, and for no questions.
    """
    if not asked:
        raise ValueError("no questions given: expected at least one Question")
    for name in filter(None, (outcome, choose)):
        contents.need_outcome(dataset, name)
    data = as_runs(dataset)
    groups.levels(data, "lr")
    known = groups.levels(data, "arm")
    lost = [repr(arm) for question in asked for arm in question.arms if arm not in known]
    if lost:
        raise ValueError(f"no run has the arm {', '.join(lost)}; there are {', '.join(map(str, known))}")
    arms = dict.fromkeys(arm for question in asked for arm in question.arms)
    data = data.isel(run=[arm in arms for arm in data["arm"].values.tolist()])
    rated = data["arm"].values[data["lr"].values > 0].tolist()
    if lost := [repr(arm) for arm in arms if arm not in rated]:
        raise ValueError(f"no run of the arm {', '.join(lost)} has a learning rate above 0")
    groups.one_seed_each(data, "arm", "lr")
    log = not (final_values(data, outcome) <= 0).any()  # an error of 0 has no place on a log axis
    found = {sweep.level: sweep for sweep in sweeps(data, outcome, "arm", log)}
    shown = [found[arm] for question in asked for arm in question.arms]
    columns = widths.columns_of(min(COLUMNS, len(asked)), 2.7)
    look = style.looks(list(arms))  # in all panels
    rings = _chosen(data, choose) if choose else _best(shown)
    with style.styled():
        below = max(len(question.arms) for question in asked) > INSIDE
        most = max(
            sum(1 + _told(name, found[arm]).count("\n") for arm, name in question.arms.items())
            for question in asked
        )
        legend = ENTRY * most + 0.1
        room = 0.0 if below else max(ROOM, legend / CURVES)
        height = HEIGHT + (legend if below else (room - ROOM) * CURVES)
        figure, axes = style.grid(-(-len(asked) // columns), columns, 2.75, height, sharey=True)
        for ax in axes.flat[len(asked) :]:
            ax.remove()
        bottom, top = _limits(shown, chance, log, room)
        for ax, question in zip(axes.flat, asked, strict=False):
            ax.set_yscale("log" if log else "linear")
            ax.set_ylim(bottom, top)
            if log:
                scales.log_axis(ax)
            if chance is not None:
                ax.axhline(chance, color=style.REFERENCE, linewidth=1, zorder=0.6, label="_chance")
            _draw(ax, question, found, look, below)
            _ring(ax, question, found, rings, look)
        for ax in style.bottoms(axes):
            ax.set_xlabel("learning rate")
        for ax in axes[:, 0]:
            ax.set_ylabel(words or style.axis_label(outcome))
        ringed = (
            f"rates picked by {style.axis_label(choose)}, for each seed by the other seeds"
            if choose
            else "best mean"
        )
        points = f"Points: {lines.mean_name([log])} of {_counted(list(found.values()), data.sizes['run'])}"
        told = f"{points}; bars: 95 % t-interval; rings: an arm's {ringed}. {note}"
        title = groups.context(data, "arm", "lr", "rule", "layer", *data.attrs.get("differing", ()))
        return finish(figure, title, {}, "", told.strip())


def _counted(shown: Sequence[Sweep], runs: int) -> str:
    """Of how many runs the points are means, and what is neither in them nor counted as diverged."""
    n = sorted({int(count) for sweep in shown for count in sweep.finished if count}) or [0]
    known = sum(int(sweep.finished.sum() + sweep.diverged.sum()) for sweep in shown)
    without = f" ({runs - known} without an end or a rate above 0 left out)" if runs > known else ""
    return f"{n[0] if len(n) == 1 else f'{n[0]} to {n[-1]}'} runs that finished{without}"


def _limits(shown: Sequence[Sweep], chance: float | None, log: bool, room: float) -> tuple[float, float]:
    """All means and chance, with ``room`` times their span below for the legend; intervals may leave the frame."""
    means = np.concatenate([sweep.mean for sweep in shown])
    values = np.append(means[np.isfinite(means)], [] if chance is None else [chance])
    values = values if values.size else np.ones(1)  # all diverged: empty frames whose legends say so
    bottom, top = scales.limits(values, np.array([]), log)
    return (bottom / (top / bottom) ** room, top * 1.1) if log else (bottom - room * (top - bottom), top)


def _chosen(data: xr.Dataset, choose: str) -> Mapping[object, set[float]]:
    """The rates at which each arm is judged where ``choose`` tunes it: those that some seed's others favour."""
    best = tuned(data, choose, ("arm",))
    pairs = list(zip(best["arm"].values.tolist(), best["lr"].values.tolist(), strict=True))
    return {arm: {lr for own, lr in pairs if own == arm} for arm, _ in pairs}


def _best(shown: Sequence[Sweep]) -> Mapping[object, set[float]]:
    """The rate of each arm's best mean, none where every rate lost a run."""
    return {sweep.level: set() if sweep.best is None else {float(sweep.lrs[sweep.best])} for sweep in shown}


def _ring(
    ax: Axes,
    question: Question,
    found: Mapping[object, Sweep],
    rings: Mapping[object, set[float]],
    look: Looks,
) -> None:
    for arm in question.arms:
        own = look[arm]
        for lr, mean in zip(found[arm].lrs, found[arm].mean, strict=True):
            if lr in rings[arm]:
                ax.plot(lr, mean, "o", color=own.color, markerfacecolor="none", markersize=10, label="_best")


def _draw(
    ax: Axes, question: Question, found: Mapping[object, Sweep], look: Looks, below: bool = False
) -> None:
    entries: dict[str, Any] = {}
    for arm, name in question.arms.items():
        sweep, own = found[arm], look[arm]
        ends = np.nan_to_num([sweep.mean - sweep.low, sweep.high - sweep.mean])
        label = _told(name, sweep)
        drawn = ax.errorbar(
            sweep.lrs, sweep.mean, ends, **own._asdict(), markeredgecolor="white", markeredgewidth=0.5, elinewidth=1,
            capsize=2.5,
        )  # fmt: skip
        drawn.lines[0].set_label(label.replace("\n", " "))
        entries[style.plain(label)] = drawn
    lrs = np.unique(np.concatenate([found[arm].lrs for arm in question.arms]))
    scales.lr_axis(ax, lrs, most=7)
    letters = ALONE if len(ax.figure.axes) == 1 else LETTERS
    title = "\n".join(style.broken(line, letters) for line in style.plain(question.title).splitlines())
    ax.set_title(title, loc="left", fontsize=8.5)
    ax.legend(
        list(entries.values()),
        list(entries),
        **_place(ax, below),
        fontsize=7.5,
        borderaxespad=0.2,
        handlelength=2.2,
    )


def _told(name: str, sweep: Sweep) -> str:
    """What a legend calls an arm, in lines that a panel has room for."""
    lost = int(sweep.diverged.sum())
    label = f"{name} ({lost} of {int(sweep.finished.sum()) + lost} diverged)" if lost else name
    return style.broken(label, ALONE - 6)


def _place(ax: Axes, below: bool) -> dict[str, Any]:
    """Where a panel's legend stands: in its corner, or below its axis."""
    from matplotlib.transforms import ScaledTranslation

    if not below:
        return {"loc": "lower left"}
    under = ax.transAxes + ScaledTranslation(0, -BELOW, ax.figure.dpi_scale_trans)
    return {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": under}
