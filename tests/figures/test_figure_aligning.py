"""Clouds of eigenvalues over what they mean for learning."""

import numpy as np
import pytest
from figure_reading import assert_readable, legend, marks

from alignlab import figures
from alignlab.figures.alignment import LAYERED
from alignlab.testing.synthetic import synthetic_runs


@pytest.fixture(scope="module")
def fa():
    return synthetic_runs(("fa",), range(3), steps=100)


@pytest.fixture(scope="module")
def drawn(fa):
    return figures.aligning(
        fa,
        cloud="fc2",
        steps=[0, 40, 80],
        seed=1,
        control=synthetic_runs(("bp",), range(3), steps=100),
        marks={"best": 50},
    )


def test_each_cloud_holds_that_seeds_eigenvalues_at_its_step(fa, drawn):
    own = fa.isel(run=1).sel(layer="fc2")
    for ax, step in zip(drawn.axes[:3], (0, 40, 80), strict=True):
        (cloud,) = ax.collections
        there = own.sel(step=step).dropna("mode")
        shown = np.ma.compress_rows(np.ma.masked_invalid(cloud.get_offsets()))
        assert np.array_equal(
            shown, np.stack([there["spectrum_real"], there["spectrum_imag"]], 1).astype(float)
        )
        share = float(own.sel(step=step)["spectrum_positive_fraction"])
        assert ax.get_title(loc="left") == f"step {step}\n{share:.0%} have Re λ > 0"


def test_the_circle_is_where_an_unrelated_feedbacks_eigenvalues_lie(fa, drawn):
    own = fa.isel(run=1).sel(layer="fc2", step=40)
    (circle,) = marks(drawn.axes[1], "_chance")
    assert circle.radius == pytest.approx(float(own["chance_radius"]))
    (bar,) = marks(drawn.axes[1], "_symmetric part")
    assert list(bar.get_xdata()) == [float(own["symmetric_min"]), float(own["symmetric_max"])]


def test_curves_are_means_at_step_plus_one_and_marks_and_control_are_in_every_panel(fa, drawn):
    below = drawn.axes[3:]
    assert len(below) == len(LAYERED) + 1
    for ax, name in zip(below, LAYERED, strict=False):
        mean = fa[name].sel(layer="fc2").astype(float).mean("run", skipna=False).dropna("step")
        (curve,) = (line for line in ax.lines if line.get_label() == "fc2")
        np.testing.assert_allclose(curve.get_ydata()[np.isfinite(curve.get_ydata())], mean, rtol=1e-6)
        assert set((mean["step"].values + 1).tolist()) <= set(curve.get_xdata().tolist())
    for ax in below:
        (mark,) = marks(ax, "_mark")
        assert list(mark.get_xdata()) == [51, 51]
        assert marks(ax, "_control")
        assert ax.get_xscale() == "log"
    assert "best: step 50" in legend(drawn)
    assert "control: bp" in legend(drawn)


def test_the_frame_holds_an_evaluation_after_the_last_recorded_loss_and_every_mark(fa):
    """Evaluated at the end, and recorded seldom: the last validation losses lay right of the frame; a fourth mark nowhere."""
    early = fa.assign(loss=fa["loss"].where(fa["step"] < 50))
    for name in LAYERED:
        early[name] = early[name].where(early["step"] < 50)
    marked = {name: 10 * i for i, name in enumerate("abcd")}
    figure = figures.aligning(early, cloud="fc2", marks=marked)
    assert figure.axes[-1].get_xlim()[1] > 100
    assert len(marks(figure.axes[-1], "_mark")) == 4
    assert {f"{name}: step {step}" for name, step in marked.items()} <= set(legend(figure))


def test_a_layer_that_these_runs_do_not_have_is_not_in_the_legend(fa):
    """Selected from a store of deeper nets."""
    lacking = fa.map(lambda own: own.where(fa["layer"] != "fc3") if "layer" in own.dims else own)
    told = legend(figures.aligning(lacking, cloud="fc2"))
    assert "layer fc2" in told
    assert "layer fc3" not in told


def test_it_can_be_read(drawn):
    assert_readable(drawn)


def test_by_default_five_steps_are_spread_over_log_time(fa):
    titles = [ax.get_title(loc="left").split("\n")[0] for ax in figures.aligning(fa, cloud="fc1").axes[:-6]]
    assert titles[0] == "step 0"
    assert titles[-1] == "step 80"
    assert len(titles) == len(set(titles)) <= 5


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"cloud": "fc9"}, "no layer 'fc9'.*fc1"),
        ({"cloud": "fc1", "seed": 9}, "no seed 9.*0, 1, 2"),
        ({"cloud": "fc1", "steps": [0, 1]}, "no spectrum at step 1; there is one at 0, "),
    ],
)
def test_what_is_not_there_is_named(fa, wanted, told):
    with pytest.raises(ValueError, match=told):
        figures.aligning(fa, **wanted)


def test_several_conditions_are_refused():
    with pytest.raises(ValueError, match="differ in rule"):
        figures.aligning(synthetic_runs(("bp", "fa"), range(2), steps=100), cloud="fc1")


def test_losses_of_runs_and_control_are_the_same_kind_of_mean(fa, drawn):
    """Geometric, on their log axis; the control's was arithmetic, above what it is compared with."""
    bp = synthetic_runs(("bp",), range(3), steps=100)["loss"].dropna("step").values.astype(np.float64)
    (control,) = marks(drawn.axes[-1], "_control")
    np.testing.assert_allclose(control.get_ydata(), np.exp(np.log(bp).mean(axis=0)))
    assert "mean (geometric on log axes) of 3 runs" in drawn._supxlabel.get_text().replace("\n", " ")


def test_a_loss_of_0_is_told(fa, drawn):
    assert "Not on log axes" not in drawn._supxlabel.get_text()
    learned = fa.copy(deep=True)
    learned["loss"].values[0, -1] = 0.0
    figure = figures.aligning(learned, cloud="fc2")
    assert "Not on log axes: values of 0 or less (fa)." in " ".join(figure._supxlabel.get_text().split())
