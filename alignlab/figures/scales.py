"""Axes that can be read: whole steps, logarithms with plain numbers, limits that no outlier dictates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def step_axis(axes: Axes) -> None:
    """Whole optimizer steps with thousands set off."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    if axes.dataLim.width == 0:  # a single step
        axes.set_xlim(axes.dataLim.x0 - 1, axes.dataLim.x0 + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def limits(values: np.ndarray, extras: np.ndarray, log: bool) -> tuple[float, float]:
    """Axis limits that show all finite `values`, and `extras` (interval ends, what diverged) as far as is reasonable.

    That is a decade beyond the values on a log axis, half their span on a linear one, so that no extra squeezes the
    values into a line. A constant is not blown up to noise: a log axis spans a factor of 4 at least.

    >>> [float(round(end, 1)) for end in limits(np.array([1.0, 100.0]), np.array([1e9]), log=True)]
    [0.7, 1412.5]
    """
    inside = values[np.isfinite(values) & ((values > 0) | (not log))].astype(np.float64)
    inside = inside if inside.size else np.ones(1)  # nothing that this axis can show
    outside = np.concatenate([inside, extras[np.isfinite(extras) & ((extras > 0) | (not log))]])
    inside, outside = (np.log10(inside), np.log10(outside)) if log else (inside, outside)
    low, high = inside.min(), inside.max()
    least = np.log10(4) if log else 0.05 * abs(high) or 1.0
    widen = max(0.0, least - (high - low)) / 2
    low, high = low - widen, high + widen
    room = 1.0 if log else 0.5 * (high - low)
    bottom, top = np.clip(outside.min(), low - room, low), np.clip(outside.max(), high, high + room)
    margin = 0.05 * (top - bottom)
    bottom, top = bottom - margin, top + margin
    return (float(10**bottom), float(10**top)) if log else (float(bottom), float(top))


def log_axis(axes: Axes, which: str = "y") -> None:
    """A log axis with ticks at 1, 2 and 5 where it spans little; plain numbers where that many zeros can be read."""
    from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,), numticks=12))
    axis.set_minor_formatter(NullFormatter())
    plain = low >= 1e-4 and high <= 1e5
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}") if plain else LogFormatterSciNotation()
    )


def lr_axis(axes: Axes, lrs: np.ndarray, most: int) -> None:
    """A log axis with its ticks at the learning rates of the grid, while these are `most` or fewer."""
    axes.set_xscale("log")
    axes.set_xlim(*limits(lrs, np.array([]), log=True))
    log_axis(axes, "x")
    if len(lrs) <= most:
        axes.set_xticks(lrs, [f"{lr:g}" for lr in lrs])
        axes.set_xticks([], minor=True)
