"""Feedback gain and effective learning rate: how loud a rule speaks, layer by layer.

A rule that seems to learn faster may only take longer steps. The gain ‖G_rule‖ / ‖G_bp‖ says how much longer its
gradient is than backprop's on the same activations, the effective learning rate what it then trains with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignlab.figures import contents, groups, lines, style, widths
from alignlab.figures.finishing import finish
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

COLUMNS = ("feedback_gain", "effective_lr")


def gains(dataset: xr.Dataset, *, hue: str = "layer", col: str | None = None) -> Figure:
    """Feedback gain (left, 1 = as loud as backprop) and effective learning rate (right) over training, log axes.

    Args:
        dataset: one run or several (data contract) with feedback_gain and effective_lr, both dimensionless.
        hue: `"layer"` or a coordinate of the runs, told apart by colour.
        col: another of these; each of its levels is a row of the two panels.

    The right panels mark the nominal learning rates, before any schedule, where backprop's effective rates lie; where an
    optimizer has one for each of several groups of layers, all of these.

    Raises:
        ValueError: if a variable was not recorded, and for an unknown hue or col.
    """
    contents.need(dataset, *COLUMNS)
    data = groups.with_layers(as_runs(dataset), "feedback_gain", hue)
    panels = groups.panels(data, hue, col, layered=True)
    with style.styled():
        figure, axes = _axes(len(panels))
        several = _several_rates(data)
        rates = _nominal(data, several)
        drawn = []
        for column, name, references in zip(axes.T, COLUMNS, (np.ones(1), rates), strict=True):
            curves = lines.draw_panels(column, panels, name, hue, layered=True, log=True)
            lines.fit(list(column), curves, True, references)
            lines.label_axes(column[:, None], name, log=True)
            drawn += curves
        for (left, right), panel in zip(axes, panels, strict=True):
            left.axhline(1, color=style.REFERENCE, linewidth=1, zorder=0.6, label="_unit gain")
            for rate in _nominal(panel.data, several):
                right.axhline(
                    rate, color=style.REFERENCE, linewidth=1, linestyle=":", zorder=0.6, label="_nominal"
                )
        entries = lines.legend_entries(panels, hue, (curve.level for curve in drawn)) | lines.reference_entry(
            "gain 1: as loud as backprop"
        )
        if len(rates):
            entries |= lines.reference_entry(f"nominal learning rate{_scheduled(data)}", ":")
        silent = int((data["feedback_gain"].values <= 0).sum())
        idle = int(((data["effective_lr"].values <= 0) & (data["feedback_gain"].values > 0)).sum())
        told = [
            lines.note(drawn, True),
            f"{silent} values are 0 and not on these log axes." if silent else "",
            f"{idle} effective rates are 0, the learning rate being 0, and not on theirs." if idle else "",
            lines.unseen(data, "feedback_gain", hue),
        ]
        note = " ".join(filter(None, told))
        context = groups.context(data, hue, col, *(["lr"] if several else []))
        return finish(figure, context, entries, hue, note)


def _axes(panels: int) -> tuple[Figure, np.ndarray]:
    """A row of two for each panel; those of one panel below each other where a row has no room for them."""
    if panels == 1 and widths.columns_of(2) == 1:
        figure, axes = style.grid(2, 1, 3.4, 2.2)
        return figure, axes.T
    return style.grid(panels, 2, 3.4, 2.7 if panels == 1 else 2.2, sharey="col")


def _several_rates(data: xr.Dataset) -> bool:
    """Whether a layer's learning rate is another than the run's, which is that of one group of an optimizer's."""
    if "learning_rate" not in data:
        return False
    return bool((abs(_own(data) - data["learning_rate"]) > 1e-3 * data["learning_rate"]).any())


def _nominal(data: xr.Dataset, several: bool) -> NDArray[np.float64]:
    """The learning rates of the runs; or of their layers, the largest over training."""
    if several:
        rates = _own(data).max("step").values
        return np.unique(
            [float(f"{rate:.4g}") for rate in rates[rates > 0]]
        )  # layers at rest have no place on a log axis
    return np.unique(data["lr"].values) if "lr" in data.coords else np.array([])


def _scheduled(data: xr.Dataset) -> str:
    """What to say of a nominal rate that the rates of training leave, under a schedule."""
    if "learning_rate" not in data:
        return ""
    rates = data["learning_rate"]
    return ",\nbefore its schedule" if bool((rates.max("step") > 1.001 * rates.min("step")).any()) else ""


def _own(data: xr.Dataset) -> xr.DataArray:
    """Each layer's learning rate at each step."""
    gain = data["feedback_gain"]
    return data["effective_lr"] / gain.where(gain > 1e-30)  # less has few digits left
