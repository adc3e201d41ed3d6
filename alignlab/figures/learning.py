"""Learning curves: an outcome over training, one line a rule. What a claim usually shows, and where an audit begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignlab.figures import contents, groups, lines, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


def learning_curves(
    dataset: xr.Dataset, outcome: str = "train_loss", *, hue: str = "rule", col: str | None = None
) -> Figure:
    """An outcome over training, one line for each level of `hue`: losses on a log axis, accuracies on a linear one.

    Args:
        dataset: one run or several (data contract); several are averaged over seeds only.
        outcome: a variable with one value a step, such as train_loss, validation_accuracy or loss.
        hue: a coordinate of the runs (`"rule"`, `"lr"`, `"arm"`, ...), told apart by colour.
        col: another of these, told apart by panel.

    Runs that diverged leave the frame, at most a decade above the others, with a cross at its edge.

    Raises:
        ValueError: if the outcome was not recorded, and for an unknown hue or col.
    """
    contents.need_outcome(dataset, outcome)
    data = contents.as_runs(dataset)
    panels = groups.panels(data, hue, col, layered=False)
    log = is_log(data, outcome)
    with style.styled():
        figure, axes, used = style.wrapped(len(panels))
        drawn = lines.draw_panels(used, panels, outcome, hue, layered=False, log=log)
        lines.fit(used, drawn, log)
        lines.label_axes(axes, outcome, log)
        entries = lines.legend_entries(panels, hue, (curve.level for curve in drawn))
        return style.finish(
            figure, groups.context(data, hue, col, "layer"), entries, hue, lines.note(drawn, log)
        )


def is_log(data: xr.Dataset, outcome: str) -> bool:
    """Whether the outcome is a loss that is positive throughout."""
    return outcome.endswith("loss") and bool(np.nanmin(data[outcome].values) > 0)
