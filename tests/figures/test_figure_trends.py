"""Final values against a number: means of the right runs, a control in every column, hollow marks from elsewhere."""

import itertools

import numpy as np
import pytest
import xarray as xr
from figure_reading import assert_readable, legend, marks

from alignlab.figures import trends
from alignlab.figures.trend import Reference, reported

ROWS = [
    (rule, init, depth, seed)
    for rule, inits in (("bp", ("",)), ("fa", ("a", "b")))
    for init in inits for depth in (1, 3) for seed in range(3)
]  # fmt: skip
AT_ONE = {"": 1, "a": 5, "b": 20}
ENDS = [AT_ONE[init] * depth * 2.0 ** (seed - 1) for _, init, depth, seed in ROWS]
NAMES = ("rule", "feedback_init", "depth", "seed")
RUNS = xr.Dataset(
    {
        "test_error": (("run", "step"), [[90, end] for end in ENDS]),
        "angle": (("run", "step"), [[90, 10 * np.log2(end)] for end in ENDS]),
    },
    {name: ("run", [row[i] for row in ROWS]) for i, name in enumerate(NAMES)} | {"step": [0, 10]},
)
ONE = RUNS.isel(run=RUNS.feedback_init.values != "b")  # a condition a rule
OUTCOMES = {"test_error": "test error [%]", "angle": "angle [°]"}


def test_means_are_geometric_for_errors_and_the_control_is_in_every_column():
    figure = trends(RUNS, "depth", OUTCOMES, col="feedback_init")
    assert len(figure.axes) == 4
    for ax, own in zip(figure.axes, (5, 20), strict=False):
        assert line_of(ax, "bp") == pytest.approx([1, 3])
        assert line_of(ax, "fa") == pytest.approx([own, 3 * own])
        assert ax.get_yscale() == "log"
    below = figure.axes[2]
    assert line_of(below, "fa") == pytest.approx([10 * np.log2(5), 10 * np.log2(15)])
    assert below.get_yscale() == "linear"
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["feedback init a", "feedback init b"]
    assert_readable(figure)


def line_of(axes, label):
    """The means of a level: the line of its bars."""
    (bars,) = [c for c in axes.containers if c.get_label() == label]
    return bars.lines[0].get_ydata()


def test_references_are_hollow_and_in_their_own_row():
    elsewhere = Reference("fa", 3, 2.2, "test_error")
    figure = trends(
        RUNS, "depth", OUTCOMES, col="feedback_init", references=[elsewhere], referred="somebody, unverified"
    )
    top, bottom = figure.axes[0], figure.axes[2]
    (mark,) = marks(top, "_reference")
    assert mark.get_ydata().tolist() == [2.2]
    assert mark.get_markerfacecolor() == "none"
    assert marks(bottom, "_reference") == []
    assert any("unverified" in text for text in legend(figure))
    assert_readable(figure)


def test_what_a_source_reported_becomes_references_and_none_has_no_legend():
    where = {"verified": False, "locator": "table 1"}
    found = reported("nokland2016", "test_error", 7, task="mnist", **where)
    assert found == [
        Reference(rule, 7, error, "test_error") for rule, error in (("bp", 2.16), ("fa", 2.2), ("dfa", 2.32))
    ]
    for references, told in (
        (found, True),
        (reported("nokland2016", "test_error", 7, task="fashion_mnist", **where), False),
    ):
        figure = trends(ONE, "depth", OUTCOMES, references=references, referred="theirs")
        assert ("theirs" in legend(figure)) is told


def test_a_point_mostly_at_the_grids_edge_has_a_rim():
    edge = (ONE.rule.values == "fa") & (ONE.depth.values == 3) & (ONE.seed.values > 0)
    figure = trends(ONE.assign_coords(on_edge=("run", edge)), "depth", {"angle": "angle"})
    rims = [len(mark.get_xdata()) for mark in marks(figure.axes[0], "_edge")]
    assert rims == [0, 1]
    assert "best learning rate on\nthe grid's edge" in legend(figure)
    assert not any("edge" in text for text in legend(trends(ONE, "depth", {"angle": "angle"})))


def test_diverged_runs_are_counted():
    status = ["diverged"] + ["finished"] * (ONE.sizes["run"] - 1)
    figure = trends(ONE.assign_coords(status=("run", status)), "depth", OUTCOMES)
    assert f"1 of {ONE.sizes['run']} runs diverged" in " ".join(figure._supxlabel.get_text().split())


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="no 'loss'"):
        trends(RUNS, "depth", {"loss": "loss"})
    with pytest.raises(ValueError, match="cannot split by 'width'"):
        trends(RUNS, "width", OUTCOMES)


def test_an_error_of_zero_has_a_plain_mean_on_a_linear_axis():
    """The geometric mean of 0, 10 and 20 is 0: a marker under the runs, without an interval."""
    none = RUNS.isel(run=[0, 1, 2]).copy(deep=True)
    none["test_error"].values[:, -1] = 0, 10, 20
    figure = trends(none, "depth", {"test_error": "test error [%]"})
    assert line_of(figure.axes[0], "bp") == pytest.approx([10])
    assert figure.axes[0].get_yscale() == "linear"
    assert "markers: mean of 3 with" in figure._supxlabel.get_text()


def test_runs_that_differ_in_more_than_the_seed_are_not_one_point():
    twice = xr.concat([RUNS.assign_coords(lr=("run", [lr] * RUNS.sizes["run"])) for lr in (0.1, 0.3)], "run")
    with pytest.raises(ValueError, match="2 runs of rule bp, depth 1, feedback_init  have seed 0"):
        trends(twice, "depth", OUTCOMES, col="feedback_init")


def test_the_note_counts_the_runs_of_a_point_and_names_the_means():
    figure = trends(RUNS.isel(run=slice(1, None)), "depth", OUTCOMES, col="feedback_init")
    note = figure._supxlabel.get_text().replace("\n", " ")
    assert "mean (geometric on log axes) of 2 to 3 with" in note


def test_a_run_without_an_outcome_is_in_no_count_and_told():
    lost = RUNS.copy(deep=True)
    lost["test_error"].values[0] = np.nan
    note = " ".join(
        trends(lost, "depth", {"test_error": "e"}, col="feedback_init")._supxlabel.get_text().split()
    )
    assert "of 2 to 3 with" in note
    assert "1 run has no test error." in note


@pytest.mark.parametrize(("one", "three", "scale"), [(1, 3, "linear"), (16, 1024, "log")])
def test_numbers_that_grow_by_factors_stand_on_a_log_axis(one, three, scale):
    """On a linear one the labels of the lower ones covered each other: 16, 64, 256, 1024."""
    width = np.where(ONE.depth.values == 1, one, three)
    more = ONE.isel(run=ONE.depth.values == 1).assign_coords(depth=("run", [64 if scale == "log" else 2] * 6))
    runs = xr.concat([ONE.assign_coords(depth=("run", width)), more], "run")
    figure = trends(runs, "depth", OUTCOMES)
    (ax, below) = figure.axes
    assert {ax.get_xscale(), below.get_xscale()} == {scale}
    assert list(below.get_xticks()) == sorted([one, three, 64 if scale == "log" else 2])
    assert [tick.get_text() for tick in below.get_xticklabels()] == [f"{x:g}" for x in below.get_xticks()]
    assert_readable(figure)
    bars = next(c for c in ax.containers if c.get_label() == "bp").lines[0].get_xdata()
    assert bars == pytest.approx(below.get_xticks(), rel=0.1)


def test_labels_of_rates_ten_times_apart_do_not_cover_each_other():
    """0.02 and 0.2 beside 2 were one word on a linear axis."""
    rates = [ONE.isel(run=ONE.depth.values == 1).assign_coords(rate=("run", [r] * 6)) for r in (0.02, 0.2, 2)]
    figure = trends(xr.concat(rates, "run"), "rate", OUTCOMES)
    assert figure.axes[0].get_xscale() == "log"
    figure.canvas.draw()
    boxes = [tick.get_window_extent() for tick in figure.axes[-1].get_xticklabels()]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_an_x_that_is_no_number_is_told_with_the_way_out():
    """Widths of hidden layers, as of specs that differ in them, were a conversion error of Python's."""
    hidden = np.where(RUNS.depth.values == 1, "[6]", "[6, 6, 6]")
    with pytest.raises(
        ValueError, match=r"'hidden' is no number in these runs \('\[6.*runs\.assign_coords\(depth="
    ):
        trends(RUNS.assign_coords(hidden=("run", hidden)), "hidden", OUTCOMES)
    scale = np.where(RUNS.depth.values == 1, "0.5", "2.0")
    assert (
        len(trends(RUNS.assign_coords(scale=("run", scale)), "scale", OUTCOMES, col="feedback_init").axes)
        == 4
    )
