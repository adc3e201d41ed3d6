"""Spectra of W Bᵀ in the complex plane over training: does the feedback come to point downhill?

A layer's error e is handed down through B while W handed it up. Eigenvalues of W Bᵀ right of the imaginary axis mean
directions in which the feedback descends; eᵀ W Bᵀ e > 0 holds for *every* error only where the symmetric part's
smallest eigenvalue is positive (Lillicrap et al. 2016, doi:10.1038/ncomms13276), so that range is marked as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.figures import contents, groups, style
from alignlab.figures.finishing import finish
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_STEPS = 6
PASSES, MOST_PASSES = 4, 12  # of the layout, after which square panels may stay where they are, and will
STILL = 0.001  # in
MARGIN = 0.05  # in
BAR_WIDTH, BAR_ROWS = 0.11, 2  # of the colour bar: inches, and rows of panels
BAR: dict[str, Any] = {
    "color": "#d55e00",
    "linewidth": 1.6,
    "marker": "|",
    "markersize": 9,
    "markeredgewidth": 1.6,
}


def spectra(
    dataset: xr.Dataset, layer: str | Sequence[str] | None = None, steps: Sequence[int] | None = None
) -> Figure:
    """Eigenvalues of W Bᵀ, one panel a layer (and rule), coloured by the step at which they were taken.

    Args:
        dataset: one run or several (data contract) with spectrum_real and spectrum_imag; of several runs that differ
            in nothing but the seed all eigenvalues are shown together.
        layer: name of a layer, or several; all by default.
        steps: which recorded steps to show; by default at most 6, spread evenly from the first to the last.

    The right half plane is shaded. The bar on the real axis runs from symmetric_min to symmetric_max at the last step
    shown (over all of a panel's runs), where these were recorded.

    Raises:
        ValueError: if the spectrum was not recorded, at all or in a layer or step that was asked for.
    """
    contents.need(dataset, "spectrum_real", "spectrum_imag")
    data = _of_layers(as_runs(dataset), layer)
    shown = _steps(data, steps)
    data = data.sel(step=shown)
    panels = [
        p for p in groups.panels(data, None, None, layered=True) if np.isfinite(p.data["spectrum_real"]).any()
    ]
    title = groups.context(data)
    with style.styled():
        figure, axes, used = style.wrapped(len(panels), square=True, share=False)
        colours = style.sequential()(np.linspace(0, 1, len(shown)) if len(shown) > 1 else [1.0])
        for ax, panel in zip(used, panels, strict=True):
            _draw_panel(ax, panel, colours)
        for ax in style.bottoms(axes):
            ax.set_xlabel(style.axis_label("spectrum_real", "real part"))
        for ax in axes[:, 0]:
            ax.set_ylabel(style.axis_label("spectrum_imag", "imaginary part"))
        _colour_bar(figure, used, len(axes), colours, shown)
        most = max(panel.data.sizes["run"] for panel in panels)
        note = f"Each panel shows the eigenvalues of up to {most} runs together." if most > 1 else ""
        finished = finish(figure, title, _legend(data), "", note)
        _settle(finished)
        return finished


def _settle(figure: Figure) -> None:
    """Lay square panels out until they stay: each time they shrink and their labels move, perhaps off the canvas."""
    engine: Any = figure.get_layout_engine()
    beyond = _laid_out(figure)
    if beyond > 0:
        x, y, width, height = engine.get()["rect"]
        more = (beyond + MARGIN) / figure.get_size_inches()[0]
        engine.set(rect=(x + more, y, width - more, height))
        _laid_out(figure)


def _laid_out(figure: Figure) -> float:
    """By how many inches labels stand beyond the left edge once the panels stay where they are; they may rest in between."""
    engine: Any = figure.get_layout_engine()
    before, beyond = np.inf, np.inf
    for i in range(MOST_PASSES):
        engine.execute(figure)
        before, beyond = beyond, -float(figure.get_tightbbox().x0)
        if i >= PASSES and abs(beyond - before) < STILL:
            break
    return beyond


def _draw_panel(axes: Axes, panel: groups.Panel, colours: np.ndarray) -> None:
    """The half plane, both axes, the symmetric part's range, and the eigenvalues with the latest on top."""
    real, imag = (
        contents.values(panel.data, f"spectrum_{part}", ("step", "mode")) for part in ("real", "imag")
    )
    axes.axvline(0, color=style.REFERENCE, linewidth=1, zorder=0.6, label="_imaginary axis")
    axes.axhline(0, color=style.REFERENCE, linewidth=0.6, zorder=0.6, label="_real axis")
    bar = _symmetric_range(panel.data)
    if bar is not None:
        axes.plot(bar, [0, 0], label="_symmetric part", zorder=1.5, **BAR)
    for i, colour in enumerate(colours):
        x, y = real.isel(step=i).values.ravel(), imag.isel(step=i).values.ravel()
        axes.scatter(x, y, s=11, color=colour, alpha=0.85, linewidth=0, zorder=2 + i / 100)
    left, right, top = _frame(real.values, imag.values, bar)
    axes.set(xlim=(left, right), ylim=(-top, top), aspect="equal")
    axes.axvspan(0, right, color=style.SHADE, alpha=0.55, linewidth=0, zorder=0.4, label="_right half plane")
    axes.grid(False)
    axes.set_title(panel.title, loc="left")


def _frame(real: np.ndarray, imag: np.ndarray, bar: tuple[float, float] | None) -> tuple[float, float, float]:
    """Left, right and top of a square around everything shown and the origin, symmetric about the real axis."""
    x = [0.0, float(np.nanmin(real)), float(np.nanmax(real)), *(bar or ())]
    half = 0.55 * max(max(x) - min(x), 2 * float(np.nanmax(np.abs(imag)))) or 1.0
    centre = (max(x) + min(x)) / 2
    return centre - half, centre + half, half


def _symmetric_range(data: xr.Dataset) -> tuple[float, float] | None:
    """From symmetric_min to symmetric_max at the last step shown, over all runs; None where not recorded."""
    if "symmetric_min" not in data or "symmetric_max" not in data:
        return None
    low, high = data["symmetric_min"].isel(step=-1).values, data["symmetric_max"].isel(step=-1).values
    if not (np.isfinite(low).any() and np.isfinite(high).any()):
        return None
    return float(np.nanmin(low)), float(np.nanmax(high))


def _colour_bar(figure: Figure, axes: list[Axes], rows: int, colours: np.ndarray, shown: np.ndarray) -> None:
    """One field a step, early below and light, late above and dark."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    norm = BoundaryNorm(np.arange(len(shown) + 1) - 0.5, len(shown))
    mappable = ScalarMappable(norm, ListedColormap(colours))
    share = 0.9 * min(1.0, BAR_ROWS / rows)  # of many rows the bar stands beside the first ones
    inches = share * figure.get_figheight()
    bar = figure.colorbar(
        mappable, ax=axes, ticks=range(len(shown)), label="optimizer step", aspect=inches / BAR_WIDTH, shrink=share,
        anchor=(0.0, 1.0 if rows > BAR_ROWS else 0.5),
    )  # fmt: skip
    bar.ax.set_yticklabels([f"{step:,}" for step in shown])
    bar.ax.tick_params(length=0)


def _legend(data: xr.Dataset) -> dict[str, Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: dict[str, Artist] = {
        "eigenvalue": Line2D([], [], color=style.sequential()(1.0), marker="o", markersize=4, linestyle=""),
        "Re λ > 0": Patch(color=style.SHADE, alpha=0.55),
    }
    if _symmetric_range(data) is not None:
        entries["symmetric part,\nmin to max at last step"] = Line2D([], [], **BAR)
    return entries


def _of_layers(data: xr.Dataset, layer: str | Sequence[str] | None) -> xr.Dataset:
    """The layers asked for, each of which has to have a spectrum."""
    if layer is None:
        return data
    wanted, there = [layer] if isinstance(layer, str) else list(layer), groups.levels(data, "layer")
    for name in wanted:
        if name not in there:
            raise ValueError(f"no layer {name!r} in this dataset; choose from {', '.join(map(str, there))}")
    data = data.sel(layer=wanted) if "layer" in data.dims else data
    contents.need(data, "spectrum_real", "spectrum_imag")
    return data


def _steps(data: xr.Dataset, steps: Sequence[int] | None) -> np.ndarray:
    """The steps to show, in order; each has to be one at which a spectrum was recorded."""
    finite = contents.values(data, "spectrum_real", ("layer", "mode", "step")).notnull()
    recorded = np.asarray(data["step"].values[finite.any(("run", "layer", "mode")).values])
    if steps is None:
        chosen = np.linspace(0, len(recorded) - 1, MOST_STEPS).round().astype(int)
        return np.asarray(recorded[np.unique(chosen)])
    known = ", ".join(map(str, recorded))
    if not len(steps):
        raise ValueError(f"no steps given; a spectrum was recorded at {known}")
    if missing := sorted(set(steps) - set(recorded.tolist())):
        raise ValueError(f"no spectrum at step {', '.join(map(str, missing))}; one was recorded at {known}")
    return np.unique(np.asarray(steps))
