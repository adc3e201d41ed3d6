"""Reading a drawn figure back: its lines, legend, texts, and whether anything overlaps or leaves the canvas."""

from itertools import combinations

import numpy as np
from matplotlib.text import Text


def line(axes, label):
    """The one line of this label."""
    (found,) = (artist for artist in axes.lines if artist.get_label() == label)
    return found


def labels(axes):
    """The labels of the lines that stand for levels of the hue."""
    return [str(artist.get_label()) for artist in axes.lines if not str(artist.get_label()).startswith("_")]


def marks(axes, label):
    """All artists of an axes with this label (those that are no levels begin with an underscore)."""
    return [artist for artist in axes.get_children() if artist.get_label() == label]


def legend(figure):
    (only,) = figure.legends
    return [text.get_text() for text in only.get_texts()]


def panels(figure):
    """The axes that show data, colour bars left out."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def texts(figure):
    """Every text that is seen: visible, not empty, tick labels only of ticks within the limits."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low - slack <= tick.get_loc() <= high + slack:
                    hidden |= {tick.label1, tick.label2}
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]


def assert_readable(figure):
    """All text lies on the canvas, the legend beside the axes, and no title, label or legend covers another."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    for text in texts(figure):
        box = text.get_window_extent(renderer)
        assert box.x0 >= -1, f"{text.get_text()!r} is cut off at the left"
        assert box.y0 >= -1, f"{text.get_text()!r} is cut off at the bottom"
        assert box.x1 <= width + 1, f"{text.get_text()!r} is cut off at the right"
        assert box.y1 <= height + 1, f"{text.get_text()!r} is cut off at the top"
    for axes in panels(figure):
        frame = axes.get_window_extent(renderer)
        for label in axes.get_yticklabels():
            assert label.get_window_extent(renderer).x1 <= frame.x0 + 1, (
                f"{label.get_text()!r} covers the frame"
            )
    legends = [found.get_window_extent(renderer) for found in figure.legends]
    frames = [axes.get_window_extent(renderer) for axes in figure.axes]
    assert not any(shrunk(a).overlaps(shrunk(b)) for a in legends for b in frames)
    words = [
        text
        for axes in figure.axes
        for text in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label)
    ]
    words += [text for axes in figure.axes for text in axes.texts]
    words += [text for text in (figure._suptitle, figure._supxlabel) if text is not None]
    boxes = [(t.get_text(), shrunk(t.get_window_extent(renderer))) for t in words if t.get_text()]
    boxes += [("legend", shrunk(box)) for box in legends]
    for (one, a), (other, b) in combinations(boxes, 2):
        assert not a.overlaps(b), f"{one!r} and {other!r} overlap"


def shrunk(box):
    """The box without a pixel on each side: touching is not overlapping."""
    return box.padded(-1)


def same(drawn, recorded):
    """Whether a line shows exactly these values, gaps included."""
    return np.array_equal(np.asarray(drawn, np.float64), np.asarray(recorded, np.float64), equal_nan=True)
