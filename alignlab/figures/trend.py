"""Where runs end against a number that was varied (depth, width, period): one line a rule, one row an outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignlab.audit.published import published
from alignlab.figures import contents, groups, lines, scales, style
from alignlab.figures.finishing import finish
from alignlab.figures.sweeps import final_values
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Looks = Mapping[Hashable, style.Look]

WIDE, CLOSE = (
    30.0,
    0.12,
)  # x on a log axis: above this ratio, with values nearer than this share of their span
DODGE = 0.1  # of the least distance on the x axis, between neighbouring levels of the hue
HOLLOW: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.3, "markersize": 7, "linestyle": ""}
_EVERYWHERE = ("", "none")  # a condition that these runs do not have: they belong beside all of its levels


class Reference(NamedTuple):
    """A value from elsewhere, for the level ``level`` of the hue, at ``x``, in the row of ``outcome``."""

    level: Hashable
    x: float
    value: float
    outcome: str


def reported(source: str, outcome: str, x: float, **where: Any) -> list[Reference]:
    """What ``source`` reported of ``outcome``, rule by rule (:func:`alignlab.audit.published.published`), at ``x``."""
    return [Reference(rule, x, value, outcome) for rule, value in published(source, outcome, **where).items()]


def trends(
    dataset: xr.Dataset,
    x: str,
    outcomes: Mapping[str, str],
    *,
    hue: str = "rule",
    col: str | None = None,
    references: Sequence[Reference] = (),
    referred: str = "",
    note: str = "",
) -> Figure:
    """Final value of each of ``outcomes`` (variables, one value a step; what to call them) against the coordinate ``x``.

    ``hue`` and ``col`` are coordinates of the runs; a run whose ``col`` is empty or "none" (backprop has no feedback to
    initialise) is drawn in every column. Dots are runs, markers their mean with a 95 % t-interval, on a log axis for errors
    and losses that are above 0 (then geometric), else on a linear one. ``x`` has a log axis where its values grow by
    factors. A red rim: most of a point's runs have the coordinate ``on_edge`` set (:func:`alignlab.audit.crossfit.tuned`).
    ``references`` are hollow, ``referred`` says in the legend what they are, if any.

    Raises ``ValueError`` if an outcome was not recorded, for an unknown x, hue or col, an x that is no number, and where a
    point has two runs of one seed, which differ in something else.
    """
    for name in outcomes:
        contents.need_outcome(dataset, name)
    data = as_runs(dataset)
    xs = _places(data, x)
    look = style.looks(groups.levels(data, hue))
    columns = [""] if col is None else [v for v in groups.levels(data, col) if v not in _EVERYWHERE] or [""]
    groups.one_seed_each(data, *(name for name in (hue, x, col) if name))
    with style.styled():
        figure, axes = style.grid(len(outcomes), len(columns), 3.1, 2.4, sharex=True, sharey="row")
        logs = []
        for row, (name, words) in zip(axes, outcomes.items(), strict=True):
            own = [reference for reference in references if reference.outcome == name]
            values, ends = _values(data, name, own), np.zeros(0)
            logs.append(name.endswith(("loss", "error")) and bool((values > 0).all()))
            for ax, level in zip(row, columns, strict=True):
                part = data if not level or col is None else _column(data, col, level)
                ends = np.append(ends, _panel(ax, part, x, name, hue, look, own, xs, logs[-1]))
            row[0].set_ylabel(words)
            _fit(row, values, ends, logs[-1])
        for ax, level in zip(axes[0], columns, strict=True):
            ax.set_title(groups.named(col, level) if col and level else "", loc="left")
        for ax in axes[-1]:
            ax.set_xlabel(x.replace("_", " "))
            if _by_factors(xs):
                ax.set_xscale("log")
                ax.set_xticks([], minor=True)
            ax.set_xticks(xs, [f"{value:g}" for value in xs])
        title = groups.context(data, hue, col, x, "lr", "layer", "arm", "hidden")
        return finish(
            figure,
            title,
            _legend(data, look, referred if references else ""),
            hue,
            f"{_note(data, outcomes, [name for name in (hue, x, col) if name], logs)} {note}".strip(),
        )


def _column(data: xr.Dataset, col: str, level: Hashable) -> xr.Dataset:
    return data.isel(run=np.flatnonzero(np.isin(data[col].values.astype(str), [str(level), *_EVERYWHERE])))


def _places(data: xr.Dataset, x: str) -> list[float]:
    """The levels of ``x`` as numbers; a setting that differs from run to run is text."""
    levels = groups.levels(data, x)
    try:
        xs = [float(str(level)) for level in levels]
    except ValueError:
        way_out = "runs.assign_coords(depth=('run', [...]))"
        raise ValueError(
            f"{x!r} is no number in these runs ({levels[0]!r:.40}): give them a coordinate that is, {way_out}"
        ) from None
    if np.isnan(xs).any():
        raise ValueError(f"some of these runs have no {x!r} (NaN): select the others first")
    return xs


def _by_factors(xs: Sequence[float]) -> bool:
    """Whether the values grow by factors, so that on a linear axis the labels of the lower ones would cover each other."""
    span = max(xs) - min(xs)
    return min(xs) > 0 and max(xs) > WIDE * min(xs) and float(np.diff(sorted(xs)).min()) < CLOSE * span


def _beside(at: np.ndarray, place: float, xs: Sequence[float]) -> np.ndarray:
    """Values along x a few places of :data:`DODGE` aside, so that the levels of the hue do not cover each other."""
    factors = _by_factors(xs)
    least = np.diff(np.log(sorted(xs)) if factors else sorted(xs)).min() if len(xs) > 1 else 1.0
    return np.asarray(at * np.exp(DODGE * least * place) if factors else at + DODGE * least * place)


def _values(data: xr.Dataset, name: str, references: Sequence[Reference]) -> np.ndarray:
    """What the axis of a row has to show."""
    final = final_values(data, name)
    return np.concatenate([final[np.isfinite(final)], [point.value for point in references]])


def _panel(
    ax: Axes, data: xr.Dataset, x: str, name: str, hue: str, look: Looks, references: Sequence[Reference],
    every: Sequence[float], log: bool,
) -> np.ndarray:  # fmt: skip
    """One column of one row; returns the ends of its intervals."""
    final, drawn = final_values(data, name), np.zeros(0)
    for place, (level, own) in enumerate(look.items()):
        aside = place - (len(look) - 1) / 2
        mine = np.isfinite(final) & groups.having(data, hue, level)
        at = data[x].values.astype(np.float64)
        xs = np.unique(at[mine])
        ax.plot(
            _beside(at[mine], aside, every),
            final[mine],
            ".",
            color=own.color,
            markersize=3,
            alpha=0.5,
            label="_run",
        )
        tables = [final[mine & (at == value)] for value in xs]
        if not tables:
            continue
        mean, low, high = np.array(
            [[part[0] for part in lines.mean_and_interval(t[:, None], log)] for t in tables]
        ).T
        ends, drawn = np.nan_to_num([mean - low, high - mean]), np.concatenate([drawn, low, high])
        ax.errorbar(
            _beside(xs, aside, every), mean, ends, **own._asdict(), markeredgecolor="white", markeredgewidth=0.5, elinewidth=1,
            capsize=2.5, label=style.level_text(level),
        )  # fmt: skip
        edge = [_on_edge(data.isel(run=np.flatnonzero(mine & (at == value)))) for value in xs]
        ax.plot(_beside(xs[edge], aside, every), mean[edge], marker=own.marker, color=own.color, linestyle="",
                markeredgecolor=style.ALERT, markeredgewidth=1.3, label="_edge", zorder=4)  # fmt: skip
        for point in references:
            if point.level == level:
                ax.plot(
                    _beside(np.array(point.x), aside, every),
                    point.value,
                    own.marker,
                    **HOLLOW,
                    color=own.color,
                    label="_reference",
                )
    return drawn


def _on_edge(runs: xr.Dataset) -> bool:
    return "on_edge" in runs.coords and bool(np.mean(runs["on_edge"].values) > 0.5)


def _fit(row: Sequence[Axes], values: np.ndarray, ends: np.ndarray, log: bool) -> None:
    """Limits for a row that shares y: every run and reference, and the intervals within reason."""
    bottom, top = scales.limits(values, ends, log)
    for ax in row:
        ax.set_yscale("log" if log else "linear")
        ax.set_ylim(bottom, top)
        if log:
            scales.log_axis(ax)


def _legend(data: xr.Dataset, look: Looks, referred: str) -> dict[str, Artist]:
    from matplotlib.lines import Line2D

    text = style.level_texts(look)
    entries: dict[str, Artist] = {
        text[level]: Line2D([], [], **own._asdict(), markeredgecolor="white") for level, own in look.items()
    }
    if "on_edge" in data.coords and data["on_edge"].values.any():
        rim: dict[str, Any] = {"markeredgecolor": style.ALERT, "markeredgewidth": 1.3, "linestyle": ""}
        entries["best learning rate on\nthe grid's edge"] = Line2D([], [], marker="o", color="0.6", **rim)
    if referred:
        entries[style.broken(referred)] = Line2D([], [], marker="o", color="0.3", **HOLLOW)
    return entries


def _note(data: xr.Dataset, outcomes: Iterable[str], names: Sequence[str], logs: Sequence[bool]) -> str:
    """``names``: the coordinates that make a point."""
    points = list(zip(*(data[name].values.tolist() for name in names), strict=True))
    there = [np.isfinite(final_values(data, outcome)) for outcome in outcomes]
    counts = sorted(
        {
            n
            for own in there
            for n in Counter(p for p, known in zip(points, own, strict=True) if known).values()
        }
    )
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    diverged = int((data["status"].values == "diverged").sum()) if "status" in data.coords else 0
    lost = f" {diverged} of {data.sizes['run']} runs diverged: shown where they ended." if diverged else ""
    without = [lines.unseen(data, outcome, names[0]) for outcome in outcomes]
    means = f"{lines.mean_name(logs)} of {n} with 95 % t-interval"
    told = [f"Dots: single runs; markers: {means}, set side by side to be seen.{lost}", *without]
    return " ".join(filter(None, told))
