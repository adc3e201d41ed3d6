"""Several quantities of the same runs, with predictions and published values."""

import numpy as np
import pytest
from figure_reading import assert_readable, legend, line, marks

import alignlab as al
from alignlab import figures
from alignlab.figures import Shown
from alignlab.testing.synthetic import synthetic_runs

PANELS = (
    Shown("weight_angle", "fc2", log=True, reference=10.0, predicted={"fa": ([0, 50], [80.0, 40.0])}),
    Shown("test_accuracy", low=0.2, published={"bp": 0.9, "fa": 0.8}),
    Shown("feedback_gain", "fc1"),
    Shown("train_loss", log=True),
)


@pytest.fixture(scope="module")
def drawn(runs):
    return figures.board(runs, PANELS, hue="rule", remark="Published: other networks.")


def test_each_panel_shows_its_quantity_of_its_layer(runs, drawn):
    for ax, panel in zip(drawn.axes, PANELS, strict=True):
        own = runs if panel.layer is None else runs.sel(layer=panel.layer)
        table = (
            own[panel.name].isel(run=runs.rule.values == "fa").astype(float).transpose("run", "step").values
        )
        table = np.log(table) if panel.log else table
        mean = table.mean(0)[np.isfinite(table).any(0)]
        curve = line(ax, "fa").get_ydata()
        np.testing.assert_allclose(curve, np.exp(mean) if panel.log else mean, rtol=1e-6)
    assert drawn.axes[0].get_title(loc="left").startswith("layer fc2: weight angle")


def test_predictions_references_and_published_values_are_where_they_belong(drawn):
    (predicted,) = marks(drawn.axes[0], "_predicted fa")
    assert (list(predicted.get_xdata()), list(predicted.get_ydata())) == ([0, 50], [80.0, 40.0])
    (level,) = marks(drawn.axes[0], "_reference")
    assert list(level.get_ydata()) == [10, 10]
    for rule, value in (("bp", 0.9), ("fa", 0.8)):
        (mark,) = marks(drawn.axes[1], f"_published {rule}")
        assert list(mark.get_ydata()) == [value]
        assert mark.get_markeredgecolor() == line(drawn.axes[1], rule).get_color()
        assert mark.get_xdata()[0] > 1  # beside the axes: another budget
    assert {"predicted", "published (right of the frame)"} <= set(legend(drawn))
    assert drawn.axes[1].get_ylim()[0] == 0.2


def test_published_marks_stand_in_the_order_of_the_legend(runs):
    panel = Shown("test_accuracy", published={"sign_sync": 0.7, "fa": 0.8, "bp": 0.9})
    ax = figures.board(runs, [panel], hue="rule").axes[0]
    places = [marks(ax, f"_published {rule}")[0].get_xdata()[0] for rule in ("bp", "fa", "sign_sync")]
    assert places == sorted(places)


def test_angle_panels_are_of_the_layers_whose_feedback_is_in_use(runs):
    plain = al.RunSpec(rule="fa").to_yaml()
    named = runs.assign_coords(arm=("run", runs["rule"].values), spec=("run", [plain] * runs.sizes["run"]))
    first = named["layer"].values[0]
    unused = named.assign(weight_angle=named["weight_angle"].where(named["layer"] != first))
    panels = figures.angle_panels(unused, reference=20, published={"fa": 40.0})
    assert [panel.layer for panel in panels] == named["layer"].values[1:].tolist()
    assert {(panel.name, panel.log, panel.reference) for panel in panels} == {("weight_angle", True, 20)}
    assert [dict(panel.published) for panel in panels] == [{}] * (len(panels) - 1) + [{"fa": 40.0}]
    assert not any(panel.predicted for panel in panels)  # of a feedback that rests there is no prediction


def test_it_can_be_read(drawn):
    assert_readable(drawn)


def test_what_is_missing_or_mixed_is_told(runs, sweep):
    with pytest.raises(ValueError, match=r"no layer 'fc7'.*fc1"):
        figures.board(runs, [Shown("weight_angle", "fc7")], hue="rule")
    with pytest.raises(ValueError, match="no 'joy'"):
        figures.board(runs, [Shown("joy")], hue="rule")
    with pytest.raises(ValueError, match="rule 'bp' differ in lr"):
        figures.board(sweep, [Shown("train_loss")], hue="rule")


def test_the_note_names_the_means_and_long_titles_have_two_lines():
    runs = synthetic_runs(("bp", "fa"), range(3), layers=["encoder.layers.0.self_attn.out_proj", "head"])
    runs = runs.assign_coords(arm=("run", runs.rule.values))
    angle = Shown("gradient_angle", "encoder.layers.0.self_attn.out_proj")
    figure = figures.board(runs, [Shown("train_loss", log=True), angle, Shown("feedback_gain", "head")])
    assert "mean (geometric on log axes) of 3 runs" in figure._supxlabel.get_text().replace("\n", " ")
    assert_readable(figure)
    alone = figures.board(runs, [Shown("train_loss", log=True)])
    assert "Lines: geometric mean of 3 runs" in alone._supxlabel.get_text().replace("\n", " ")


def test_a_log_panel_without_a_positive_value_is_empty():
    runs = synthetic_runs(("bp", "fa"), range(3), steps=20)
    runs = runs.assign_coords(arm=("run", runs.rule.values))
    assert figures.board(runs.assign(loss=0 * runs["loss"]), [Shown("loss", log=True)]).axes


def test_a_quantity_of_each_layer_without_a_layer_is_told(runs):
    """It was xarray's "cannot select a dimension to squeeze out"."""
    with pytest.raises(ValueError, match="'gradient_angle' has a value for each layer, where one is drawn"):
        figures.board(runs, [Shown("gradient_angle")], hue="rule")
    figures.board(runs.isel(layer=[0]), [Shown("gradient_angle")], hue="rule")


def test_nothing_to_draw_is_told(runs):
    with pytest.raises(ValueError, match="no panels given"):
        figures.board(runs, [], hue="rule")
    with pytest.raises(ValueError, match="no questions given"):
        figures.questions(runs, [], "train_loss")


def test_whose_values_have_no_place_on_a_log_axis_is_told(runs):
    """Backprop's weight angle is 0, and its line was missing without a word."""
    told = " ".join(figures.board(runs, PANELS[:1], hue="rule")._supxlabel.get_text().split())
    assert "Not on log axes: values of 0 or less (bp)." in told
    linear = figures.board(runs, [Shown("weight_angle", "fc2")], hue="rule")
    assert "Not on log axes" not in linear._supxlabel.get_text()
