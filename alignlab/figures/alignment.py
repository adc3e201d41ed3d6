"""How feedback and weights come to agree: clouds of eigenvalues above, what they mean for learning below, on one step axis.

Refinetti et al. 2021 (arXiv:2011.12428) found that networks with random feedback first align, then memorise. Whether an error
is sent downhill is the sign of eᵀ W Bᵀ e (Lillicrap et al. 2016), so the clouds are those of W Bᵀ.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.figures import contents, groups, lines, scales, style, widths
from alignlab.figures.finishing import finish
from alignlab.figures.spectrum import BAR
from alignlab.measures.quantities import QUANTITIES
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLOUDS = 5
LAYERED = (
    "descent_fraction",
    "spectrum_positive_fraction",
    "symmetric_min",
    "gradient_angle",
    "weight_angle",
)
WORDS = {
    "descent_fraction": "errors sent downhill",
    "spectrum_positive_fraction": "eigenvalues on the right",
    "symmetric_min": "smallest, symmetric part",
}
LEVELS = {"symmetric_min": 0.0}  # beside the values that chance gives
LOSSES: dict[str, tuple[str, Any, str]] = {
    "loss": ("black", "-", "training loss"),
    "validation_loss": ("0.45", (0, (5, 1.6)), "validation loss"),
}
EVENLY = ("validation_loss",)
MARKS: Any = ((0, (4, 2)), (0, (1, 1.5)), "-.")
CONTROL: dict[str, Any] = {
    "color": "0.45",
    "linewidth": 1.0,
    "linestyle": (0, (1.2, 1.2)),
    "label": "_control",
}


def aligning(
    dataset: xr.Dataset,
    *,
    cloud: str,
    steps: Sequence[int] | None = None,
    seed: int | None = None,
    control: xr.Dataset | None = None,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Eigenvalues of W Bᵀ at a few steps, and below, over log steps, the shares of errors and of eigenvalues that descend, the
    smallest eigenvalue of the symmetric part, the angles of gradient and weight, and the loss.

    Args:
        dataset: runs of one condition (data contract) with spectra, angles and loss recorded; curves are means over seeds.
        cloud: the layer whose eigenvalues are shown, of the one run with this `seed` (by default the first).
        steps: where; each has to be one with a spectrum. By default 5, evenly spaced in log(1 + step).
        control: runs to compare with, backprop's say; their means are thin dotted lines.
        marks: steps to mark in all lower panels, by what happens there.

    The dashed circle, of the recorded ``chance_radius``, holds the eigenvalues of a B of this size that is unrelated to W; the
    bar is the range of the symmetric part.

    Raises:
        ValueError: if a quantity, the layer, the seed or a step was not recorded, or the runs are of several conditions.
    """
    needed = (
        "spectrum_real",
        "spectrum_imag",
        *LAYERED,
        "symmetric_max",
        "chance_radius",
        "loss",
    )
    contents.need(dataset, *needed)
    data = as_runs(dataset)
    _one_condition(data)
    shown = _cloud(data, cloud, seed, steps)
    marked = dict(marks or {})
    with style.styled():
        figure, clouds, below = _axes(shown.sizes["step"])
        for ax, step in zip(clouds, shown["step"].values.tolist(), strict=True):
            _draw_cloud(ax, shown.sel(step=step))
        clouds[0].set_ylabel("Im λ")
        drawn = [
            curve for ax, name in zip(below, LAYERED, strict=False) for curve in _draw_layers(ax, data, name)
        ]
        _draw_losses(below[-1], data)
        if control is not None:
            _draw_control(below, as_runs(control))
        _finish_lower(below, data, marked)
        clouds_of = f"layer {style.plain(cloud)}, seed {shown['seed'].item()}"
        title = f"{groups.context(data, 'layer')} · clouds: {clouds_of}, each to its scale"
        losses = lines.unplaced([(data, name) for name in LOSSES if name in data], "rule")
        note = f"{lines.note(drawn, False, True)} {losses}".strip()
        return finish(
            figure, title, _legend(data, {curve.level for curve in drawn}, control, marked), "", note
        )


def _one_condition(data: xr.Dataset) -> None:
    mixed = [key for key in groups.conditions(data) if len(groups.levels(data, key)) > 1]
    if mixed:
        raise ValueError(f"these runs differ in {', '.join(mixed)}: select those of one condition first")


def _cloud(data: xr.Dataset, layer: str, seed: int | None, steps: Sequence[int] | None) -> xr.Dataset:
    """One run's layer at the steps whose eigenvalues are to be shown."""
    for key, wanted in (("layer", layer), ("seed", seed)):
        known = groups.levels(data, key)
        if wanted is not None and wanted not in known:
            raise ValueError(f"no {key} {wanted!r} in these runs; there are {', '.join(map(str, known))}")
    run = 0 if seed is None else int(np.argmax(data["seed"].values == seed))
    own = groups.select(data.isel(run=[run]), "layer", layer)
    modes = contents.values(own, "spectrum_real", ("layer", "mode", "step")).notnull()
    there = own["step"].values[modes.any(("run", "layer", "mode")).values]
    if not len(there):
        raise ValueError(f"layer {layer!r} has no spectrum: its feedback plays no part, or was not recorded")
    chosen = _spread(there) if steps is None else np.asarray(steps)
    if missing := sorted(set(chosen.tolist()) - set(there.tolist())):
        raise ValueError(
            f"no spectrum at step {', '.join(map(str, missing))}; there is one at {', '.join(map(str, there))}"
        )
    return own.isel(run=0, layer=0, missing_dims="ignore").sel(step=np.unique(chosen))


def _spread(there: np.ndarray) -> np.ndarray:
    """At most :data:`CLOUDS` of the recorded steps, evenly in log(1 + step), first and last included."""
    wanted = np.linspace(np.log1p(there[0]), np.log1p(there[-1]), CLOUDS)
    return np.unique(there[[np.abs(np.log1p(there) - x).argmin() for x in wanted]])


def _axes(clouds: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """A row of squares above two rows of three panels that share their steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(widths.width_of(9.4, 1), 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    halves = figure.add_gridspec(2, 1, height_ratios=(2.0, 4.2))
    squares, grid = halves[0].subgridspec(1, clouds), halves[1].subgridspec(2, 3)
    above = [figure.add_subplot(squares[i]) for i in range(clouds)]
    first = figure.add_subplot(grid[0, 0])
    below = [first, *(figure.add_subplot(grid[i // 3, i % 3], sharex=first) for i in range(1, 6))]
    return figure, above, below


def _draw_cloud(ax: Axes, own: xr.Dataset) -> None:
    """Eigenvalues at one step, the disc of chance, the imaginary axis, and the symmetric part's range."""
    from matplotlib.patches import Circle

    real, imag = (own[f"spectrum_{part}"].values.astype(np.float64) for part in ("real", "imag"))
    radius = float(own["chance_radius"])
    bar = [float(own["symmetric_min"]), float(own["symmetric_max"])]
    ax.add_patch(
        Circle(
            (0, 0), radius, fill=False, color=style.REFERENCE, linestyle="--", linewidth=1, label="_chance"
        )
    )
    ax.axvline(0, color=style.REFERENCE, linewidth=1, zorder=0.6, label="_imaginary axis")
    ax.plot(bar, [0, 0], label="_symmetric part", zorder=1.5, **BAR)
    ax.scatter(real, imag, s=9, color=style.palette()[0], alpha=0.85, linewidth=0, zorder=2)
    x = [-radius, radius, *bar, float(np.nanmin(real)), float(np.nanmax(real))]
    half = 0.55 * max(max(x) - min(x), 2 * radius, 2 * float(np.nanmax(np.abs(imag))))
    left, right = (max(x) + min(x)) / 2 - half, (max(x) + min(x)) / 2 + half
    ax.set(xlim=(left, right), ylim=(-half, half), aspect="equal", xlabel="Re λ")
    ax.axvspan(0, right, color=style.SHADE, alpha=0.55, linewidth=0, zorder=0.4, label="_right half plane")
    ax.grid(False)
    ax.locator_params(nbins=4)
    share = float(own["spectrum_positive_fraction"])
    ax.set_title(f"step {int(own['step']):,}\n{share:.0%} have Re λ > 0", loc="left")


def _draw_layers(ax: Axes, data: xr.Dataset, name: str) -> list[lines.Curve]:
    """A quantity of all layers that have it, and what chance gives."""
    reference = LEVELS.get(name, QUANTITIES[name].null)
    if reference is not None:
        ax.axhline(reference, color=style.REFERENCE, linewidth=1, zorder=0.6, label="_chance level")
    look = style.looks(groups.levels(data, "layer"))
    drawn = lines.curves(data, name, "layer", layered=True, log=False)
    for curve in drawn:
        lines.draw(ax, replace(curve, steps=curve.steps + 1), look[curve.level], str(curve.level))
    ax.set_title(style.axis_label(name, WORDS.get(name), width=widths.letters(60)), loc="left")
    low, high = QUANTITIES[name].low, QUANTITIES[name].high
    if (low, high) == (0, 1):
        ax.set_ylim(-0.03, 1.05)
    elif (low, high) == (0, 180):
        ax.set_ylim(0, max(100.0, float(np.nanmax(data[name].values)) + 5))
        ax.set_yticks(range(0, 181 if ax.get_ylim()[1] > 120 else 91, 30))
    return drawn


def _draw_losses(ax: Axes, data: xr.Dataset) -> None:
    for name, (color, dashes, text) in LOSSES.items():
        if name in data:
            later = (
                data.sel(step=data["step"] > 0) if name in EVENLY else data
            )  # no line from 0 across what it did not see
            for curve in lines.curves(later, name, "rule", layered=False, log=True):
                lines.draw(
                    ax, replace(curve, steps=curve.steps + 1), style.Look(color, dashes, ""), f"_{text}"
                )
    scales.log_axis(ax)
    ax.set_title("loss", loc="left")


def _draw_control(axes: list[Axes], control: xr.Dataset) -> None:
    """The means of other runs, all layers alike, as thin lines; limits stay where they were. Of a loss they are geometric."""
    for ax, name in zip(axes, (*LAYERED, "loss"), strict=True):
        if name not in control:
            continue
        limits = ax.get_ylim()
        if name in LAYERED:
            table = contents.values(control, name, ("layer", "step")).mean("run", skipna=False).values
        else:
            table = lines.mean_and_interval(contents.values(control, name, ("step",)).values, log=True)[0]
        for row in np.atleast_2d(table):
            there = np.isfinite(row)
            ax.plot(control["step"].values[there] + 1, row[there], zorder=1.2, **CONTROL)
        if name in LAYERED:
            ax.set_ylim(limits)


def _finish_lower(axes: list[Axes], data: xr.Dataset, marks: Mapping[str, float]) -> None:
    drawn = [contents.values(data, name, ("step",)).notnull().any("run") for name in LOSSES if name in data]
    drawn += [
        contents.values(data, name, ("layer", "step")).notnull().any(("run", "layer")) for name in LAYERED
    ]
    recorded = data["step"].values[np.any([there.values for there in drawn], axis=0)]
    for i, ax in enumerate(axes):
        ax.set_xscale("log")
        ax.set_xlim(0.9, float(recorded.max() + 1) * 1.1)
        for dashes, step in zip(itertools.cycle(MARKS), marks.values(), strict=False):
            ax.axvline(step + 1, color=style.ALERT, linewidth=1, linestyle=dashes, zorder=0.8, label="_mark")
        ax.tick_params(labelbottom=i >= 3)
        if i >= 3:
            ax.set_xlabel("optimizer step + 1")


def _legend(
    data: xr.Dataset, drawn: set[Hashable], control: xr.Dataset | None, marks: Mapping[str, float]
) -> dict[str, Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    blue = style.palette()[0]
    entries: dict[str, Artist] = {
        "eigenvalue of W Bᵀ": Line2D([], [], color=blue, marker="o", markersize=4, linestyle=""),
        "Re λ > 0": Patch(color=style.SHADE, alpha=0.55),
        "disc of a B unrelated to W": Line2D([], [], color=style.REFERENCE, linestyle="--", linewidth=1),
        "range of the symmetric part": Line2D([], [], **BAR),
    }
    for layer, look in style.looks(groups.levels(data, "layer")).items():
        if layer in drawn:
            entries[f"layer {style.plain(layer)}"] = Line2D([], [], **look._asdict(), markeredgecolor="white")
    entries |= {
        text: Line2D([], [], color=c, linestyle=d) for name, (c, d, text) in LOSSES.items() if name in data
    }
    if control is not None:
        rules = ", ".join(map(style.plain, groups.levels(as_runs(control), "rule")))
        entries[f"control: {rules}"] = Line2D([], [], **CONTROL | {"label": None})
    entries |= lines.reference_entry("chance (of the symmetric part: 0)")
    for dashes, (text, step) in zip(itertools.cycle(MARKS), marks.items(), strict=False):
        entries[f"{style.plain(text)}: step {step:,.0f}"] = Line2D(
            [], [], color=style.ALERT, linewidth=1, linestyle=dashes
        )
    return entries
