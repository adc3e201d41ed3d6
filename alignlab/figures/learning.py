"""Learning curves: an outcome over training, one line a rule. What a claim usually shows, and where an audit begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignlab.figures import contents, groups, lines, style
from alignlab.figures.finishing import finish
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    from collections.abc import Hashable

    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECADES = 100.0  # how far apart losses lie that a linear axis would press together
SHOWN = 30  # marks of a line
ZERO = "▽ loss of exactly 0, for which a log axis has no place."


def learning_curves(
    dataset: xr.Dataset, outcome: str = "train_loss", *, hue: str = "rule", col: str | None = None
) -> Figure:
    """An outcome over training, one line for each level of `hue`: losses on a log axis, accuracies on a linear one.

    Args:
        dataset: one run or several (data contract); several are averaged over seeds only.
        outcome: a variable with one value a step, such as train_loss, validation_accuracy or loss.
        hue: a coordinate of the runs (`"rule"`, `"lr"`, `"arm"`, ...), told apart by colour.
        col: another of these, told apart by panel.

    Runs that diverged leave the frame, at most a decade above the others, with a cross at its edge. Where a loss is exactly
    0, the axis is linear while the others lie within two decades; else
    it stays logarithmic, and the zeros are triangles at its lower edge.

    Raises:
        ValueError: if the outcome was not recorded, and for an unknown hue or col.
    """
    contents.need_outcome(dataset, outcome)
    data = as_runs(dataset)
    panels = groups.panels(data, hue, col, layered=False)
    zeros = _zeros_among_decades(data, outcome)
    log = zeros or is_log(data, outcome)
    with style.styled():
        figure, axes, used = style.wrapped(len(panels))
        drawn = lines.draw_panels(used, panels, outcome, hue, layered=False, log=log)
        lines.fit(used, drawn, log)
        lines.label_axes(axes, outcome, log)
        marked = _mark_zeros(used, panels, outcome, hue) if zeros else []
        entries = lines.legend_entries(panels, hue, [*(curve.level for curve in drawn), *marked])
        told = [lines.note(drawn, log), ZERO * bool(marked), lines.unseen(data, outcome, hue)]
        note = " ".join(filter(None, told))
        return finish(figure, groups.context(data, hue, col, "layer"), entries, hue, note)


def is_log(data: xr.Dataset, outcome: str) -> bool:
    """Whether the outcome is a loss that is positive throughout."""
    return outcome.endswith("loss") and bool(np.nanmin(data[outcome].values) > 0)


def _zeros_among_decades(data: xr.Dataset, outcome: str) -> bool:
    """Whether the outcome is a loss that is 0 somewhere, and elsewhere spans decades."""
    table = data[outcome].values
    table = table[np.isfinite(table)]
    above = table[table > 0]
    zeros = outcome.endswith("loss") and above.size > 0 and bool(table.min() == 0)
    return zeros and bool(above.max() / above.min() >= DECADES)


def _mark_zeros(used: list[Axes], panels: list[groups.Panel], outcome: str, hue: str) -> list[Hashable]:
    """Triangles at the lower edge at the steps where runs of a level are 0; returns the levels that have any."""
    order = list(dict.fromkeys(level for panel in panels for level in groups.levels(panel.data, hue)))
    look, marked = style.looks(order), []
    for ax, panel in zip(used, panels, strict=True):
        table = contents.values(panel.data, outcome, ("step",))
        for level in groups.levels(panel.data, hue):
            none = (table.values[groups.having(panel.data, hue, level)] == 0).any(axis=0)
            steps = table["step"].values[none]
            if not steps.size:
                continue
            marked.append(level)
            steps = steps[:: -(-steps.size // SHOWN)]
            ax.plot(
                steps, np.zeros(steps.size), "v", transform=ax.get_xaxis_transform(), clip_on=False, label="_zero",
                markersize=6, markerfacecolor="white", markeredgecolor=look[level].color, zorder=4,
            )  # fmt: skip
    return marked
