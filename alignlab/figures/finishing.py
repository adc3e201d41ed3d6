"""What stands around a figure's panels: its title above them, the legend beside or below, a note under all.

The figure grows by what these need. Where its width is given (:mod:`alignlab.figures.widths`) it grows in height alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from alignlab.figures import widths
from alignlab.figures.style import REFERENCE

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

LETTERS = 13  # of a title, an inch
NOTES = 1.25  # times as many of a note
FRAME = 0.9  # inches of a panel's, at least


def finish(
    figure: Figure,
    title: str,
    handles: Mapping[str, Artist],
    legend_title: str,
    note: str,
    frame: float = FRAME,
) -> Figure:
    """Add title, legend (the ``handles`` by their texts) and note to the panels.

    Raises ``ValueError`` where the figure's width is given, and leaves a panel's frame less than ``frame`` inches.
    """
    letters = int(LETTERS * figure.get_figwidth())  # of the panels alone: the legend stands beside the title
    named, below, told, room = legend_title.replace("_", " ").replace("lr", "learning rate"), None, None, 0.0
    if handles and widths.given() is None:
        _beside(figure, handles, named)
    elif handles:
        below = widths.legend_below(figure, handles, named)
        _grow(figure, widths.inches(below)[1] + 0.1)
    if title:
        words = textwrap.fill(title, letters)
        figure.suptitle(words, x=0.01, ha="left")
        _grow(figure, 0.2 + 0.16 * words.count("\n"))
    if note:
        lines = textwrap.fill(note, int(NOTES * letters))
        told = figure.supxlabel(lines, x=0.01, ha="left", fontsize=7.5, color=REFERENCE)
        room = 0.14 * (lines.count("\n") + 1)
        _grow(figure, room)
    if below is not None:
        widths.stack(figure, below, told, room)
    widths.check(figure, frame)
    return figure


def _beside(figure: Figure, handles: Mapping[str, Artist], title: str) -> None:
    legend = figure.legend(
        list(handles.values()), list(handles), title=title, loc="outside right upper", alignment="left"
    )
    wide, high = widths.inches(legend)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + (wide + 0.1), max(height, high + 0.5))


def _grow(figure: Figure, inches: float) -> None:
    figure.set_figheight(figure.get_figheight() + inches)
