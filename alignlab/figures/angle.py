"""Angles over training: how far a rule's teaching signal points away from backprop's, layer by layer.

The figure of Lillicrap et al. 2016 (doi:10.1038/ncomms13276, fig. 2c): at 90° the rule's gradient is as good as a
random direction, below it the step descends the true loss. The band around 90° holds random directions. Random feedback is
none: its gradient shares inputs and errors with backprop's, and strays further (:mod:`alignlab.measures.chance`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignlab.figures import contents, groups, lines, style
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
    panels = groups.panels(data, hue, col, layered=True)
    with style.styled():
        figure, axes, used = style.wrapped(len(panels))
        drawn = lines.draw_panels(used, panels, quantity, hue, layered=True, log=False)
        bands = [_draw_chance(ax, panel.data, quantity, data) for ax, panel in zip(used, panels, strict=True)]
        lines.label_axes(axes, quantity, log=False)
        _limit(used[0], drawn)
        entries = lines.legend_entries(panels, hue, (curve.level for curve in drawn)) | _legend(bands)
        note = f"{lines.note(drawn, False)} {lines.unseen(data, quantity, hue)}".strip()
        return style.finish(figure, groups.context(data, hue, col), entries, hue, note)


def dimensions(data: xr.Dataset, quantity: str, whole: xr.Dataset | None = None) -> int | None:
    """How many entries the vectors have between which `quantity` is the angle, in the smallest layer that has one; None where
    not known.

    ``whole``: the runs with all their layers, where ``data`` has some of them.
    """
    for name in ("fan_in", "fan_out"):
        if name not in data.coords:
            raise ValueError(f"the dataset's layers have no {name!r}, without which there is no chance band")
    if quantity == "weight_angle" and (direct := groups.direct(data)).any():
        sent = _sent_directly(data.isel(run=direct), data if whole is None else whole)
        rest = data.isel(run=~direct)
        others = [dimensions(rest, quantity)] if np.isfinite(rest[quantity].values).any() else []
        found = [*sent, *others]
        return None if None in found else min((n for n in found if n is not None), default=None)
    fan_in, fan_out = data["fan_in"].astype(float), data["fan_out"].astype(float)
    of_signals = {"delta_angle": fan_out, "local_angle": fan_in}
    entries = of_signals.get(quantity, fan_in * fan_out)
    if (
        "kind" in data.coords
    ):  # signals of convolutions are whole maps, untied weights as many as their places
        kinds = data["kind"]
        known = kinds.isin(_SINGLE) if quantity in of_signals else kinds != "locally_connected2d"
        entries = entries.where(known)
    shown = np.isfinite(data[quantity]).any([dim for dim in data[quantity].dims if dim not in entries.dims])
    sizes = entries.where(shown).values
    return None if np.isnan(sizes).all() else int(np.nanmin(sizes))


def _sent_directly(data: xr.Dataset, whole: xr.Dataset) -> list[int | None]:
    """Of each layer to which a direct rule sends errors the entries of B: its units times the readout's, which has no B."""
    there = contents.values(data, "weight_angle", ("layer", "step")).notnull().any(("run", "step")).values
    last = whole.isel(layer=[-1]) if "layer" in whole.dims else whole
    last = last.isel(run=groups.direct(last))
    readout = not np.isfinite(last["weight_angle"].values).any()
    outputs = float(np.nanmax(last["fan_out"].values.astype(float))) if readout else np.nan
    columns = data.transpose(..., "layer", missing_dims="ignore")
    units = np.nanmax(np.atleast_2d(columns["fan_out"].values.astype(float)), axis=0)
    kinds = columns["kind"].values if "kind" in data.coords else np.array("linear")
    single = np.atleast_2d(np.isin(kinds, _SINGLE)).all(axis=0)
    entries = np.where(single, units * outputs, np.nan)[there]
    return [int(n) if np.isfinite(n) else None for n in entries]


def _draw_chance(axes: Axes, data: xr.Dataset, quantity: str, whole: xr.Dataset) -> float:
    """Draw band and line at the null value behind the curves; returns the half width in degrees, NaN without a band."""
    entries, half = dimensions(data, quantity, whole), np.nan
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
