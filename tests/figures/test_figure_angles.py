"""Angles over training: what is drawn is what was recorded, and chance is where it belongs."""

import numpy as np
import pytest
import xarray as xr
from figure_reading import labels, legend, line, marks, panels, same

from alignlab import figures
from alignlab.figures.lines import mean_and_interval
from alignlab.measures.chance import chance_band
from alignlab.measures.quantities import QUANTITIES
from alignlab.testing.synthetic import synthetic_run, synthetic_runs

ANGLES = ("gradient_angle", "delta_angle", "local_angle", "weight_angle", "update_angle")


@pytest.mark.parametrize("quantity", ANGLES)
def test_axes_name_the_angle_its_symbol_and_degrees(run, quantity):
    (axes,) = panels(figures.angles(run, quantity))
    label = axes.get_ylabel()
    assert quantity.replace("_", " ") in label
    assert QUANTITIES[quantity].symbol in label
    assert "[°]" in label
    assert axes.get_xlabel() == "optimizer step"


def test_one_line_a_layer_shows_exactly_what_was_recorded(run):
    (axes,) = panels(figures.angles(run))
    assert labels(axes) == ["fc1", "fc2", "fc3"]
    for layer in labels(axes):
        recorded = run["gradient_angle"].sel(layer=layer).dropna("step")
        drawn = line(axes, layer)
        assert same(drawn.get_xdata(), recorded.step)
        assert same(drawn.get_ydata(), recorded)


def test_legend_names_each_layer_and_chance(run):
    assert legend(figures.angles(run))[:4] == ["fc1", "fc2", "fc3", "chance (90°)"]


@pytest.mark.parametrize(
    ("quantity", "layer", "entries"),
    [
        ("gradient_angle", "fc1", 64 * 32),
        ("weight_angle", "fc3", 32 * 10),
        ("delta_angle", "fc1", 32),
        ("local_angle", "fc1", 64),
    ],
)
def test_chance_band_is_that_of_the_layers_own_dimension(run, quantity, layer, entries):
    figure = figures.angles(run.sel(layer=[layer]), quantity)
    (band,) = marks(panels(figure)[0], "_chance band")
    low, high = chance_band(entries)
    box = band.get_bbox()
    assert (box.y0, box.y1) == pytest.approx((low, high))
    assert legend(figure)[-1] == f"95 % of random directions (±{90 - low:.2g}°)"
    (middle,) = marks(panels(figure)[0], "_chance")
    assert list(middle.get_ydata()) == [90, 90]


def test_chance_band_of_several_layers_is_the_widest(run):
    (band,) = marks(panels(figures.angles(run))[0], "_chance band")
    assert band.get_bbox().y0 == pytest.approx(chance_band(32 * 10)[0])


@pytest.mark.parametrize("quantity", ["weight_angle", "local_angle"])
def test_a_layer_without_an_angle_widens_no_band(run, quantity):
    """Below the first layer nothing is sent, so that its B has no angle; from two inputs its 64 weights made ±14° of ±6.3°."""
    small = run.assign_coords(fan_in=("layer", [2, 32, 32])).copy(deep=True)
    small[quantity].values[:, 0] = np.nan
    shown = small.sel(layer=["fc2", "fc3"])
    bands = [marks(panels(figures.angles(own, quantity))[0], "_chance band")[0] for own in (small, shown)]
    assert bands[0].get_bbox().y0 == bands[1].get_bbox().y0


def test_runs_without_a_weight_angle_widen_and_hide_no_band_of_direct_ones(direct):
    bare = synthetic_run("bp", steps=40).assign_coords(fan_in=("layer", [2, 2, 2]))
    bare["weight_angle"].values[:] = np.nan
    both = xr.concat([direct, bare], "run")
    assert both["fan_in"].dims == ("run", "layer")
    for one in (both, both.transpose()):
        (band,) = marks(panels(figures.angles(one, "weight_angle", col="rule"))[-1], "_chance band")
        assert band.get_bbox().y0 == pytest.approx(chance_band(32 * 10)[0])
        (band,) = marks(panels(figures.angles(one, "weight_angle", hue="rule"))[0], "_chance band")
        assert band.get_bbox().y0 == pytest.approx(chance_band(32 * 10)[0])


def test_each_net_of_a_store_of_several_depths_has_its_own_readout(direct):
    """The last layer of all was taken for each one's readout, so that selected runs of a shallower net had no band."""
    readout = {"fc3": "out"}
    deep = direct.assign_coords(layer=[readout.get(name, name) for name in direct.layer.values])
    own = synthetic_run("dfa", steps=40, layers=("fc1", "out"), seed=1)
    own["weight_angle"].values[:, -1] = np.nan
    both = xr.concat([deep, own.assign_coords(fan_out=("layer", [32, 4]))], "run", join="outer")
    both = both.sel(layer=["fc1", "fc2", "out"]).assign_coords(depth=("run", [3, 2]))
    assert both["fan_out"].dims == ("run", "layer")
    three, two = panels(figures.angles(both, "weight_angle", col="depth"))[::-1]
    for axes, entries in ((three, 32 * 10), (two, 32 * 4)):
        (band,) = marks(axes, "_chance band")
        assert band.get_bbox().y0 == pytest.approx(chance_band(entries)[0])


@pytest.mark.parametrize("draw", [figures.angles, figures.gains])
def test_a_layer_in_which_no_run_has_a_value_has_no_panel(runs, draw):
    """Runs selected from a store of deeper nets: an empty frame under a layer's name."""
    shallow = runs.where(runs["layer"] != "fc2")
    titles = [axes.get_title(loc="left") for axes in panels(draw(shallow, hue="rule"))]
    assert set(titles) == {"layer fc1", "layer fc3"}


def test_chance_band_knows_layers_that_only_some_runs_have(run):
    shapes = run.expand_dims("run").drop_vars("fan_in")
    shapes = shapes.assign_coords(fan_in=(("run", "layer"), [[64.0, np.nan, 32.0]]))
    (band,) = marks(panels(figures.angles(shapes))[0], "_chance band")
    assert band.get_bbox().y0 == pytest.approx(chance_band(32 * 10)[0])


@pytest.fixture
def direct():
    """As dfa records it: no B at the readout, of 10 units; B of a hidden layer has one weight for each unit and output."""
    run = synthetic_run("dfa", steps=40)
    run["weight_angle"].values[:, -1] = np.nan
    return run


def test_the_weights_of_direct_rules_have_the_chance_band_of_their_own_shape(direct):
    """The band was that of W, ±2.5° in the first layer, and feedback drawn at random was outside of it."""
    (band,) = marks(panels(figures.angles(direct, "weight_angle"))[0], "_chance band")
    assert band.get_bbox().y0 == pytest.approx(chance_band(32 * 10)[0])
    (of_gradients,) = marks(panels(figures.angles(direct.sel(layer=["fc1"])))[0], "_chance band")
    assert of_gradients.get_bbox().y0 == pytest.approx(chance_band(64 * 32)[0])
    both = xr.concat([direct, synthetic_run("fa", steps=40)], "run")
    first, *_ = panels(figures.angles(both, "weight_angle", hue="rule", col="layer"))
    (band,) = marks(first, "_chance band")
    assert band.get_bbox().y0 == pytest.approx(chance_band(32 * 10)[0])


@pytest.mark.parametrize(
    ("kind", "quantity", "there"),
    [
        ("conv2d", "delta_angle", False),
        ("conv2d", "local_angle", False),
        ("conv2d", "gradient_angle", True),
        ("locally_connected2d", "gradient_angle", False),
        ("locally_connected2d", "weight_angle", False),
    ],
)
def test_convolutions_have_a_chance_band_where_their_entries_are_known(run, kind, quantity, there):
    """A delta of 16 channels of 24 x 24 had the band of 16 numbers, ±29°; its angles to random ones spread by 1.2°."""
    changed = run.assign_coords(kind=("layer", [kind, kind, "linear"]))
    first = figures.angles(changed.sel(layer=["fc1"]), quantity)
    assert bool(marks(panels(first)[0], "_chance band")) == there
    (band,) = marks(panels(figures.angles(changed, quantity))[0], "_chance band")  # of the readout
    entries = {"delta_angle": 10, "local_angle": 32}.get(quantity, 320)
    assert band.get_bbox().y0 == pytest.approx(chance_band(entries)[0])


def test_where_the_shape_of_direct_feedback_is_not_known_there_is_no_chance_band(direct):
    for lacking in (direct.sel(layer=["fc1"]), direct.assign_coords(kind=("layer", ["conv2d"] * 3))):
        figure = figures.angles(lacking, "weight_angle")
        assert marks(panels(figure)[0], "_chance band") == []
        assert legend(figure)[-1] == "chance (90°)"


def test_frame_reaches_180_degrees_only_for_obtuse_angles(run):
    assert panels(figures.angles(run))[0].get_ylim()[1] < 130
    obtuse = run.assign(gradient_angle=180 - run["gradient_angle"])
    assert panels(figures.angles(obtuse))[0].get_ylim()[1] >= 180


def test_several_rules_get_a_panel_each_so_that_no_line_mixes_them(runs):
    axes = panels(figures.angles(runs))
    assert [ax.get_title(loc="left") for ax in axes] == ["bp", "fa", "sign_sync"]
    assert all(labels(ax) == ["fc1", "fc2", "fc3"] for ax in axes)


def test_a_line_is_the_mean_over_seeds_with_its_t_interval(runs):
    axes = panels(figures.angles(runs, hue="rule", col="layer"))[1]
    table = runs["gradient_angle"].sel(layer="fc2").isel(run=runs.rule.values == "fa").dropna("step")
    mean, low, high = mean_and_interval(table.values.astype(np.float64), log=False)
    assert same(line(axes, "fa").get_ydata(), mean)
    (band,) = (
        b for b in axes.collections if np.array_equal(b.get_facecolor()[0, :3], line_color(axes, "fa"))
    )
    vertices = band.get_paths()[0].vertices
    assert set(np.round(low, 6)) | set(np.round(high, 6)) <= set(np.round(vertices[:, 1], 6))


def line_color(axes, label):
    from matplotlib.colors import to_rgb

    return to_rgb(line(axes, label).get_color())


def test_two_seeds_are_drawn_singly():
    two = synthetic_runs(("fa",), range(2), steps=50)
    (axes,) = panels(figures.angles(two))
    thin = [artist for artist in axes.lines if artist.get_label() == "_fc1"]
    assert labels(axes) == []
    for artist, seed in zip(thin, range(2), strict=True):
        recorded = two["gradient_angle"].isel(run=two.seed.values == seed).sel(layer="fc1").dropna("step")
        assert same(artist.get_ydata(), recorded.values[0])


def test_an_angle_that_is_not_defined_leaves_a_gap_and_other_steps_none(run):
    gap = run.copy(deep=True)
    at = int(np.flatnonzero(run.step.values == 50)[0])
    gap["gradient_angle"].values[at, 0] = np.nan
    (axes,) = panels(figures.angles(gap))
    first, second = line(axes, "fc1"), line(axes, "fc2")
    assert list(first.get_xdata()[np.isnan(first.get_ydata())]) == [50]
    assert np.isfinite(second.get_ydata()).all()
    assert set(run.step.values[run.step.values % 5 != 0]).isdisjoint(second.get_xdata())


def test_the_mean_ends_where_a_seed_diverged_and_the_others_go_on_singly(with_divergence):
    axes = panels(figures.angles(with_divergence, hue="rule", col="layer"))[0]
    mean = line(axes, "fa")
    assert mean.get_xdata()[np.isfinite(mean.get_ydata())].max() == 50
    alone = [artist for artist in axes.lines if artist.get_label() == "_fa"]
    assert len(alone) == 3
    assert all(artist.get_xdata()[np.isfinite(artist.get_ydata())].max() == 95 for artist in alone)
    (cross,) = marks(axes, "_diverged")
    assert list(cross.get_xdata()) == [50]


def test_levels_differ_in_colour_and_line_and_marker():
    many = synthetic_run(layers=12, steps=20)
    (axes,) = panels(figures.angles(many))
    assert len(labels(axes)) == 12
    drawn = [line(axes, name) for name in labels(axes)]
    assert len({(str(a.get_color()), str(a._dash_pattern), a.get_marker()) for a in drawn}) == 12
    assert (
        len({(str(a._dash_pattern), a.get_marker()) for a in drawn}) == 12
    )  # so a grey print tells them apart


def test_one_layer_that_was_selected_away_is_drawn_as_well(run):
    (axes,) = panels(figures.angles(run.sel(layer="fc1")))
    assert same(line(axes, "fc1").get_ydata(), run["gradient_angle"].sel(layer="fc1").dropna("step"))


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            lambda d: d.drop_vars("gradient_angle"),
            {},
            "no 'gradient_angle': the probe GradientAngle records it",
        ),
        (
            lambda d: d.drop_vars("weight_angle"),
            {"quantity": "weight_angle"},
            "the probe WeightAngle records it",
        ),
        (
            lambda d: d.drop_vars("update_angle"),
            {"quantity": "update_angle"},
            "the probe EffectiveLR records it",
        ),
        (lambda d: d.assign(gradient_angle=d.gradient_angle * np.nan), {}, "no finite value"),
        (lambda d: d, {"quantity": "weight_norm"}, "'weight_norm' is no angle"),
        (lambda d: d, {"hue": "colour"}, "cannot split by 'colour': choose one of"),
        (lambda d: d, {"col": "fan_in"}, "cannot split by 'fan_in'"),
        (lambda d: d.drop_vars("fan_in"), {}, "no 'fan_in'"),
    ],
)
def test_what_is_missing_is_one_error_that_names_it(run, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        figures.angles(change(run), **arguments)


def test_what_is_no_dataset_is_told(run):
    with pytest.raises(TypeError, match="not DataArray: give the dataset that it is a variable of"):
        figures.angles(run["gradient_angle"])
    for draw in (figures.gains, figures.learning_curves, figures.spectra, figures.run_figures):
        with pytest.raises(TypeError, match=r"expected runs as an xarray\.Dataset, not str"):
            draw("runs/fa")
