"""Questions: a panel each, arms against the learning rate."""

from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from figure_reading import assert_readable, labels, line, marks, panels

from alignlab import figures
from alignlab.figures.lines import mean_and_interval
from alignlab.testing.synthetic import synthetic_runs

ASKED = [
    figures.Question("first", {"bp": "backprop", "sign_sync": "signs"}),
    figures.Question("second", {"sign_sync": "signs"}),
]


@pytest.fixture
def arms(sweep):
    return sweep.assign_coords(arm=("run", sweep["rule"].values))


def test_each_question_has_its_own_arms_names_and_means(arms):
    sweep = arms
    first, second = panels(figures.questions(sweep, ASKED, "validation_loss", chance=2.3, note="Told."))
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["first", "second"]
    names = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in (first, second)]
    assert names[0][0] == "backprop"
    assert names[0][1].startswith("signs (")
    assert names[0][1].endswith(" of 15 diverged)")
    assert names[1] == names[0][1:]
    last = sweep["validation_loss"].dropna("step", how="all").isel(step=-1).values.astype(np.float64)
    at_best = last[(sweep.rule.values == "bp") & (sweep.lr.values == 0.01)]
    mean, _, _ = mean_and_interval(at_best[:, None], log=True)
    drawn = line(first, "backprop")
    assert drawn.get_ydata()[list(drawn.get_xdata()).index(0.01)] == pytest.approx(float(mean[0]))
    rings = {float(ring.get_ydata()[0]) for ring in marks(first, "_best")}
    assert float(np.nanmin(drawn.get_ydata())) in rings
    assert marks(first, "_chance")[0].get_ydata()[0] == 2.3
    assert first.figure._suptitle.get_text() == "mnist_small · 3 seeds"  # an outcome is of no layer


def test_rings_are_at_the_rates_that_the_other_seeds_choose_where_an_outcome_does(arms):
    """Each of two seeds is judged at the other's best rate: two rings, neither at the lowest mean."""
    chosen = arms.isel(run=(arms.rule.values == "bp") & (arms.seed.values < 2)).copy(deep=True)
    accuracy = chosen["validation_accuracy"]
    for seed, rate in ((0, 0.01), (1, 0.001)):
        accuracy.values[(chosen.seed.values == seed) & (chosen.lr.values == rate), -1] = 2.0
    figure = figures.questions(
        chosen, [figures.Question("?", {"bp": "bp"})], "validation_loss", choose="validation_accuracy"
    )
    rings = {float(ring.get_xdata()[0]) for ring in marks(panels(figure)[0], "_best")}
    assert rings == {0.001, 0.01}
    assert "by the other seeds" in " ".join(figure._supxlabel.get_text().split())
    lowest = figures.questions(chosen, [figures.Question("?", {"bp": "bp"})], "validation_loss")
    assert [float(ring.get_xdata()[0]) for ring in marks(panels(lowest)[0], "_best")] == [0.3]
    assert "best mean" in " ".join(lowest._supxlabel.get_text().split())


def test_an_arm_without_runs_is_named(arms):
    with pytest.raises(ValueError, match="no run has the arm 'fa'; there are"):
        figures.questions(arms, [figures.Question("?", {"fa": "fa"})], "validation_loss")


def test_an_error_of_zero_has_a_plain_mean_on_a_linear_axis(arms):
    none = arms.isel(run=(arms.rule.values == "bp") & (arms.lr.values < 0.02)).copy(deep=True)
    last = np.isfinite(none["validation_loss"].values[0]).nonzero()[0][-1]
    none["validation_loss"].values[:, last] = 0, 0.1, 0.2, 0.2, 0.3, 0.4
    figure = figures.questions(none, [figures.Question("?", {"bp": "bp"})], "validation_loss")
    (axes,) = panels(figure)
    assert sorted(line(axes, "bp").get_ydata()) == pytest.approx([0.1, 0.3])
    assert axes.get_yscale() == "linear"
    assert "Points: mean of 3 runs" in figure._supxlabel.get_text()


def test_an_arm_looks_the_same_in_all_panels(arms):
    first, second = panels(figures.questions(arms, ASKED, "validation_loss"))
    (lone,) = [label for label in labels(second) if label.startswith("signs")]
    assert line(first, lone).get_color() == line(second, lone).get_color()
    assert line(first, lone).get_marker() == line(second, lone).get_marker()
    rings = [{ring.get_color() for ring in marks(axes, "_best")} for axes in (first, second)]
    assert rings[1] == {line(second, lone).get_color()} < rings[0]


@pytest.mark.parametrize("rates", [4, 12])
def test_the_rates_of_a_long_grid_do_not_run_into_each_other(rates):
    runs = synthetic_runs(
        ("bp",), range(2), [float(f"{lr:.2g}") for lr in np.geomspace(1e-4, 1, rates)], steps=20
    )
    arms = runs.assign_coords(arm=("run", runs.rule.values))
    figure = figures.questions(arms, [figures.Question("?", {"bp": "bp"})], "validation_loss")
    figure.canvas.draw()
    (axes,) = panels(figure)
    low, high = axes.get_xlim()
    ticks = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [label.get_window_extent() for label in ticks]
    assert len(boxes) >= 3
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def many_arms(n):
    """Runs of n arms at three rates, with outcomes between 0.1 and 1."""
    rows = [(f"arm {k}", lr, seed) for k in range(n) for lr in (0.01, 0.1, 1.0) for seed in range(3)]
    names, lrs, seeds = (list(column) for column in zip(*rows, strict=True))
    values = np.array([0.1 * 1.1**i * (1 if lr == 0.1 else 2) for i, (_, lr, _) in enumerate(rows)])
    values = 0.1 + 0.9 * (values - values.min()) / np.ptp(values)
    coords = {"step": [0, 1], "arm": ("run", names), "lr": ("run", lrs), "seed": ("run", seeds)}
    return xr.Dataset({"validation_loss": (("run", "step"), np.stack([values, values], 1))}, coords)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 15])
def test_no_legend_covers_a_mean_or_a_panel(n):
    data = many_arms(n)
    names = list(dict.fromkeys(data["arm"].values.tolist()))
    asked = [figures.Question(f"{k} arms", {name: name for name in names[:k]}) for k in (n, 2, 1, n, n)]
    figure = figures.questions(data, asked, "validation_loss")
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [ax.get_legend().get_window_extent(renderer) for ax in panels(figure)]
    for box in boxes:
        assert box.y0 >= 0
        for ax in panels(figure):
            means = [xy for curve in ax.lines for xy in ax.transData.transform(curve.get_xydata())]
            assert not any(box.contains(*xy) for xy in means)
            if n > 4:
                assert not box.overlaps(ax.get_window_extent(renderer))


def test_points_are_counted_by_the_runs_that_they_are_means_of(arms):
    """The mean of two was told as one of three where the third run had diverged, and a crashed one left no trace."""
    status = np.array(["finished"] * arms.sizes["run"], "U8")
    at = (arms.arm.values == "bp") & (arms.lr.values == 0.1)
    status[at & (arms.seed.values == 0)] = "diverged"
    asked = [figures.Question("q", {"bp": "bp"})]
    figure = figures.questions(arms.assign_coords(status=("run", status)), asked, "validation_loss")
    assert "geometric mean of 2 to 3 runs that finished; bars" in " ".join(
        figure._supxlabel.get_text().split()
    )
    status[at & (arms.seed.values == 1)] = "crashed"
    figure = figures.questions(arms.assign_coords(status=("run", status)), asked, "validation_loss")
    note = " ".join(figure._supxlabel.get_text().split())
    assert "of 1 to 3 runs that finished (1 without an end or a rate above 0 left out); bars" in note


def test_long_titles_and_names_stand_in_lines_on_the_canvas(arms):
    long = "is this a long question that somebody asked, and that one line of a panel does not hold?"
    figure = figures.questions(
        arms, [figures.Question(long, {"bp": long, "sign_sync": "signs"})], "validation_loss"
    )
    (axes,) = panels(figure)
    assert axes.get_title(loc="left").replace("\n", " ") == long
    assert axes.get_legend().get_texts()[0].get_text().replace("\n", " ") == long
    assert labels(axes)[0] == long
    assert_readable(figure)
    lowest = min(np.nanmin(axes.transData.transform(drawn.get_xydata())[:, 1]) for drawn in axes.lines[:2])
    assert axes.get_legend().get_window_extent().y1 < lowest


def test_an_arm_that_mixes_conditions_is_refused(arms):
    both = xr.concat([arms.assign_coords(task=("run", [task] * arms.sizes["run"])) for task in "ab"], "run")
    with pytest.raises(
        ValueError, match=r"2 runs of arm bp, lr 0\.001 have seed 0: select one of each seed first"
    ):
        figures.questions(both, ASKED, "validation_loss")


def test_runs_at_a_rate_of_0_are_left_out_and_told(arms):
    rates = np.where(arms.lr.values == 0.001, 0.0, arms.lr.values)
    figure = figures.questions(arms.assign_coords(lr=("run", rates)), ASKED[:1], "validation_loss")
    assert list(panels(figure)[0].get_xticks()) == [0.01, 0.1, 0.3, 1.0]
    assert "(6 without an end or a rate above 0 left out)" in " ".join(figure._supxlabel.get_text().split())
    with pytest.raises(ValueError, match="no run of the arm 'bp', 'sign_sync' has a learning rate above 0"):
        figures.questions(arms.assign_coords(lr=("run", 0.0 * rates)), ASKED, "validation_loss")
