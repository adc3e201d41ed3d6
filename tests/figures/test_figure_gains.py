"""Feedback gain and effective learning rate, side by side on log axes."""

import numpy as np
import pytest
from figure_reading import labels, legend, line, marks, panels, same

from alignlab import figures
from alignlab.figures.lines import mean_and_interval
from alignlab.measures.quantities import QUANTITIES
from alignlab.testing.synthetic import synthetic_run


def test_gain_and_effective_rate_stand_side_by_side_on_log_axes(run):
    left, right = panels(figures.gains(run))
    assert left.get_yscale() == right.get_yscale() == "log"
    assert QUANTITIES["feedback_gain"].symbol in left.get_ylabel()
    assert QUANTITIES["effective_lr"].symbol in right.get_ylabel()
    assert left.get_xlabel() == right.get_xlabel() == "optimizer step"


def test_lines_show_exactly_what_was_recorded(run):
    for axes, name in zip(panels(figures.gains(run)), ("feedback_gain", "effective_lr"), strict=True):
        assert labels(axes) == ["fc1", "fc2", "fc3"]
        for layer in labels(axes):
            assert same(line(axes, layer).get_ydata(), run[name].sel(layer=layer).dropna("step"))


def test_gain_one_and_the_nominal_rate_are_marked_and_within_the_frame(run):
    figure = figures.gains(run)
    left, right = panels(figure)
    for axes, label, value in ((left, "_unit gain", 1), (right, "_nominal", 0.05)):
        (mark,) = marks(axes, label)
        assert list(mark.get_ydata()) == [value, value]
        assert axes.get_ylim()[0] < value < axes.get_ylim()[1]
    assert legend(figure) == ["fc1", "fc2", "fc3", "gain 1: as loud as backprop", "nominal learning rate"]


def test_a_nominal_rate_that_training_leaves_is_told_as_that_before_the_schedule(run):
    """Backprop's effective rates lay a hundred times below the line on which they were said to lie."""
    falling = run["learning_rate"] * 0.5 ** (run["step"] // 50)
    data = run.assign(effective_lr=run["feedback_gain"] * falling, learning_rate=falling)
    figure = figures.gains(data)
    assert legend(figure)[-1] == "nominal learning rate,\nbefore its schedule"
    assert [mark.get_ydata()[0] for mark in marks(panels(figure)[1], "_nominal")] == [0.05]


def test_layers_with_rates_of_their_own_have_their_own_nominal_rates(run):
    rates = run["lr"].item() * (1 + 2 * (run.layer == "fc1"))  # a parameter group for each, say
    figure = figures.gains(run.assign(effective_lr=run["feedback_gain"] * rates))
    right = panels(figure)[1]
    assert [mark.get_ydata()[0] for mark in marks(right, "_nominal")] == pytest.approx([0.05, 0.15], rel=1e-6)
    assert "lr 0.05" not in " ".join(text.get_text() for text in figure.texts)
    by_rule = panels(figures.gains(run.assign(effective_lr=run["feedback_gain"] * rates), hue="rule"))
    assert [mark.get_ydata()[0] for mark in marks(by_rule[1], "_nominal")] == pytest.approx([0.15], rel=1e-6)


@pytest.mark.parametrize(("layer", "marked"), [("fc1", [0.15]), ("fc2", [0.05]), (["fc1"], [0.15])])
def test_a_layer_alone_has_its_own_nominal_rate(run, layer, marked):
    rates = run["lr"].item() * (1 + 2 * (run.layer == "fc1"))
    figure = figures.gains(run.assign(effective_lr=run["feedback_gain"] * rates).sel(layer=layer))
    right = panels(figure)[1]
    assert [mark.get_ydata()[0] for mark in marks(right, "_nominal")] == pytest.approx(marked, rel=1e-6)
    assert ("lr 0.05" in " ".join(text.get_text() for text in figure.texts)) == (marked == [0.05])


def test_layers_at_rest_mark_no_rate_and_those_that_learn_mark_theirs(run):
    rates = 0.3 * (run.layer != "fc1")
    data = run.assign(effective_lr=run["feedback_gain"] * rates, learning_rate=0 * run["learning_rate"])
    right = panels(figures.gains(data.assign_coords(lr=0.0)))[1]
    assert [mark.get_ydata()[0] for mark in marks(right, "_nominal")] == pytest.approx([0.3], rel=1e-6)


def test_one_layer_of_a_run_is_drawn(run):
    for axes, name in zip(
        panels(figures.gains(run.sel(layer="fc1"))), ("feedback_gain", "effective_lr"), strict=True
    ):
        assert same(line(axes, "fc1").get_ydata(), run[name].sel(layer="fc1").dropna("step"))


def test_means_over_seeds_are_geometric(runs):
    axes = panels(figures.gains(runs, hue="rule", col="layer"))[0]
    table = runs["feedback_gain"].sel(layer="fc1").isel(run=runs.rule.values == "sign_sync").dropna("step")
    assert same(
        line(axes, "sign_sync").get_ydata(), mean_and_interval(table.values.astype(np.float64), log=True)[0]
    )
    assert line(axes, "sign_sync").get_ydata() == pytest.approx(
        np.exp(np.log(table.values).mean(axis=0)), rel=1e-5
    )


def test_each_level_of_col_is_a_row(runs):
    figure = figures.gains(runs, col="rule")
    assert [axes.get_title(loc="left") for axes in panels(figure)] == [
        "bp",
        "bp",
        "fa",
        "fa",
        "sign_sync",
        "sign_sync",
    ]


def test_constant_gain_is_not_blown_up_to_noise():
    left, _ = panels(figures.gains(synthetic_run("bp")))
    low, high = left.get_ylim()
    assert high / low >= 4


def test_a_gain_of_zero_is_left_out_of_the_log_axis_and_said(run):
    silent = run.copy(deep=True)
    silent["feedback_gain"].values[:, 0] = 0
    figure = figures.gains(silent)
    left, _ = panels(figure)
    assert labels(left) == ["fc2", "fc3"]
    note = figure._supxlabel.get_text().replace("\n", " ")
    assert f"{silent.sizes['step']} values are 0 and not on these log axes" in note
    assert figures.gains(run)._supxlabel is None


def test_rates_of_zero_are_left_out_of_their_log_axis_and_said(run):
    """A warm-up begins at 0: the right panel began later than the left one, without a word."""
    warm = run.copy(deep=True)
    warm["effective_lr"].values[:2] = 0
    note = " ".join(figures.gains(warm)._supxlabel.get_text().split())
    assert (
        f"{2 * warm.sizes['layer']} effective rates are 0, the learning rate being 0, and not on theirs."
        in note
    )


@pytest.mark.parametrize("name", ["feedback_gain", "effective_lr"])
def test_a_missing_variable_is_named_with_its_probe(run, name):
    with pytest.raises(ValueError, match=f"no '{name}': the probe EffectiveLR records it"):
        figures.gains(run.drop_vars(name))
