"""The figure of ``analyses/scaling.md``: the price of a run-step against each number, and the model beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scaling_model as model

from alignlab.figures import style
from alignlab.figures.finishing import finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "runs": "runs in the population, K",
    "width": "units in each hidden layer",
    "depth": "hidden layers",
    "batch": "batch size, N",
    "share": "recorded steps of 64",
}
SERIES = {0.0: "no step recorded", 1.0: "every step recorded"}


def draw(found: Mapping[str, Any]) -> Figure:
    """A panel for each line through the base, and one of the points held out."""
    fitted = model.fitted(found)
    with style.styled():
        figure, grid = style.grid(2, 3, 2.9, 2.4)
        for ax, name in zip(grid.flat, LABELS, strict=False):
            _line(ax, name, found, fitted)
        _held_out(grid[1, 2], found, fitted)
        for ax in grid[:, 0]:
            ax.set_ylabel("µs a step of one run")
        handles = dict(zip(*reversed(grid[0, 0].get_legend_handles_labels()), strict=True))
        handles |= dict(zip(*reversed(grid[1, 2].get_legend_handles_labels()), strict=True))
        base = found["base"]
        title = (
            f"A step of one run: {base['inputs']}-{'-'.join([str(base['width'])] * base['depth'])}-10, K = {base['runs']}, "
            f"N = {base['batch']}, unless the axis says otherwise"
        )
        return finish(figure, title, handles, "", "Bars: quartiles of the rounds.")


def _along(name: str, fixed: Mapping[str, Any], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points of a line: all else as at the base, and nothing drawn at random."""
    values = found["lines"][name]
    there = [p for p in found["points"] if not p["held_out"] and p[name] in values]
    return sorted((p for p in there if all(p[k] == v for k, v in fixed.items())), key=lambda p: p[name])


def _line(ax: Axes, name: str, found: Mapping[str, Any], fitted: model.Array) -> None:
    looks = style.looks(list(SERIES.values()))
    series = {None: None} if name == "share" else SERIES
    for share, label in series.items():
        fixed = {key: value for key, value in found["base"].items() if key != name}
        fixed |= {} if share is None else {"share": share}
        points = _along(name, fixed, found)
        look = looks[label] if label else style.Look("0.25", "-", "D")
        x, y = np.array([(p[name], 1e6 * p["seconds"]) for p in points]).T
        low, high = 1e6 * np.array([p["quartiles"] for p in points]).T
        bars = np.clip([y - low, high - y], 0, None)
        ax.errorbar(x, y, bars, color=look.color, marker=look.marker, ls="", elinewidth=1, label=label)
        ax.plot(
            x, [1e6 * model.predicted(fitted, p) for p in points], color=look.color, ls="-", lw=1.2,
            label=f"{label}: model" if label else None,
        )  # fmt: skip
    ax.set_xlabel(LABELS[name])
    if name == "share":
        ax.set_ylim(0)
        ax.set_xticks([0, 1 / 4, 1 / 2, 3 / 4, 1], ["0", "16", "32", "48", "64"])
    else:
        _logarithmic(ax, x)


def _held_out(ax: Axes, found: Mapping[str, Any], fitted: model.Array) -> None:
    held = [p for p in found["points"] if p["held_out"]]
    x = [1e6 * p["seconds"] for p in held]
    ax.plot(x, [1e6 * model.predicted(fitted, p) for p in held], "P", color="0.25", label="held-out points")
    ends = np.array([0.7 * min(x), 1.4 * max(x)])
    ax.plot(ends, ends, color=style.REFERENCE, lw=0.8, ls="-", label="predicted = measured")
    _logarithmic(ax, ())
    ax.set_xlabel("measured, µs")
    ax.set_ylabel("predicted, µs")


def _logarithmic(ax: Axes, ticks: Sequence[float]) -> None:
    """Both axes, with numbers as one reads them; ``ticks`` of x, tens where none are given."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.set_minor_formatter(NullFormatter())
    if len(ticks):
        ax.xaxis.set_major_locator(FixedLocator(list(ticks)))
        ax.xaxis.set_minor_locator(NullLocator())
