"""How much longer a method takes: ratios of steps to a level, against the level, one line a learning rate.

A horizontal line through two loss curves gives one such ratio. Here are those of all levels and learning rates, a bold line
for each method at its own best rate, and beside them the curves that the ratios were read from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.audit.durations import LevelRatio, duration_ratios
from alignlab.figures import contents, groups, lines, scales, style
from alignlab.figures.finishing import finish
from alignlab.figures.learning import is_log
from alignlab.figures.sweeps import sweeps
from alignlab.measures.quantities import sense
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST: dict[str, Any] = {"color": "black", "linewidth": 2.6, "marker": "o", "markersize": 5}
BOUNDS = {"≥": "^", "≤": "v"}
OPEN: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.2}


def durations(
    dataset: xr.Dataset,
    levels: Sequence[float],
    outcome: str = "train_loss",
    *,
    baseline: str = "bp",
    published: Mapping[str, float] | None = None,
) -> Figure:
    """A panel for each arm: its steps to a level over those of ``baseline``, against the level; last, the learning curves.

    Thin lines: both at the same learning rate. Bold: each at its own best rate for that level. Open triangles are bounds,
    where one of the two did not always arrive. The curves are those of each arm's best final rate, on log axes, where a ratio
    of steps is a distance. ``published``: ratios to mark, by what they are to be called.

    ``dataset``: runs with the coordinates ``arm``, ``lr`` and ``seed``, every arm with the same rates and seeds.

    Raises ``ValueError`` if the outcome was not recorded, runs are missing or have no learning rate (NaN), and for no levels.
    """
    contents.need_outcome(dataset, outcome)
    data = as_runs(dataset)
    for key in ("arm", "lr", "seed"):
        groups.levels(data, key)
    found = duration_ratios(data, outcome, levels, baseline=baseline)
    if not found:
        raise ValueError(f"all of these runs are {baseline!r}: there is no arm to compare with it")
    arms = list(dict.fromkeys(ratio.arm for ratio in found))
    rates = style.looks(np.unique(data["lr"].values).tolist())
    with style.styled():
        figure, axes = style.grid(1, len(arms) + 1, 3.1, 3.0)
        for ax, arm in zip(axes[0], arms, strict=False):
            _ratios(ax, [ratio for ratio in found if ratio.arm == arm], rates)
            ax.set_title(style.plain(arm), loc="left")
            for value in (published or {}).values():
                ax.axhline(value, color=style.ALERT, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1.5)
        _fit(list(axes[0, :-1]), found, list((published or {}).values()), levels, outcome)
        axes[0, 0].set_ylabel(f"steps of the panel's arm / steps of {style.plain(baseline)}")
        _curves(axes[0, -1], data, outcome)
        title = groups.context(data, "arm", "lr", "layer", "rule", "feedback_init")
        return finish(figure, title, _legend(rates, found, published or {}), "learning rate", _note(found))


def _ratios(ax: Axes, found: list[LevelRatio], looks: Mapping[Any, style.Look]) -> None:
    for lr in dict.fromkeys(ratio.lr for ratio in found):
        own = [ratio for ratio in found if ratio.lr == lr]
        look = BEST if lr is None else {**looks[lr]._asdict(), "linewidth": 1.1}
        _line(ax, own, look, "best" if lr is None else f"{lr:g}", bold=lr is None)


def _line(ax: Axes, found: list[LevelRatio], look: dict[str, Any], label: str, bold: bool) -> None:
    """A line through what is known exactly, its interval, and open triangles where there are bounds only."""
    order = 5 if bold else 3
    levels = np.array([ratio.level for ratio in found])
    exact = np.array([ratio.ratio.sign == "=" for ratio in found])
    middle, low, high = (
        np.array([getattr(r.ratio, name) for r in found]) for name in ("estimate", "low", "high")
    )
    shown = np.where(exact, middle, np.nan)
    band = exact & np.isfinite(high)
    ax.fill_between(levels, np.where(band, low, np.nan), np.where(band, high, np.nan),
                    color=look["color"], alpha=0.25 if bold else 0.1, linewidth=0, zorder=order - 1)  # fmt: skip
    ax.plot(levels, shown, **look, markeredgecolor="white", markeredgewidth=0.5, label=label, zorder=order)
    for sign, marker in BOUNDS.items():
        there = np.array([ratio.ratio.sign == sign for ratio in found])
        if there.any():
            ax.plot(levels[there], middle[there], marker=marker, linestyle="", color=look["color"],
                    markersize=6.5 if bold else 5, label=f"_{sign}", zorder=order, **OPEN)  # fmt: skip


def _fit(
    axes: Sequence[Axes],
    found: list[LevelRatio],
    references: list[float],
    levels: Sequence[float],
    outcome: str,
) -> None:
    from matplotlib.ticker import LogLocator

    middles = np.array([r.ratio.estimate for r in found if r.ratio.sign != "?"] + [1.0, *references])
    ends = np.array([end for r in found if r.ratio.sign == "=" for end in (r.ratio.low, r.ratio.high)])
    ends = ends[(ends > 0) & np.isfinite(ends)]  # of too few equal ratios the interval is unbounded
    bottom, top = scales.limits(middles, ends, log=True)
    for ax in axes:
        ax.axhline(1, color=style.REFERENCE, linewidth=1, zorder=1.2)
        ax.set(ylim=(bottom, top), xlabel=f"{style.axis_label(outcome)} to reach")
        scales.log_axis(ax)
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=30))
        _level_axis(ax, levels, outcome)


def _level_axis(ax: Axes, levels: Sequence[float], outcome: str) -> None:
    """Levels in the order in which training reaches them: a loss or an error falls."""
    log = min(levels) > 0
    low, high = scales.limits(np.asarray(levels, np.float64), np.array([]), log)
    ax.set_xlim(*((high, low) if sense(outcome) < 0 else (low, high)))
    if log:
        scales.log_axis(ax, "x")


def _curves(ax: Axes, data: xr.Dataset, outcome: str) -> None:
    """Every arm at the learning rate with the best end, in a frame that holds all of it."""
    from matplotlib.lines import Line2D

    log = is_log(data, outcome)
    found = sweeps(data, outcome, "arm", log)
    look, entries, drawn = style.looks([sweep.level for sweep in found]), {}, []
    for sweep in found:
        if sweep.best is None:
            continue
        rate = sweep.lrs[sweep.best]
        own = data.isel(run=np.flatnonzero((data["arm"].values == sweep.level) & (data["lr"].values == rate)))
        (curve,) = lines.curves(own, outcome, "arm", layered=False, log=log)
        name = f"{style.plain(sweep.level)}, {rate:g}{' (edge)' if sweep.on_edge else ''}"
        lines.draw(ax, curve, look[sweep.level], name)
        drawn.append(curve)
        entries[name] = Line2D([], [], **look[sweep.level]._asdict(), markeredgecolor="white")
    recorded = data["step"].values[np.isfinite(data[outcome].values).any(data[outcome].get_axis_num("run"))]
    ax.set(xlabel="optimizer step", ylabel=style.axis_label(outcome), xlim=(1, max(10, 1.4 * recorded.max())))
    ax.set_xscale("log")
    ax.set_title("each at its best final rate", loc="left")
    if drawn:
        lines.fit([ax], drawn, log)
    if log:
        scales.log_axis(ax)
    ax.legend(list(entries.values()), list(entries), loc="lower left", fontsize=7.5)


def _legend(
    looks: Mapping[Any, style.Look], found: list[LevelRatio], published: Mapping[str, float]
) -> dict[str, Artist]:
    from matplotlib.lines import Line2D

    entries: dict[str, Artist] = {
        f"{lr:g}, both": Line2D([], [], **look._asdict(), markeredgecolor="white")
        for lr, look in looks.items()
    }
    entries["each at its own best"] = Line2D([], [], **BEST, markeredgecolor="white")
    for sign, text in {"≥": "at least: it came late", "≤": "at most: the baseline did"}.items():
        if any(ratio.ratio.sign == sign for ratio in found):
            entries[text] = Line2D([], [], color="0.3", marker=BOUNDS[sign], linestyle="", **OPEN)
    for name in published:
        entries[name] = Line2D([], [], color=style.ALERT, linewidth=1.2, linestyle=(0, (4, 2)))
    return entries


def _note(found: list[LevelRatio]) -> str:
    n = sorted({ratio.ratio.n for ratio in found})
    unknown = sum(ratio.ratio.sign == "?" for ratio in found)
    late = sum(ratio.ratio.sign in BOUNDS for ratio in found)
    of = f"Of {len(found)} points "
    told = [
        f"Geometric means of {n[0]} ratios, paired by seed; bands: 95 % interval, for best rates too narrow where several are "
        "about equally good.",
        "Best rates: chosen for each level and seed by the other seeds.",
        f"{of}{late} {'is a bound' if late == 1 else 'are bounds'}." if late else "",
        f"{of}{unknown} {'is' if unknown == 1 else 'are'} not shown, as neither arm always arrived."
        if unknown
        else "",
    ]
    return " ".join(filter(None, told))
