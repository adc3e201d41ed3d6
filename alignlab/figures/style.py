"""The shared look of all figures: fonts, colours, labels, grids of axes, legends.

Figures are built as `matplotlib.figure.Figure` objects on an Agg canvas, never through pyplot, so they work without a
display and leave nothing open. Levels of a hue differ in colour (seaborn's colour-blind safe palette, Wong 2011,
doi:10.1038/nmeth.1618, without its two tints that vanish on white), in line style and in marker, so a grey print
still tells them apart. Legends stand outside of the axes, and the figure grows to hold them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignlab.figures import widths
from alignlab.measures.quantities import QUANTITIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 9.5,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "savefig.dpi": 160,
    "savefig.bbox": None,  # a figure set to 85 mm is 85 mm wide
    "savefig.transparent": False,
    "savefig.facecolor": "auto",
    "savefig.edgecolor": "auto",
    "svg.hashsalt": "alignlab",
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's own, of type 3
    "ps.fonttype": 42,
}
SHADE, REFERENCE, ALERT = "0.87", "0.35", "#b30000"
# Blue, orange, green, purple, vermilion, sky blue, brown, grey of the palette; 8 colours, 5 dashes and 7 markers have
# no common divisor, so 40 levels differ in line and 280 in line and marker.
_COLOUR_ORDER = (0, 1, 2, 4, 3, 9, 5, 7)
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (6, 1.5, 1.2, 1.5)), (0, (1.2, 1.2)), (0, (9, 2.5)))
_MARKERS = "os^DvPX"
LONGEST_NAME = 34


class Look(NamedTuple):
    """How one level of a hue is drawn."""

    color: Any
    linestyle: Any
    marker: str


def looks(levels: Sequence[Hashable]) -> dict[Hashable, Look]:
    """A look for each level; numbers (learning rates) get an ordered scale from light (low) to dark (high)."""
    colours: Sequence[Any] = palette()
    if len(levels) > 2 and all(isinstance(level, int | float | np.number) for level in levels):
        colours = sequential()(np.linspace(0, 1, len(levels)))
    return {
        level: Look(colours[i % len(colours)], _DASHES[i % len(_DASHES)], _MARKERS[i % len(_MARKERS)])
        for i, level in enumerate(levels)
    }


def palette() -> list[tuple[float, float, float]]:
    """The colours of unordered levels."""
    import seaborn

    colours = seaborn.color_palette("colorblind")
    return [colours[i] for i in _COLOUR_ORDER]


def sequential() -> Any:
    """The colour map of ordered things (steps, learning rates): light is early or low, dark is late or high."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(
        "viridis_dark", colormaps["viridis_r"](np.linspace(0.12, 1, 256))
    )


def axis_label(name: str, words: str | None = None, width: int = 30) -> str:
    """`name` in words, then symbol and units as its quantity declares them; a ratio has no units to show."""
    words = words or name.replace("_", " ").replace(" lr", " learning rate")
    quantity = QUANTITIES.get(name)
    if quantity is None:
        return words
    units = {"1": "", "degree": " [°]"}.get(quantity.units, f" [{quantity.units}]")
    symbol = f"{quantity.symbol}{units}"
    # Mathtext is drawn about half as wide as its source is long.
    return f"{words}\n{symbol}" if len(words) + len(symbol) / 2 > width else f"{words} {symbol}"


def plain(text: object) -> str:
    """Text that matplotlib draws as it is: between two dollars it would read formulas, and refuse bad ones.

    >>> plain("$HOME/runs")
    '\\\\$HOME/runs'
    """
    return str(text).replace("$", r"\$")


def level_text(level: Hashable) -> str:
    """A level as text: numbers short, long names with their middle left out so that both ends can be read."""
    if isinstance(level, float | np.floating):
        return "(none)" if np.isnan(level) else f"{level:g}"
    text = str(level)
    if len(text) <= LONGEST_NAME:
        return plain(text) or "(none)"
    head = LONGEST_NAME // 3
    return plain(f"{text[:head]}…{text[head + 1 - LONGEST_NAME :]}")


def broken(text: str, width: int = 30) -> str:
    """Text in lines of at most `width`: between facts, those too long at blanks and after the dots in module names, not in
    numbers.

    >>> broken("sign_sync · period 10 · lr 0.001").splitlines()
    ['sign_sync · period 10 ·', 'lr 0.001']
    """
    lines = [""]
    facts = re.split(r"(?<= · )", text)
    inside = re.compile(r"(?<= )|(?<=\.)(?!\d)|(?<=\D\.)")
    whole = ([fact] if len(fact.rstrip()) <= width else inside.split(fact) for fact in facts)
    for piece in itertools.chain.from_iterable(whole):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def level_texts(levels: Iterable[Hashable]) -> dict[Hashable, str]:
    """`level_text` of each, in full where the short forms of two levels would be the same; names all or none."""
    short = {level: level_text(level) for level in levels}
    forms = list(short.values())
    alike = {level for level, text in short.items() if forms.count(text) > 1}
    names = {level for level in short if isinstance(level, str)}
    full = alike | names if alike & names else alike
    return {level: (plain(level) or text) if level in full else text for level, text in short.items()}


@contextmanager
def styled() -> Iterator[None]:
    """Draw with the shared look, whatever the user's own matplotlib settings are, and put those back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def grid(rows: int, columns: int, width: float, height: float, **sharing: Any) -> tuple[Figure, np.ndarray]:
    """A figure on its own Agg canvas with rows × columns axes of width × height inches each, or as wide as is given."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = columns * widths.width_of(width, columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **sharing)
    return figure, axes


def wrapped(n: int, square: bool = False, share: bool = True) -> tuple[Figure, np.ndarray, list[Axes]]:
    """A figure with n equal axes in rows of at most three (two for four), the grid, and the n axes in use.

    The grid's unused corner is removed, and the axes above it show their own tick labels.
    """
    columns = widths.columns_of(2 if n == 4 else min(n, 3))
    width, height = (4.4, 3.0) if n == 1 else (2.9, 2.3)
    if widths.given() is not None:
        width, height = widths.width_of(width, columns), 1.8 if n > 1 else height
    figure, axes = grid(
        -(-n // columns), columns, width, width if square else height, sharex=share, sharey=share
    )
    for ax in axes.flat[n:]:
        ax.remove()
    for ax in bottoms(axes):
        ax.tick_params(labelbottom=True)
    return figure, axes, list(axes.flat[:n])


def present(axes: np.ndarray) -> list[Axes]:
    """The axes of a grid that have not been removed."""
    return [ax for ax in axes.flat if ax in axes[0, 0].figure.axes]


def bottoms(axes: np.ndarray) -> list[Axes]:
    """The lowest axes of each column."""
    return [present(column[:, None])[-1] for column in axes.T]
