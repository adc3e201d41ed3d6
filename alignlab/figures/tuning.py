"""Final outcome against learning rate: is a rule better, or only better tuned at the rate that was chosen?

Two rules may only be compared each at its own optimum, and an optimum on the edge of the grid is none: the best rate
may lie beyond it. So every curve's optimum carries a star, and one on the edge an unmissable flag.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.figures import contents, groups, lines, scales, style
from alignlab.figures.finishing import finish
from alignlab.figures.learning import is_log
from alignlab.figures.optima import draw_optima
from alignlab.figures.sweeps import FAR, Sweep, ceiling_of, sweeps
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


ROW = 10  # points between the rows above the frame


def loss_against_lr(
    dataset: xr.Dataset,
    outcome: str = "validation_loss",
    *,
    hue: str = "rule",
    col: str | None = None,
    chosen: Mapping[Any, float | Sequence[float]] | None = None,
) -> Figure:
    """Final outcome against learning rate, one curve for each level of `hue`, with each curve's optimum.

    Args:
        dataset: several runs (data contract) with the coordinate `lr`.
        outcome: a variable with one value a step; its last value counts. Lowest is best, for an accuracy highest.
        hue: a coordinate of the runs, told apart by colour.
        col: another of these, told apart by panel.
        chosen: the learning rate of each level of `hue`, where something else than this figure chose it: it
            gets the star. Several, one a study: each gets a star, and where the studies disagree the number of those that chose
            it. By default the best mean has it, but for a curve of one rate beside others of several.

    Points are means of the runs that finished (geometric on a log axis), bars 95 % t-intervals where at least two did.
    Triangles above the frame count the runs that diverged; a learning rate at which any did is no candidate for
    the optimum. Runs that crashed, still go on, have no value or no rate above 0 are left out, and the note below says how
    many. Losses beyond ten times the untrained one leave the frame at its top, so that one rule's explosion does not flatten
    all the optima; the note tells how far they go.

    Raises:
        ValueError: if the outcome or the learning rates are missing, and for an unknown hue or col.
    """
    contents.need_outcome(dataset, outcome)
    data = as_runs(dataset)
    panels = groups.panels(data, hue, col, layered=False, on_axis=("lr",))
    log = is_log(data, outcome)
    found = _with_grids([sweeps(panel.data, outcome, hue, log, chosen) for panel in panels])
    if not any(sweep.finished.any() for several in found for sweep in several):
        raise ValueError(
            f"no run finished with a final {outcome!r} at a rate above 0: there is nothing to compare"
        )
    ceiling = ceiling_of(data, outcome)
    order = list(dict.fromkeys(level for panel in panels for level in groups.levels(panel.data, hue)))
    look = style.looks(order)
    with style.styled():
        figure, axes, used = style.wrapped(len(panels))
        most = max(_rows_above(several) for several in found)
        figure.set_figheight(figure.get_figheight() + len(axes) * most * ROW / 72)
        for ax, panel, several in zip(used, panels, found, strict=True):
            _draw_panel(ax, several, look, ceiling)
            ax.set_title(panel.title, loc="left", pad=6 + ROW * _rows_above(several))
        _fit(used, [sweep for several in found for sweep in several], log, ceiling)
        for ax, several in zip(used, found, strict=True):
            draw_optima(ax, several, look)
        for ax in style.bottoms(axes):
            ax.set_xlabel(style.axis_label("learning_rate"))
        for ax in axes[:, 0]:
            ax.set_ylabel(style.axis_label(outcome, f"final {outcome.replace('_', ' ')}"))
        entries = _legend(panels, hue, found)
        return finish(
            figure,
            groups.context(data, hue, col, "lr", "layer"),
            entries,
            hue,
            _note(data, found, log, ceiling),
        )


def _with_grids(found: list[list[Sweep]]) -> list[list[Sweep]]:
    """The sweeps without an optimum where they have one rate and others have several: an audit's grafts, say, are no grid."""
    if max((len(sweep.lrs) for several in found for sweep in several), default=1) == 1:
        return found
    return [
        [dataclasses.replace(sweep, best=None) if len(sweep.lrs) == 1 else sweep for sweep in several]
        for several in found
    ]


def _fit(axes: list[Axes], every: list[Sweep], log: bool, ceiling: float) -> None:
    """Limits for all means up to the ceiling, with room at the ends for the optima's labels."""
    means, low, high = (
        np.concatenate([getattr(sweep, name) for sweep in every]) for name in ("mean", "low", "high")
    )
    shown = means <= ceiling if (means <= ceiling).any() else np.isfinite(means)
    bottom, top = scales.limits(means[shown], np.concatenate([low[shown], high[shown]]), log)
    top = max(min(top, ceiling), means[shown].max())
    lrs = np.unique(np.concatenate([sweep.lrs for sweep in every]))  # panels share both axes
    for ax in axes:
        scales.lr_axis(ax, lrs, most=6)
        ax.set_yscale("log" if log else "linear")
        ax.set_ylim(bottom / (top / bottom) ** 0.15 if log else bottom - 0.15 * (top - bottom), top)
        if log:
            scales.log_axis(ax)


def _draw_panel(
    axes: Axes, found: list[Sweep], look: dict[Hashable, style.Look], ceiling: float = np.inf
) -> None:
    """Means with their intervals, those of points within the frame; then what diverged."""
    for sweep in found:
        own, inside = look[sweep.level], sweep.mean <= ceiling
        ends = np.where(inside, [sweep.mean - sweep.low, sweep.high - sweep.mean], 0.0)
        line = axes.errorbar(
            sweep.lrs, sweep.mean, np.nan_to_num(ends),
            **own._asdict(), markeredgecolor="white", markeredgewidth=0.5, elinewidth=1, capsize=2.5,
        )  # fmt: skip
        line.lines[0].set_label(style.level_text(sweep.level))
    _draw_diverged(axes, [sweep for sweep in found if sweep.diverged.any()], look)


def _rows_above(found: list[Sweep]) -> int:
    return sum(bool(sweep.diverged.any()) for sweep in found)


def _draw_diverged(axes: Axes, found: list[Sweep], look: dict[Hashable, style.Look]) -> None:
    """Above the frame a row for each rule that diverged: a triangle and "diverged/all" at each such learning rate."""
    from matplotlib.transforms import ScaledTranslation

    for row, sweep in enumerate(found):
        up, color = 6 + ROW * row, look[sweep.level].color
        across = axes.get_xaxis_transform()
        raised = across + ScaledTranslation(0, up / 72, axes.figure.dpi_scale_trans)
        for i in np.flatnonzero(sweep.diverged):
            lr, lost = sweep.lrs[i], sweep.diverged[i]
            triangle: dict[str, Any] = {
                "marker": "^",
                "color": color,
                "markersize": 5.5,
                "label": "_diverged",
            }
            axes.plot([lr], [1], transform=raised, clip_on=False, **triangle)
            axes.annotate(
                f"{lost}/{lost + sweep.finished[i]}", (lr, 1), (5, up), xycoords=across, textcoords="offset points",
                va="center", fontsize=7.5, annotation_clip=False,
            )  # fmt: skip


def _legend(panels: list[groups.Panel], hue: str, found: list[list[Sweep]]) -> dict[str, Artist]:
    """The levels, then what stars and triangles mean, each only where there is one."""
    from matplotlib.lines import Line2D

    every = [sweep for several in found for sweep in several]
    star: dict[str, Any] = {"marker": "*", "linestyle": "", "markersize": 11, "color": "white"}
    entries = lines.legend_entries(panels, hue, (sweep.level for sweep in every))
    edges = [sweep.is_edge(place) for sweep in every for place in sweep.optima]
    if not all(edges):
        several = max((len(sweep.chosen) for sweep in every if len(sweep.optima) > 1), default=0)
        words = f"optimum, with the number\nof studies (of {several}) that chose it" if several else "optimum"
        entries[words] = Line2D(
            [], [], **star | {"color": "0.6"}, markeredgecolor="black", markeredgewidth=0.7
        )
    if any(edges):
        text = "optimum on the grid's edge:\nextend the grid"
        entries[text] = Line2D([], [], **star, markeredgecolor=style.ALERT, markeredgewidth=1.4)
    if any(sweep.diverged.any() for sweep in every):
        entries["diverged / all runs"] = Line2D(
            [], [], color=style.REFERENCE, marker="^", linestyle="", markersize=5.5
        )
    return entries


def _note(data: xr.Dataset, found: list[list[Sweep]], log: bool, ceiling: float) -> str:
    counts = sorted({int(n) for several in found for sweep in several for n in sweep.finished if n})
    parts = []
    if counts and counts[-1] > 1:
        number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        parts.append(
            f"Points: {'geometric ' if log else ''}mean of {number} finished runs; bars: 95 % t-interval."
        )
    above = [mean for several in found for sweep in several for mean in sweep.mean if mean > ceiling]
    if above:
        parts.append(
            f"Above the frame: up to {max(above):.0e}, the untrained loss being {ceiling / FAR:.2g}."
        )
    counted = sum(int(sweep.finished.sum() + sweep.diverged.sum()) for several in found for sweep in several)
    if left_out := data.sizes["run"] - counted:
        which = "that did not finish, or have no final value or no rate above 0, left out"
        parts.append(f"{left_out} run{'s' if left_out > 1 else ''} {which}.")
    return " ".join(parts)
