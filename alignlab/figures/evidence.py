"""The audit's forest plot: every contrast with its interval against zero and the smallest effect that matters.

All contrasts are oriented so that above zero the treatment is better. Inside the band of ± the smallest effect a
difference does not matter, whatever its p value; an interval wholly inside it shows that there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alignlab.audit.multiplicity import coverage
from alignlab.figures import style, widths
from alignlab.figures.finishing import finish

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.25  # inches
WIDTH = 4.2


class Side(NamedTuple):
    """How a contrast is drawn, by where its interval lies."""

    color: str
    marker: str
    text: str


TREATMENT = Side("#0173b2", "o", "favours the treatment")
BASELINE = Side("#d55e00", "s", "favours the baseline")
NONE = Side("0.3", "D", "no difference that matters")
OPEN = Side("0.55", "v", "undecided")
PART = Side("#7d6a96", "P", "not treatment against baseline")
ROLES = {"equivalent": NONE, "part": PART}


def forest(contrasts: xr.Dataset, smallest_effect: float | None = None, title: str | None = None) -> Figure:
    """Contrasts as points with intervals, in their groups, numbers at the right.

    Args:
        contrasts: dim `contrast`; coords label and group (str); variables estimate, low, high and n. The estimate's
            attrs long_name and units, where given, name the axis. Groups appear in the order of their first rows.
        smallest_effect: m ≥ 0 of the claim, drawn as the band ±m; by default the attr `smallest_effect`, if any.
        title: what the claim states; by default the attr `statement`, if any.

    A contrast's colour and marker say where its interval lies: within ±m, else above 0, below 0, or undecided. An optional
    coordinate `role` says otherwise: "equivalent" was shown to lie within ±m by a test of its own, and a "part" compares
    other things than treatment and baseline, so that neither is favoured.
    One without an interval (fewer than two pairs) is undecided and its point stands alone; an infinite end is an arrow.

    Raises:
        ValueError: if a variable or coordinate is missing, there is no contrast, or m is negative.
    """
    _check(contrasts)
    m = contrasts.attrs.get("smallest_effect") if smallest_effect is None else smallest_effect
    if m is not None and not m >= 0:
        raise ValueError(f"smallest_effect is {m}: it is a distance from zero and cannot be negative")
    title = style.plain(contrasts.attrs.get("statement", "") if title is None else title)
    rows = _rows(contrasts)
    with style.styled():
        figure, axes = style.grid(1, 1, WIDTH, ROW * len(rows) + 1.0)
        ax: Axes = axes[0, 0]
        _prepare(ax, contrasts, rows, m)
        digits = _digits(contrasts)
        sides = [
            _draw_row(ax, contrasts.isel(contrast=row), y, m, digits)
            for y, row in enumerate(rows)
            if isinstance(row, int)
        ]
        width, height = figure.get_size_inches()
        width = widths.width_of(width + _label_rows(figure, ax, contrasts, rows), 1)
        figure.set_size_inches(width, height)
        words = 0.55 * WIDTH  # under the axis
        return finish(figure, title, _legend(sides, m), "", _note(contrasts), words)


def side(low: float, high: float, smallest_effect: float | None) -> Side:
    """Which way an interval decides."""
    m = smallest_effect or 0.0
    if -m <= low and high <= m:
        return NONE
    if low > 0:
        return TREATMENT
    return BASELINE if high < 0 else OPEN


def _check(contrasts: xr.Dataset) -> None:
    for name in ("label", "group", "estimate", "low", "high", "n"):
        if name not in contrasts.variables:
            held = ", ".join(sorted(map(str, contrasts.variables))) or "nothing"
            raise ValueError(
                f"the contrasts have no {name!r}; an audit's contrasts hold it. These hold {held}"
            )
    if not contrasts.sizes.get("contrast"):
        raise ValueError("there is no contrast to draw: the dim 'contrast' is missing or empty")


def _rows(contrasts: xr.Dataset) -> list[str | int]:
    """From top to bottom: each group's name, then the positions of its contrasts."""
    names = [str(name) for name in contrasts["group"].values]
    rows: list[str | int] = []
    for group in dict.fromkeys(names):
        rows += [group, *(i for i, name in enumerate(names) if name == group)]
    return rows


def _prepare(ax: Axes, contrasts: xr.Dataset, rows: list[str | int], m: float | None) -> None:
    """Limits, the zero line, the band of what does not matter, and what the axis means."""
    ends = np.concatenate([contrasts[name].values.astype(float) for name in ("estimate", "low", "high")])
    reach = [*ends[np.isfinite(ends)], 0.0, *((-1.15 * m, 1.15 * m) if m else ())]
    pad = 0.06 * (max(reach) - min(reach)) or 1.0
    ax.set(xlim=(min(reach) - pad, max(reach) + pad), ylim=(len(rows) - 0.4, -0.6))
    if m:
        ax.axvspan(-m, m, color=style.SHADE, linewidth=0, zorder=0.4, label="_does not matter")
    ax.axvline(0, color=style.REFERENCE, linewidth=1, zorder=0.5, label="_zero")
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_formatter(
        lambda value, _: f"{value:g}".replace("-", "−")
    )  # a power beside the axis covers words
    units = str(contrasts["estimate"].attrs.get("units", "1"))
    words = str(contrasts["estimate"].attrs.get("long_name", "effect"))
    ax.set_xlabel(words if units in ("", "1") else f"{words} [{units}]", labelpad=15)
    for x, ha, text in ((0, "left", "← favours baseline"), (1, "right", "favours treatment →")):
        ax.annotate(
            text, (x, 0), (0, -19), xycoords="axes fraction", textcoords="offset points", ha=ha, va="top",
            fontsize=8, color=style.REFERENCE,
        )  # fmt: skip


def _draw_row(ax: Axes, contrast: xr.Dataset, y: int, m: float | None, digits: int) -> Side:
    """The point, its interval up to the frame, an arrow where that goes on, and the numbers at the right."""
    estimate, low, high = (float(contrast[name]) for name in ("estimate", "low", "high"))
    role = str(contrast["role"].values) if "role" in contrast.coords else ""
    own, (left, right) = ROLES.get(role) or side(low, high, m), ax.get_xlim()
    if np.isfinite(estimate):
        ax.plot(estimate, y, own.marker, color=own.color, markersize=6, zorder=3, label="_estimate")
    if not (np.isnan(low) or np.isnan(high)):
        ax.plot([max(low, left), min(high, right)], [y, y], color=own.color, linewidth=1.8, label="_interval")
    for end, edge, arrow in ((low, left, "<"), (high, right, ">")):
        if np.isinf(end):
            ax.plot(edge, y, arrow, color=own.color, clip_on=False, markersize=6, label="_unbounded")
    ax.annotate(
        f"{_numbers(estimate, low, high, digits)}  n = {int(contrast['n'])}", (1, y), (8, 0),
        xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=8, annotation_clip=False,
    )  # fmt: skip
    return own


def _digits(contrasts: xr.Dataset) -> int:
    """Decimals that give a middling interval's half width two significant digits."""
    widths = (contrasts["high"] - contrasts["low"]).values.astype(float) / 2
    widths = widths[np.isfinite(widths) & (widths > 0)]
    return int(np.clip(1 - np.floor(np.log10(np.median(widths))), 0, 6)) if len(widths) else 3


def _numbers(estimate: float, low: float, high: float, digits: int) -> str:
    if np.isnan(estimate):
        return "not defined"
    middle, *ends = (_number(value, digits) for value in (estimate, low, high))
    interval = "no interval" if np.isnan(low) or np.isnan(high) else f"[{', '.join(ends)}]"
    return f"{middle} {interval}".replace("-", "−").replace("inf", "∞")


def _number(value: float, digits: int) -> str:
    """With so many decimals, but never 0 for what is not: an interval that excludes 0 does not end there."""
    text = f"{value:+.{digits}f}"
    return f"{value:+.1g}" if value and not float(text) else text


def _label_rows(figure: Figure, ax: Axes, contrasts: xr.Dataset, rows: list[str | int]) -> float:
    """Groups in bold and labels under them, flush left; returns the inches that text takes on both sides."""
    named = zip(contrasts["label"].values.tolist(), contrasts["group"].values.tolist(), strict=True)
    labels = [label.removeprefix(f"{group}: ") for label, group in named]  # which stands above it
    short = style.level_texts(labels)
    texts = [style.plain(row) if isinstance(row, str) else f"   {short[labels[row]]}" for row in rows]
    ax.set_yticks(range(len(rows)), texts, ha="left")
    for tick, row in zip(ax.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if isinstance(row, str) else "normal")
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    left = max(tick.get_window_extent(renderer).width for tick in ax.get_yticklabels()) / figure.dpi
    right = max(text.get_window_extent(renderer).width for text in ax.texts) / figure.dpi
    ax.tick_params(axis="y", length=0, pad=72 * left + 6)
    return float(left + right + 0.2)


def _legend(sides: list[Side], m: float | None) -> dict[str, Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: dict[str, Artist] = {
        own.text: Line2D([], [], color=own.color, marker=own.marker, markersize=6)
        for own in (TREATMENT, BASELINE, NONE, OPEN, PART)
        if own in sides
    }
    return entries | ({f"too small to matter: ±{m:g}": Patch(color=style.SHADE)} if m else {})


def _note(contrasts: xr.Dataset) -> str:
    """The intervals' coverage, which differs between contrasts that are corrected for their number, and what n counts where
    the attr `counted` says so."""
    counted = str(contrasts.attrs.get("counted", ""))
    parts = [f"{counted[:1].upper()}{counted[1:]}."] if counted else []
    if "alpha" in contrasts:
        alphas = contrasts["alpha"].values.astype(float)
        ends = dict.fromkeys(coverage(float(alpha)) for alpha in (alphas.max(), alphas.min()))
        parts = [f"Intervals: {' to '.join(ends)}.", *parts]
    return " ".join(parts)
