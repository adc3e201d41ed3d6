"""Figures as wide as the page that they are for, or a column of it.

Otherwise a figure is as wide as its panels and the legend beside them ask for, which suits a screen. Within ``fitted`` the
width is given: as many panels stand in a row as have room, and the legend stands below them. Letters keep their size, so that
what is printed is the figure as it is, and not one scaled down until nobody can read it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from alignlab.checks import is_number

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.text import Text

LEAST, MOST = 60, 1000  # millimetres
INCH = 25.4
MARGIN, EDGE = 0.06, 0.02

_given: ContextVar[float | None] = ContextVar("given", default=None)


@contextmanager
def fitted(width: float) -> Iterator[None]:
    """Figures made within the block are ``width`` millimetres wide; a journal's column has about 85, its page 180.

    Panels of layers, rules and the like stand in as many rows as they need; those that belong in one row stay in it.

    Raises ``ValueError`` for a width out of 60 to 1000; so does each figure that has too little room, and says what it needs.
    """
    if not is_number(width) or not LEAST <= width <= MOST:
        raise ValueError(
            f"width is {width!r}, expected millimetres, {LEAST} to {MOST}: a column of a page has about 85, a page 180"
        )
    token = _given.set(float(width))
    try:
        yield
    finally:
        _given.reset(token)


def given() -> float | None:
    """The width that figures are to have, in inches; None where they take what they need."""
    width = _given.get()
    return None if width is None else width / INCH


def columns_of(asked: int, panel: float = 2.2) -> int:
    """How many of ``asked`` panels have room in a row, which need ``panel`` inches with their labels."""
    width = given()
    return asked if width is None else max(1, min(asked, int(width / panel)))


def width_of(panel: float, columns: int) -> float:
    """Of each of ``columns`` panels in a row, which would have ``panel`` inches."""
    width = given()
    return panel if width is None else width / columns


def letters(usual: int) -> int:
    """How long a line above a panel may be, where it may usually be so long."""
    return usual if given() is None else usual // 2


def legend_below(figure: Figure, entries: Mapping[str, Artist], title: str) -> Legend:
    """A legend at the figure's lower edge in as many columns as have room."""
    for columns in range(len(entries), 0, -1):
        legend = figure.legend(
            list(entries.values()), list(entries), title=title, ncols=columns, loc="outside lower left",
            alignment="left", columnspacing=1.4,
        )  # fmt: skip
        if columns == 1 or inches(legend)[0] <= figure.get_figwidth() - 2 * MARGIN:
            break
        legend.remove()
    return legend


def inches(legend: Legend) -> tuple[float, float]:
    """Width and height."""
    figure = legend.figure
    box = legend.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    return box.width / figure.dpi, box.height / figure.dpi


def stack(figure: Figure, legend: Legend, note: Text | None, room: float) -> None:
    """The legend above a note of ``room`` inches at the figure's lower edge, the panels above both: a layout keeps legends and
    notes apart from panels, not from each other."""
    room += MARGIN
    foot, top = (x / figure.get_figheight() for x in (room, room + inches(legend)[1] + MARGIN))
    if note is not None:
        note.set_in_layout(False)
    legend.set_bbox_to_anchor((0, foot, 1, 1 - foot), figure.transFigure)
    figure.get_layout_engine().set(rect=(0, top, 1, 1 - top))  # type: ignore[call-arg, union-attr]


def check(figure: Figure, least: float) -> None:
    """Raise ``ValueError`` where the given width leaves a panel's frame less than ``least`` inches, or text no room at all."""
    if _given.get() is None or _fits(figure, least):
        return
    asked = figure.get_figwidth() * INCH
    for enough in range(10 * int(asked / 10) + 10, MOST, 10):
        figure.set_figwidth(enough / INCH)
        if _fits(figure, least):
            break
    raise ValueError(
        f"a figure of {asked:.0f} mm has too little room for these panels and their labels: give it about {enough} mm, or "
        "select fewer of them"
    )


def _fits(figure: Figure, least: float) -> bool:
    with warnings.catch_warnings(record=True) as told:  # of a layout that came to nothing
        warnings.simplefilter("always")
        figure.draw_without_rendering()
    frames = [ax.get_position().width for ax in figure.axes if ax.get_label() != "<colorbar>"]
    width, text = figure.get_figwidth(), figure.get_tightbbox()
    return not told and width * min(frames) >= least and text.x0 > -EDGE and text.x1 < width + EDGE
