"""Ratios of durations: one line a learning rate, a bold one for the best, open triangles for bounds; and the curves."""

import math

import numpy as np
import pytest
import xarray as xr
from figure_reading import assert_readable, legend, line, marks

from alignlab.figures import durations

STEPS = np.array([0, 1, 3, 10, 30, 100, 300])
LEVELS = (2 / math.e, 2 / math.e**2, 2 / math.e**4, 2 / math.e**8, 2 / math.e**16)


def decays(speeds):
    """Losses 2 exp(−k step): k of each arm at the rates 0.1 and 0.2, three seeds."""
    rows = [
        (arm, lr, seed, k)
        for arm, ks in speeds.items() for lr, k in zip((0.1, 0.2), ks, strict=True) for seed in range(3)
    ]  # fmt: skip
    coords = {name: ("run", [row[i] for row in rows]) for i, name in enumerate(("arm", "lr", "seed"))}
    more = {"status": "finished", "last_step": 300, "task": "mnist_small"}
    coords |= {name: ("run", [value] * len(rows)) for name, value in more.items()}
    coords |= {"run_id": ("run", [str(i) for i in range(len(rows))]), "step": STEPS}
    return xr.Dataset({"train_loss": (("run", "step"), [2 * np.exp(-k * STEPS) for *_, k in rows])}, coords)


RUNS = decays({"bp": (0.1, 0.05), "fa, like W": (0.05, 0.01), "fa, larger": (0.02, 0.08)})


def test_a_panel_an_arm_with_a_line_a_rate_and_one_for_the_best():
    figure = durations(RUNS, LEVELS, published={"published: 2": 2.0})
    first, second, curves = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["fa, like W", "fa, larger"]
    assert line(first, "0.1").get_ydata()[:3] == pytest.approx([2, 2, 2])
    assert line(first, "0.2").get_ydata()[:2] == pytest.approx([5, 5])
    assert line(second, "best").get_ydata()[:3] == pytest.approx([1.25, 1.25, 1.25])
    assert first.get_xlim()[0] > first.get_xlim()[1]  # a loss falls
    assert "published: 2" in legend(figure)
    assert [t.get_text() for t in curves.get_legend().get_texts()] == [
        "bp, 0.1 (edge)", "fa, larger, 0.2 (edge)", "fa, like W, 0.1 (edge)",
    ]  # fmt: skip
    assert_readable(figure)


def test_what_is_late_is_an_open_triangle_and_not_on_the_line():
    figure = durations(RUNS, LEVELS)
    first, second, _ = figure.axes
    assert np.isnan(line(first, "0.2").get_ydata()).tolist() == [False, False, True, True, True]
    (bound,) = [mark for mark in marks(first, "_≥") if len(mark.get_xdata()) == 2]
    assert bound.get_ydata() == pytest.approx([300 / 80, 300 / 160])
    (upper,) = marks(second, "_≤")
    assert upper.get_ydata() == pytest.approx([200 / 300])
    assert {"at least: it came late", "at most: the baseline did"} <= set(legend(figure))
    assert "not shown" in figure._supxlabel.get_text()
    whole = durations(decays({"bp": (0.1, 0.05), "fa": (0.02, 0.01)}), LEVELS[:2])
    assert "too narrow where several are about equally good" in whole._supxlabel.get_text().replace("\n", " ")
    assert whole._supxlabel.get_text().endswith("other seeds.")  # nothing of bounds where there are none


def test_the_curves_are_drawn_to_their_ends():
    curves = durations(decays({"bp": (0.1, 0.05), "fa": (0.02, 0.01)}), LEVELS[:2]).axes[-1]
    bottom, top = curves.get_ylim()
    drawn = np.concatenate([curve.get_ydata() for curve in curves.lines])
    assert bottom < drawn.min() == pytest.approx(2 * math.exp(-30))
    assert drawn.max() < top


def test_an_outcome_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no 'test_loss'"):
        durations(RUNS, LEVELS, "test_loss")


@pytest.mark.parametrize("rates", [(0.1, np.nan), (np.nan, np.nan)])
def test_runs_without_a_rate_are_told_with_the_way_out(rates):
    runs = RUNS.assign_coords(lr=("run", np.where(RUNS["lr"] == 0.1, *rates)))
    unknown = int(np.isnan(runs["lr"]).sum())
    with pytest.raises(ValueError, match=rf"{unknown} of 18 runs have no learning rate .*leave them out"):
        durations(runs, LEVELS)


@pytest.mark.parametrize("levels", [[], [float("nan")], 0.5])
def test_levels_are_finite_numbers(levels):
    with pytest.raises(ValueError, match="expected a list of finite numbers"):
        durations(RUNS, levels)
