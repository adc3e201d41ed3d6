"""The stars of a figure over learning rates: where each curve's optimum is, one a study, and which of them lie on an edge."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.figures import style
from alignlab.figures.sweeps import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAR = 9  # points between two stars side by side


def draw_optima(axes: Axes, found: list[Sweep], look: dict[Hashable, style.Look]) -> None:
    """A star at each optimum, hollow and red on the grid's edge, and the learning rate under the lowest star there.

    Stars that would cover each other stand side by side at their rate, in the order of their values.
    """
    from matplotlib.transforms import ScaledTranslation

    labelled = set()
    stars = [(sweep, place) for sweep in found for place in sweep.optima]
    stars.sort(key=lambda star: float(star[0].mean[star[1]]))
    top = axes.get_ylim()[1]  # where a study chose a rate that others found bad
    at = [(float(sweep.lrs[place]), min(float(sweep.mean[place]), top)) for sweep, place in stars]
    for (sweep, place), (lr, value), aside in zip(stars, at, _asides(axes, at), strict=True):
        edge = sweep.is_edge(place)
        beside = axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
        axes.plot(
            lr, value, "*", markersize=13, zorder=5, label="_optimum", clip_on=False, transform=beside,
            color="white" if edge else look[sweep.level].color, markeredgecolor=style.ALERT if edge else "black",
            markeredgewidth=1.4 if edge else 0.7,
        )  # fmt: skip
        if len(sweep.optima) > 1:
            _count_studies(axes, lr, value, aside, sweep.chosen.count(place), look[sweep.level].color)
        if lr not in labelled:
            _label_optimum(axes, lr, value, edge, _outwards(sweep, place) if edge else "center")
        labelled.add(lr)


def _count_studies(axes: Axes, lr: float, value: float, aside: float, studies: int, color: Any) -> None:
    """Beside a star how many studies chose it."""
    from matplotlib.patheffects import withStroke

    axes.annotate(
        f"{studies}", (lr, value), (6 + aside, 4), textcoords="offset points", color=color, weight="bold", fontsize=8,
        zorder=6, path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip


def _asides(axes: Axes, at: Sequence[tuple[float, float]]) -> list[float]:
    """By how many points each star stands beside its rate: those at one rate, in rising order, of which each is nearer to the
    one before than a star is high."""
    height = axes.transData.transform(np.reshape(at, (-1, 2)))[:, 1] * 72 / axes.figure.dpi
    asides = [0.0] * len(at)
    for lr in {lr for lr, _ in at}:
        here = [i for i, (own, _) in enumerate(at) if own == lr]
        gaps = np.diff([height[i] for i in here]) >= STAR
        for close in np.split(here, np.flatnonzero(gaps) + 1):
            for place, i in enumerate(close):
                asides[i] = (place - (len(close) - 1) / 2) * STAR
    return asides


def _outwards(sweep: Sweep, place: int) -> str:
    """How to align a label at the grid's edge so that it stays within the frame."""
    if len(sweep.lrs) == 1:
        return "center"
    return "left" if place == 0 else "right"


def _label_optimum(axes: Axes, lr: float, value: float, edge: bool, alignment: Any) -> None:
    from matplotlib.patheffects import withStroke

    shift = {"left": -6, "right": 6}.get(alignment, 0)
    axes.annotate(
        f"{lr:g}\n(edge)" if edge else f"{lr:g}", (lr, value), (shift, -9), textcoords="offset points", va="top",
        ha=alignment, color=style.ALERT if edge else "black", weight="bold" if edge else "normal", fontsize=8,
        zorder=6, path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip
