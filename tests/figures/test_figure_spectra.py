"""Spectra in the complex plane."""

import numpy as np
import pytest
from figure_reading import assert_readable, legend, marks, panels

from alignlab import figures
from alignlab.measures.quantities import QUANTITIES
from alignlab.testing.synthetic import synthetic_run, synthetic_runs


def bar(figure):
    (found,) = (axes for axes in figure.axes if axes.get_label() == "<colorbar>")
    return found


def points(axes):
    """The eigenvalues shown, one array (n, 2) a step, early steps first; masked points left out."""
    return [np.ma.compress_rows(np.ma.masked_invalid(c.get_offsets())) for c in axes.collections]


def test_a_panel_a_layer_shows_each_steps_eigenvalues(run):
    figure = figures.spectra(run)
    assert [axes.get_title(loc="left") for axes in panels(figure)] == ["layer fc1", "layer fc2", "layer fc3"]
    for axes, layer in zip(panels(figure), ("fc1", "fc2", "fc3"), strict=True):
        for step, shown in zip((0, 40, 80, 120, 160), points(axes), strict=True):
            there = run.sel(layer=layer, step=step).dropna("mode")
            recorded = np.stack([there["spectrum_real"], there["spectrum_imag"]], axis=1)
            assert np.array_equal(shown, recorded.astype(np.float64))


def test_axes_are_equal_and_labelled_with_the_quantities_symbols(run):
    figure = figures.spectra(run)
    first = panels(figure)[0]
    assert QUANTITIES["spectrum_imag"].symbol in first.get_ylabel()
    assert all(QUANTITIES["spectrum_real"].symbol in axes.get_xlabel() for axes in panels(figure))
    assert all(axes.get_aspect() == 1 for axes in panels(figure))


def test_the_imaginary_axis_is_drawn_and_the_right_half_plane_shaded(run):
    for axes in panels(figures.spectra(run)):
        (axis,) = marks(axes, "_imaginary axis")
        assert list(axis.get_xdata()) == [0, 0]
        (plane,) = marks(axes, "_right half plane")
        box = plane.get_bbox()
        assert (box.x0, box.x1) == (0, pytest.approx(axes.get_xlim()[1]))


def test_every_eigenvalue_and_the_origin_lie_within_the_frame(run):
    for axes in panels(figures.spectra(run)):
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        shown = np.concatenate([*points(axes), np.zeros((1, 2))])
        assert left < shown[:, 0].min()
        assert shown[:, 0].max() < right
        assert bottom < shown[:, 1].min()
        assert shown[:, 1].max() < top


def test_the_bar_runs_over_the_symmetric_part_at_the_last_step_shown(run):
    for steps, last in ((None, 160), ([0, 80], 80)):
        (found,) = marks(panels(figures.spectra(run, "fc2", steps))[0], "_symmetric part")
        there = run.sel(layer="fc2", step=last)
        assert list(found.get_xdata()) == [float(there["symmetric_min"]), float(there["symmetric_max"])]


def test_the_symmetric_part_is_optional(run):
    figure = figures.spectra(run.drop_vars(["symmetric_min", "symmetric_max"]))
    assert not any(marks(axes, "_symmetric part") for axes in panels(figure))
    assert legend(figure) == ["eigenvalue", "Re λ > 0"]


def test_the_colour_bar_names_the_steps_and_dark_is_late(run):
    figure = figures.spectra(run)
    assert [text.get_text() for text in bar(figure).get_yticklabels()] == ["0", "40", "80", "120", "160"]
    assert bar(figure).get_ylabel() == "optimizer step"
    lightness = [c.get_facecolor()[0, :3].sum() for c in panels(figure)[0].collections]
    assert lightness == sorted(lightness, reverse=True)


@pytest.mark.parametrize("layers", [1, 3, 9, 40])
def test_the_colour_bar_stays_slender_beside_any_number_of_panels(layers):
    figure = figures.spectra(synthetic_run(layers=layers))
    figure.canvas.draw()
    size, panel = (axes.get_window_extent().size for axes in (bar(figure), panels(figure)[0]))
    assert size[0] < 0.1 * panel[0]
    assert 0.9 * panel[1] < size[1] < 2.5 * panel[1]


def test_at_most_six_steps_are_chosen_first_and_last_among_them():
    long = synthetic_run(steps=1001, layers=1)
    ticks = [text.get_text() for text in bar(figures.spectra(long)).get_yticklabels()]
    assert len(ticks) == 6
    assert (ticks[0], ticks[-1]) == ("0", "1,000")


@pytest.mark.parametrize("scale", [3.0, 10.0])
def test_the_label_of_a_single_panel_under_a_title_of_two_lines_is_whole(scale):
    run = synthetic_run(layers=2).assign_coords(arm="x" * 30)
    names = [name for name in run.data_vars if name.startswith(("spectrum", "symmetric"))]
    of_one = run.assign({name: scale * run[name].where(run["layer"] == "fc2") for name in names})
    assert_readable(figures.spectra(of_one, steps=[0]))


def test_panels_stay_where_they_are_however_often_they_are_drawn():
    """Drawn twice, as by a notebook that shows and then saves it, two panels moved on, and their label off the canvas."""
    runs = synthetic_runs(("fa", "dfa"), range(2), layers=1, steps=90)
    for name in ("spectrum_real", "spectrum_imag", "symmetric_min", "symmetric_max"):
        runs[name] = 3 * runs[name]
    figure = figures.spectra(runs)
    places = []
    for _ in range(6):
        figure.canvas.draw()
        places.append([axes.get_position().x0 for axes in panels(figure)])
    assert np.ptp(places, axis=0) == pytest.approx(0, abs=0.002)
    assert_readable(figure)


def test_several_rules_get_panels_and_seeds_share_one(runs):
    figure = figures.spectra(runs, layer="fc1", steps=[0])
    assert [axes.get_title(loc="left") for axes in panels(figure)] == ["bp", "fa", "sign_sync"]
    assert len(points(panels(figure)[1])[0]) == 4 * 32
    assert "fc1" in figure.get_suptitle()


def test_a_layer_without_a_spectrum_gets_no_panel(run):
    partial = run.copy(deep=True)
    partial["spectrum_real"].values[:, 0] = np.nan
    assert [axes.get_title(loc="left") for axes in panels(figures.spectra(partial))] == [
        "layer fc2",
        "layer fc3",
    ]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            lambda d: d.drop_vars("spectrum_real"),
            {},
            "no 'spectrum_real': the probe FeedbackSpectrum records it",
        ),
        (lambda d: d, {"layer": "fc9"}, "no layer 'fc9' in this dataset; choose from fc1, fc2, fc3"),
        (lambda d: d, {"steps": [0, 7]}, "no spectrum at step 7; one was recorded at 0, 40, 80"),
        (lambda d: d, {"steps": []}, "no steps given"),
        (
            lambda d: d.rename(layer="floor"),
            {},
            "has the dim 'floor', expected some of run, step, layer, mode",
        ),
    ],
)
def test_what_is_missing_is_one_error_that_names_it(run, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        figures.spectra(change(run), **arguments)
