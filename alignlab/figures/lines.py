"""Curves over training: what is drawn of the runs behind one line.

From three runs on, a line is their mean with a 95 % Student t-interval, both geometric on a log axis. It is drawn only
where every run of the group has a value: a mean over those that survived would flatter a rule that diverges. Past that
point, and for fewer than three runs, each run is a thin line of its own, and a cross marks where a run diverged.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.figures.contents import values
from alignlab.figures.groups import Panel, having, levels, named, replicates
from alignlab.figures.scales import limits, log_axis, step_axis
from alignlab.figures.style import REFERENCE, Look, axis_label, bottoms, level_texts, looks, present

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Curve:
    """One line: `runs` (R, S) at `steps` (S,), NaN where undefined; `mean`, `low`, `high` (S,) from 3 runs on."""

    level: Hashable
    steps: np.ndarray
    runs: np.ndarray
    diverged: np.ndarray
    mean: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def draw_panels(
    axes: Iterable[Axes], panels: list[Panel], name: str, hue: str, layered: bool, log: bool
) -> list[Curve]:
    """Draw the variable `name` into one axes a panel; returns all the curves drawn.

    A level looks the same in every panel. On a log axis a value that is not positive is left out.
    """
    order = dict.fromkeys(level for panel in panels for level in levels(panel.data, hue))
    look, text, everything = looks(list(order)), level_texts(order), []
    for ax, panel in zip(axes, panels, strict=True):
        drawn = curves(panel.data, name, hue, layered, log)
        for curve in drawn:
            draw(ax, curve, look[curve.level], text[curve.level])
        ax.set_title(panel.title, loc="left")
        everything += drawn
    return everything


def curves(data: xr.Dataset, name: str, hue: str, layered: bool, log: bool) -> list[Curve]:
    """One curve for each level of `hue` that has a value in this panel."""
    array = values(data, name, ("layer", "step") if layered else ("step",))
    if log:
        array = array.where(array > 0)
    recorded = np.isfinite(array.values).any(axis=tuple(range(1, array.ndim - 1)))
    found = []
    for level in levels(data, hue):
        mine = np.ones(data.sizes["run"], bool) if hue == "layer" else having(data, hue, level)
        # A panel holds several layers only where the hue tells them apart.
        rows = (
            array.isel(layer=np.atleast_1d(data["layer"].values).tolist().index(level))
            if hue == "layer"
            else array
        )
        table = rows.values.reshape(len(mine), array.sizes["step"])[mine]
        if np.isfinite(table).any():
            found.append(_curve(data.isel(run=mine), level, table, recorded[mine].any(axis=0), log))
    return found


def _curve(data: xr.Dataset, level: Hashable, table: np.ndarray, recorded: np.ndarray, log: bool) -> Curve:
    """The steps that these runs recorded; one where another layer has a value and this has not stays a gap."""
    steps, table = data["step"].values[recorded], table[:, recorded]
    diverged = data["status"].values == "diverged" if "status" in data.coords else np.zeros(len(table), bool)
    if len(table) < 3 or not np.isfinite(table).all(axis=0).any():
        return Curve(level, steps, table, diverged)
    replicates(data, np.ones(len(table), bool), level)
    return Curve(level, steps, table, diverged, *mean_and_interval(table, log))


def mean_and_interval(
    table: np.ndarray, log: bool, coverage: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the rows of (R, S) and its t-interval, each (S,); NaN where a row is; geometric if `log`.

    >>> mean, low, high = mean_and_interval(np.array([[1.0], [2.0], [3.0]]), log=False)
    >>> round(float(mean[0]), 3), round(float(high[0] - mean[0]), 3)  # 4.303 · 1 / √3
    (2.0, 2.484)
    """
    from scipy.special import stdtrit

    count = len(table)
    scaled = np.log(table) if log else table
    mean = scaled.mean(axis=0)
    half = np.full_like(mean, np.nan)
    if count > 1:
        half = stdtrit(count - 1, (1 + coverage) / 2) * scaled.std(axis=0, ddof=1) / np.sqrt(count)
    return (
        (np.exp(mean), np.exp(mean - half), np.exp(mean + half)) if log else (mean, mean - half, mean + half)
    )


def draw(axes: Axes, curve: Curve, look: Look, text: str) -> None:
    """The mean with its band where there is one, single runs where not, a cross where a run diverged."""
    line: dict[str, Any] = {"color": look.color, "linestyle": look.linestyle}
    if curve.mean is not None and curve.low is not None and curve.high is not None:
        axes.fill_between(curve.steps, curve.low, curve.high, color=look.color, alpha=0.2, linewidth=0)
        axes.plot(curve.steps, curve.mean, label=text, **line, **_markers(curve.mean, look))
    for row, diverged in zip(curve.runs, curve.diverged, strict=True):
        defined = np.isfinite(row)
        if not defined.any():
            continue
        if len(curve.runs) == 1:
            axes.plot(curve.steps, row, label=text, **line, **_markers(row, look))
        elif curve.mean is None:
            own, x = row[defined], curve.steps[defined]
            axes.plot(x, own, label=f"_{text}", linewidth=0.9, **line, **_markers(own, look))
        elif (defined & np.isnan(curve.mean)).any():
            alone = np.where(_widened(defined & np.isnan(curve.mean)), row, np.nan)
            axes.plot(curve.steps, alone, label=f"_{text}", linewidth=0.7, **line)
        if diverged:
            end = np.flatnonzero(defined)[-1]
            cross: dict[str, Any] = {"marker": "x", "markersize": 7, "markeredgewidth": 2, "zorder": 4}
            axes.plot(curve.steps[end], row[end], label="_diverged", color=look.color, **cross)


def _markers(row: np.ndarray, look: Look) -> dict[str, Any]:
    """A marker at each value of a short line, at about eight of a long one, and at each between two gaps."""
    defined = np.flatnonzero(np.isfinite(row))
    around = np.pad(np.isfinite(row), 1)
    alone = defined[~(around[:-2] | around[2:])[defined]]
    every = defined if len(defined) <= 15 else np.union1d(defined[:: len(defined) // 8], alone)
    width = {} if len(row) <= 400 else {"linewidth": 0.8}  # where noise would fill the plane
    return {
        "marker": look.marker,
        "markevery": every.tolist(),
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    } | width


def _widened(mask: np.ndarray) -> np.ndarray:
    """The mask and one value on either side, so that a single run joins the mean line that it goes on from."""
    wide = mask.copy()
    wide[:-1] |= mask[1:]
    wide[1:] |= mask[:-1]
    return wide


def fit(
    axes: list[Axes], drawn: list[Curve], log: bool, references: Sequence[float] | np.ndarray = ()
) -> None:
    """Limits for axes that share y: all runs that did not diverge, and reference values; the rest within reason.

    The cross of a run that leaves the frame moves to its edge.
    """
    runs = [curve.runs[~curve.diverged] for curve in drawn if not curve.diverged.all()]
    extras = [a.ravel() for c in drawn for a in (c.runs, c.low, c.high) if a is not None]
    kept = np.concatenate([*(a.ravel() for a in runs or [curve.runs for curve in drawn]), references])
    bottom, top = limits(kept, np.concatenate([*extras, []]), log)
    for ax in axes:
        ax.set_yscale("log" if log else "linear")
        ax.set_ylim(bottom, top)
        for cross in (line for line in ax.lines if line.get_label() == "_diverged"):
            cross.set(ydata=np.clip(cross.get_ydata(), bottom, top), clip_on=False)


def label_axes(axes: np.ndarray, name: str, log: bool) -> None:
    """Label a grid of axes that all show the variable `name`: y at the left, steps below each column."""
    for ax in present(axes):
        step_axis(ax)
        if log:
            log_axis(ax)
    for ax in bottoms(axes):
        ax.set_xlabel("optimizer step")
    for ax in axes[:, 0]:
        ax.set_ylabel(axis_label(name))


def legend_entries(panels: list[Panel], hue: str, shown: Iterable[Hashable]) -> dict[str, Artist]:
    """An entry for each level that was drawn, keyed by its text, looking as `draw_panels` draws it."""
    from matplotlib.lines import Line2D

    order = dict.fromkeys(level for panel in panels for level in levels(panel.data, hue))
    text, drawn = level_texts(order), set(shown)
    return {
        text[level]: Line2D([], [], **look._asdict(), markeredgecolor="white")
        for level, look in looks(list(order)).items()
        if level in drawn
    }


def reference_entry(label: str, linestyle: Any = "-") -> dict[str, Artist]:
    """The legend entry of a reference value."""
    from matplotlib.lines import Line2D

    return {label: Line2D([], [], color=REFERENCE, linewidth=1, linestyle=linestyle)}


def mean_name(logs: Iterable[bool]) -> str:
    """What means are in panels on log axes or linear ones.

    >>> mean_name([True]), mean_name([True, False])
    ('geometric mean', 'mean (geometric on log axes)')
    """
    kinds = set(logs)
    return "mean (geometric on log axes)" if len(kinds) > 1 else "geometric mean" if True in kinds else "mean"


def note(drawn: list[Curve], *logs: bool) -> str:
    """What lines, bands and crosses stand for in this figure, in whose panels the axis is a `log` one or not.

    Empty for single runs that finished.
    """
    counts = sorted({len(curve.runs) for curve in drawn if curve.mean is not None})
    parts = []
    if counts:
        number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        parts.append(f"Lines: {mean_name(logs)} of {number} runs; bands: 95 % t-interval.")
    if any(curve.mean is None and len(curve.runs) > 1 for curve in drawn):
        parts.append("Thin lines: single runs.")
    if any((np.isfinite(curve.runs).any(axis=1) & curve.diverged).any() for curve in drawn):
        parts.append("×: a run diverged.")
    means = [(curve, curve.mean) for curve in drawn if curve.mean is not None]
    if any((np.isnan(mean) & np.isfinite(curve.runs).any(axis=0)).any() for curve, mean in means):
        parts.append("Where one run has no value, the others are drawn singly and thin.")
    return " ".join(parts)


def unseen(data: xr.Dataset, name: str, hue: str) -> str:
    """How many runs have no value of a variable, and which levels of the hue are missing for that; empty if none has none."""
    there = np.isfinite(data[name].values).any(
        axis=tuple(i for i, dim in enumerate(data[name].dims) if dim != "run")
    )
    lost = int((~there).sum())
    if not lost:
        return ""
    gone = (
        []
        if hue == "layer"
        else [level for level in levels(data, hue) if not there[having(data, hue, level)].any()]
    )
    texts = level_texts(levels(data, hue)) if gone else {}
    which = f" (all of {', '.join(named(hue, level, texts[level]) for level in gone)})" if gone else ""
    have = "run has" if lost == 1 else "runs have"
    return f"{lost} {have} no {name.replace('_', ' ')}{which}."


def unplaced(shown: Iterable[tuple[xr.Dataset, str]], hue: str) -> str:
    """Which levels of the hue have values that a log axis leaves out, in these variables; empty if none has."""
    gone: dict[Hashable, str] = {}
    for data, name in shown:
        texts = level_texts(levels(data, hue))
        others = tuple(i for i, dim in enumerate(data[name].dims) if dim != "run")
        low = np.asarray((data[name].values <= 0).any(axis=others))
        gone |= {level: text for level, text in texts.items() if low[having(data, hue, level)].any()}
    return f"Not on log axes: values of 0 or less ({', '.join(gone.values())})." if gone else ""
