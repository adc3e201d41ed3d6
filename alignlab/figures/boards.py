"""A board of curves: several quantities of the same runs side by side, with what theory predicts and what others reported.

For questions that need more than one quantity at a time: does an angle fall, as predicted, and does accuracy follow?
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.audit.feedback import predicted_angles
from alignlab.audit.outcomes import layers_with
from alignlab.figures import contents, groups, lines, scales, style, widths
from alignlab.figures.finishing import finish
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDEST = 75  # letters of a title, its formula's source included, beside which another panel's has room
PREDICTED: dict[str, Any] = {"color": "black", "linewidth": 1.1, "linestyle": (0, (1, 1.6)), "zorder": 3}


@dataclass(frozen=True)
class Shown:
    """One panel: the quantity ``name``, of one ``layer`` where it has one each.

    ``log``: the scale of its values. ``low``, ``high``: the ends of the axis, where they should not follow the curves.
    ``reference``: a level to draw. ``published``: values that others reported, by level of the hue, drawn as open marks at the
    right edge. ``predicted``: what theory says, steps and values by level of the hue, drawn as dotted black lines.
    """

    name: str
    layer: str | None = None
    log: bool = False
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    published: Mapping[Hashable, float] = field(default_factory=dict)
    predicted: Mapping[Hashable, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        words = style.axis_label(self.name, width=widths.letters(60))
        if self.layer is None:
            return words
        title = f"layer {style.plain(self.layer)}: {words}"
        return (
            title if len(title) <= WIDEST else f"{style.broken(f'layer {style.plain(self.layer)}:')}\n{words}"
        )


def angle_panels(
    runs: xr.Dataset, *, reference: float = 10.0, published: Mapping[Hashable, float] | None = None
) -> list[Shown]:
    """A panel for each layer whose B is in use: its angle to W from 1° to 120°, as measured and as theory predicts.

    ``reference``: the angle to draw, in degrees. ``published``: what others reported, drawn in the last layer's panel. The hue
    is ``arm``, for whose runs there are predictions where the feedback learns
    (:func:`alignlab.audit.feedback.predicted_angles`).
    """
    layers = layers_with(runs, "weight_angle")
    found = [
        Shown("weight_angle", layer, True, 1, 120, reference, predicted=predicted_angles(runs, layer))
        for layer in layers
    ]
    return [*found[:-1], replace(found[-1], published=published or {})] if found else []


def board(
    dataset: xr.Dataset, panels: Sequence[Shown], *, hue: str = "arm", columns: int = 3, remark: str = ""
) -> Figure:
    """Each of the ``panels`` over training, one line for each level of ``hue``, which looks the same in all of them.

    Args:
        dataset: several runs (data contract); those of one level differ in nothing but their seed.
        remark: what published marks rest on, for the note below.

    Raises:
        ValueError: where there is no panel, a quantity or a layer was not recorded, for an unknown hue, and where a level
            mixes conditions.
    """
    if not panels:
        raise ValueError("no panels given: expected at least one Shown")
    data = as_runs(dataset)
    order = _order(data, hue)
    for panel in panels:
        contents.need(_of_layer(data, panel.layer), panel.name)
    look, drawn, columns = style.looks(order), [], widths.columns_of(min(columns, len(panels)), 2.8)
    with style.styled():
        figure, axes = style.grid(-(-len(panels) // columns), columns, 3.1, 2.5, sharex=True)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        for ax, panel in zip(axes.flat, panels, strict=False):
            drawn += _draw(ax, data, panel, hue, look)
        for ax in style.bottoms(axes):
            ax.set_xlabel("optimizer step")
            ax.tick_params(labelbottom=True)
        logs = [(_of_layer(data, panel.layer), panel.name) for panel in panels if panel.log]
        told = [lines.note(drawn, *(panel.log for panel in panels)), lines.unplaced(logs, hue), remark]
        note = " ".join(filter(None, told))
        title = groups.context(
            data, hue, "layer", "rule", "lr", "feedback_init", *data.attrs.get("differing", ())
        )
        return finish(figure, title, _legend(look, panels), hue, note)


def _order(data: xr.Dataset, hue: str) -> list[Hashable]:
    """The levels in the order in which the runs come. Each is one condition."""
    for level in groups.levels(data, hue):
        own = groups.select(data, hue, level)
        mixed = [key for key in groups.conditions(data) if len(groups.levels(own, key)) > 1]
        if mixed:
            raise ValueError(
                f"the runs of {hue} {level!r} differ in {', '.join(mixed)}: select some of them first"
            )
    return list(dict.fromkeys(data[hue].values.tolist()))


def _of_layer(data: xr.Dataset, layer: str | None) -> xr.Dataset:
    if layer is None:
        return data
    if layer not in (known := groups.levels(data, "layer")):
        raise ValueError(f"no layer {layer!r} in this dataset; choose from {', '.join(map(str, known))}")
    return groups.select(data, "layer", layer)


def _draw(
    ax: Axes, data: xr.Dataset, panel: Shown, hue: str, look: Mapping[Hashable, style.Look]
) -> list[lines.Curve]:
    own = _of_layer(data, panel.layer)
    drawn = lines.curves(own, panel.name, hue, layered=panel.layer is not None, log=panel.log)
    floor = panel.low if panel.log and panel.low is not None else -np.inf
    drawn = [curve for curve in drawn if (curve.runs >= floor).any()]  # an exact 0 has no place on a log axis
    for curve in drawn:
        lines.draw(ax, curve, look[curve.level], str(curve.level))
    for level, (steps, values) in panel.predicted.items():
        ax.plot(steps, values, label=f"_predicted {level}", **PREDICTED)
    if panel.reference is not None:
        ax.axhline(panel.reference, color=style.REFERENCE, linewidth=1, zorder=0.6, label="_reference")
    extra = [*panel.published.values(), *([] if panel.reference is None else [panel.reference])]
    lines.fit([ax], drawn, panel.log, extra)
    ax.set_ylim(panel.low, panel.high)
    _draw_published(ax, panel, look)
    ax.set_title(panel.title, loc="left")
    scales.step_axis(ax)
    if panel.log:
        scales.log_axis(ax)
    return drawn


def _draw_published(ax: Axes, panel: Shown, look: Mapping[Hashable, style.Look]) -> None:
    """Open marks just outside the right edge: their runs were of another length, so they have no place along the axis."""
    for i, level in enumerate(sorted(panel.published, key=list(look).index)):  # in the legend's order
        ax.plot(
            1.03 + 0.05 * i, panel.published[level], transform=ax.get_yaxis_transform(), clip_on=False,
            marker=look[level].marker, markersize=6, markerfacecolor="white", markeredgecolor=look[level].color,
            markeredgewidth=1.5, linestyle="", label=f"_published {level}",
        )  # fmt: skip


def _legend(look: Mapping[Hashable, style.Look], panels: Sequence[Shown]) -> dict[str, Artist]:
    from matplotlib.lines import Line2D

    entries: dict[str, Artist] = {
        text: Line2D([], [], **look[level]._asdict(), markeredgecolor="white")
        for level, text in style.level_texts(look).items()
    }
    if any(panel.predicted for panel in panels):
        entries["predicted"] = Line2D([], [], **PREDICTED)
    if any(panel.published for panel in panels):
        style_of: dict[str, Any] = {
            "marker": "o",
            "linestyle": "",
            "markersize": 6,
            "markerfacecolor": "white",
        }
        entries["published (right of the frame)"] = Line2D(
            [], [], markeredgecolor="0.3", markeredgewidth=1.5, **style_of
        )
    return entries
