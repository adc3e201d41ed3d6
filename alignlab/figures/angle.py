"""Angles over training: how far a rule's teaching signal points away from backprop's, layer by layer.

The figure of Lillicrap et al. 2016 (doi:10.1038/ncomms13276, fig. 2c): at 90° the rule's gradient is as good as a
random direction, below it the step descends the true loss. The band around 90° holds random directions. Random feedback is
none: its gradient shares inputs and errors with backprop's, and strays further (:mod:`alignlab.measures.chance`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignlab.figures import contents, groups, lines, style
from alignlab.figures.finishing import finish
from alignlab.measures.chance import chance_band
from alignlab.measures.quantities import QUANTITIES
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SINGLE = (
    "linear",
    "",
)  # kinds of layers with one value a unit and sample, and of layers that a run does not have
ERRORS = "_errors"  # how many entries the errors have that a run sends directly
ANGLES = ("gradient_angle", "delta_angle", "local_angle", "weight_angle", "update_angle")


def angles(
    dataset: xr.Dataset, quantity: str = "gradient_angle", *, hue: str = "layer", col: str | None = None
) -> Figure:
    """An angle over training, one line for each level of `hue`, with the chance band around 90°.

    Args:
        dataset: one run or several (data contract); several are averaged over seeds only.
        quantity: gradient_angle, delta_angle, local_angle, weight_angle or update_angle; in degrees.
        hue: `"layer"` or a coordinate of the runs (`"rule"`, `"lr"`, `"seed"`, ...), told apart by colour.
        col: another of these, told apart by panel.

    The band holds 95 % of the angles to a random direction in as many dimensions as the two vectors have:
    fan_in · fan_out for gradients, weights and updates, fan_out for delta_angle and fan_in for local_angle (there for
    one sample, so that it is too wide for their means). The weights that direct rules go by have one for each unit and each
    output. Where the number is not known there is no band: of signals of convolutions, which are maps, of untied weights,
    and of direct rules' where the readout was selected away. Where a panel shows several layers it is that of the smallest
    known. A gradient outside of the band is no random direction; that its feedback is better than random does not follow.

    Raises:
        ValueError: for a quantity that is no such angle or was not recorded, and for an unknown hue or col.
    """
    if quantity not in ANGLES:
        raise ValueError(f"{quantity!r} is no angle with a chance level; choose from {', '.join(ANGLES)}")
    contents.need(dataset, quantity)
    data = as_runs(dataset)
    data = _with_errors(data) if quantity == "weight_angle" and "fan_out" in data.coords else data
    data = groups.with_layers(data, quantity, hue)
    panels = groups.panels(data, hue, col, layered=True)
    with style.styled():
        figure, axes, used = style.wrapped(len(panels))
        drawn = lines.draw_panels(used, panels, quantity, hue, layered=True, log=False)
        bands = [_draw_chance(ax, panel.data, quantity) for ax, panel in zip(used, panels, strict=True)]
        lines.label_axes(axes, quantity, log=False)
        _limit(used[0], drawn)
        entries = lines.legend_entries(panels, hue, (curve.level for curve in drawn)) | _legend(bands)
        note = f"{lines.note(drawn, False)} {lines.unseen(data, quantity, hue)}".strip()
        return finish(figure, groups.context(data, hue, col), entries, hue, note)


def dimensions(data: xr.Dataset, quantity: str) -> int | None:
    """How many entries the vectors have between which `quantity` is the angle, in the smallest layer that has one; None where
    not known.
    """
    import xarray as xr

    for name in ("fan_in", "fan_out"):
        if name not in data.coords:
            raise ValueError(f"the dataset's layers have no {name!r}, without which there is no chance band")
    fan_in, fan_out = data["fan_in"].astype(float), data["fan_out"].astype(float)
    kinds = data["kind"] if "kind" in data.coords else xr.DataArray("linear")
    single = kinds.isin(
        _SINGLE
    )  # signals of convolutions are whole maps, untied weights as many as their places
    entries = (fan_in * fan_out).where(kinds != "locally_connected2d")
    entries = {"delta_angle": fan_out.where(single), "local_angle": fan_in.where(single)}.get(
        quantity, entries
    )
    shown = _there(data, quantity)
    if quantity == "weight_angle":
        direct = xr.DataArray(groups.direct(data), dims="run")
        sent = (fan_out * data[ERRORS]).where(single)
        if (direct & shown & sent.isnull()).any():
            return None
        entries = entries.where(~direct, sent)
    sizes = entries.where(shown).values
    return None if np.isnan(sizes).all() else int(np.nanmin(sizes))


def _there(data: xr.Dataset, quantity: str) -> xr.DataArray:
    """Whether the quantity has a value at some step, by run and layer."""
    finite: xr.DataArray = abs(data[quantity]) < np.inf
    return finite.any([dim for dim in finite.dims if dim not in ("run", "layer")])


def _with_errors(data: xr.Dataset) -> xr.Dataset:
    """The runs with the entries of an error that is sent directly, as many as their readouts have units; NaN where the last
    layer has a B, as the readout, which was selected away, has none."""
    known = contents.values(data, "weight_angle", ("layer", "step")).notnull().any("step").values
    fan_out = data["fan_out"].astype(float)
    fan_out = fan_out.expand_dims([dim for dim in ("run", "layer") if dim not in fan_out.dims])
    sizes = np.broadcast_to(fan_out.transpose("run", "layer").values, known.shape)
    last = sizes.shape[1] - 1 - np.isfinite(sizes)[:, ::-1].argmax(axis=1)  # of those that a run has
    at = np.arange(len(sizes)), last
    return data.assign({ERRORS: ("run", np.where(known[at], np.nan, sizes[at]))})


def _draw_chance(axes: Axes, data: xr.Dataset, quantity: str) -> float:
    """Draw band and line at the null value behind the curves; returns the half width in degrees, NaN without a band."""
    entries, half = dimensions(data, quantity), np.nan
    if entries is not None:
        low, high = chance_band(entries)
        half = (high - low) / 2
        axes.axhspan(low, high, color=style.SHADE, linewidth=0, zorder=0.5, label="_chance band")
    axes.axhline(
        QUANTITIES[quantity].null or 90.0, color=style.REFERENCE, linewidth=1, zorder=0.6, label="_chance"
    )
    return half


def _limit(axes: Axes, drawn: list[lines.Curve]) -> None:
    """From 0° (backprop's own direction) to beyond 90°, to 180° only where some angle is well above it."""
    obtuse = max(np.nanmax(curve.runs) for curve in drawn) > 110
    axes.set_ylim(*(-5, 185) if obtuse else (-3, 123))
    axes.set_yticks(range(0, 181 if obtuse else 121, 30))


def _legend(bands: list[float]) -> dict[str, Artist]:
    from matplotlib.patches import Patch

    known = [band for band in bands if np.isfinite(band)]
    if not known:
        return lines.reference_entry("chance (90°)")
    least, most = f"±{min(known):.2g}°", f"±{max(known):.2g}°"
    width = most if least == most else f"{least} to {most}"
    return lines.reference_entry("chance (90°)") | {
        f"95 % of random directions ({width})": Patch(color=style.SHADE)
    }
