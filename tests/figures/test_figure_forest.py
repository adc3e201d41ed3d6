"""The audit's forest plot."""

import numpy as np
import pytest
from figure_reading import assert_readable, legend, marks, panels

from alignlab import figures
from alignlab.figures.evidence import BASELINE, NONE, OPEN, PART, TREATMENT, side
from alignlab.testing.synthetic import synthetic_audit


@pytest.fixture(scope="module")
def audit():
    return synthetic_audit()


def test_every_contrast_is_a_point_with_its_interval(audit):
    (axes,) = panels(figures.forest(audit))
    points, intervals = marks(axes, "_estimate"), marks(axes, "_interval")
    assert [float(p.get_xdata()[0]) for p in points] == audit["estimate"].values.tolist()
    assert [list(i.get_xdata()) for i in intervals] == audit[["low", "high"]].to_array().values.T.tolist()


def test_rows_stand_in_their_groups_from_top_to_bottom(audit):
    (axes,) = panels(figures.forest(audit))
    rows = [text.get_text().strip() for text in axes.get_yticklabels()]
    assert rows[:4] == ["claim", "total", "magnitude", "direction"]
    assert rows[-2:] == ["placebo", "baseline against itself"]
    for point, label in zip(marks(axes, "_estimate"), audit["label"].values, strict=True):
        assert rows[int(point.get_ydata()[0])] == label
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_a_label_does_not_repeat_the_group_that_stands_above_it(audit):
    told = [f"{group}: without it" for group in audit["group"].values]
    (axes,) = panels(figures.forest(audit.assign_coords(label=("contrast", told))))
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows.count("   without it") == len(told)


def test_numbers_stand_at_the_right_of_their_row(audit):
    (axes,) = panels(figures.forest(audit))
    numbers = [text for text in axes.texts if "n = " in text.get_text()]
    assert numbers[0].get_text() == "+0.118 [+0.106, +0.130]  n = 5"
    assert numbers[1].get_text() == "−0.031 [−0.040, −0.022]  n = 5"
    assert [text.xy[1] for text in numbers] == [point.get_ydata()[0] for point in marks(axes, "_estimate")]


def test_an_interval_that_excludes_zero_is_not_written_as_one_that_ends_there(audit):
    """Its end had as many decimals as a middling interval asks for: [+0.000, ...] beside a point that favours the treatment."""
    changed = audit.copy(deep=True)
    changed["low"].values[0] = 0.0003
    changed["high"].values[-1] = 2e-7
    changed["estimate"].values[1] = 0.0
    (axes,) = figures.forest(changed).axes
    texts = [text.get_text() for text in axes.texts if "n =" in text.get_text()]
    assert texts[0] == "+0.118 [+0.0003, +0.130]  n = 5"
    assert texts[1].startswith("+0.000 [")
    assert texts[-1].split("  n")[0].endswith(", +2e−07]")


def test_zero_and_the_smallest_effect_are_marked_and_named(audit):
    for m in (None, 0.05):
        figure = figures.forest(audit, smallest_effect=m)
        (axes,) = panels(figure)
        (zero,) = marks(axes, "_zero")
        assert list(zero.get_xdata()) == [0, 0]
        (band,) = marks(axes, "_does not matter")
        assert (band.get_bbox().x0, band.get_bbox().x1) == (-(m or 0.02), m or 0.02)
        assert legend(figure)[-1] == f"too small to matter: ±{m or 0.02:g}"


def test_the_axis_says_what_is_measured_and_whom_each_side_favours(audit):
    (axes,) = panels(figures.forest(audit))
    assert axes.get_xlabel() == "effect on train loss [nat]"
    sides = {text.get_text(): text.xy[0] for text in axes.texts if "favours" in text.get_text()}
    assert sides == {"← favours baseline": 0, "favours treatment →": 1}
    assert figures.forest(audit).get_suptitle() == "sign-synchronised feedback beats backprop"
    assert figures.forest(audit, title="another").get_suptitle() == "another"


@pytest.mark.parametrize(
    ("low", "high", "m", "expected"),
    [
        (0.01, 0.02, None, TREATMENT),
        (0.01, 0.6, 0.5, TREATMENT),
        (-0.6, -0.01, 0.5, BASELINE),
        (0.01, 0.02, 0.5, NONE),
        (-0.02, -0.01, 0.5, NONE),
        (-0.01, 0.02, 0.02, NONE),
        (-0.01, 0.03, 0.02, OPEN),
        (-0.03, 0.01, 0.02, OPEN),
        (-0.01, 0.02, None, OPEN),
        (np.nan, np.nan, 0.02, OPEN),
    ],
)
def test_a_side_is_where_the_interval_lies(low, high, m, expected):
    assert side(low, high, m) is expected


def test_each_side_has_its_own_marker(audit):
    (axes,) = panels(figures.forest(audit))
    markers = [point.get_marker() for point in marks(axes, "_estimate")]
    assert markers == ["o", "s", "o", "v", "s", "s", "D", "s", "D"]
    assert legend(figures.forest(audit))[:4] == [s.text for s in (TREATMENT, BASELINE, NONE, OPEN)]


def test_what_compares_neither_arm_has_a_look_and_a_legend_entry_of_its_own(audit):
    roles = np.array(["equivalent", "part", *[""] * (audit.sizes["contrast"] - 2)])
    figure = figures.forest(audit.assign_coords(role=("contrast", roles)))
    (axes,) = panels(figure)
    looks = [(point.get_marker(), point.get_color()) for point in marks(axes, "_estimate")]
    assert looks[:3] == [(s.marker, s.color) for s in (NONE, PART, TREATMENT)]
    assert PART.text in legend(figure)
    assert PART.text not in legend(figures.forest(audit))


def test_open_ends_become_arrows_and_no_interval_is_said(audit):
    odd = audit.copy(deep=True)
    odd["low"].values[1] = -np.inf
    odd["low"].values[2] = odd["high"].values[2] = np.nan
    odd["estimate"].values[3] = odd["low"].values[3] = odd["high"].values[3] = np.nan
    (axes,) = panels(figures.forest(odd))
    (arrow,) = marks(axes, "_unbounded")
    assert (arrow.get_marker(), arrow.get_xdata()[0]) == ("<", axes.get_xlim()[0])
    numbers = [text.get_text() for text in axes.texts if "n = " in text.get_text()]
    assert numbers[1].startswith("−0.031 [−∞, −0.022]")
    assert "no interval" in numbers[2]
    assert "not defined" in numbers[3]
    assert len(marks(axes, "_interval")) == len(audit["label"]) - 2


def test_the_note_gives_the_intervals_coverage(audit):
    assert figures.forest(audit)._supxlabel.get_text() == "Intervals: 95 %."
    corrected = audit.assign(alpha=("contrast", np.linspace(0.025, 0.05, audit.sizes["contrast"])))
    assert figures.forest(corrected)._supxlabel.get_text() == "Intervals: 95 % to 97.5 %."


@pytest.mark.parametrize(
    ("change", "m", "message"),
    [
        (lambda d: d.drop_vars("low"), None, "no 'low'"),
        (lambda d: d.drop_vars("label"), None, "no 'label'"),
        (lambda d: d.isel(contrast=[]), None, "no contrast to draw"),
        (lambda d: d, -0.1, "smallest_effect is -0.1"),
    ],
)
def test_what_is_missing_is_one_error_that_names_it(audit, change, m, message):
    with pytest.raises(ValueError, match=message):
        figures.forest(change(audit), smallest_effect=m)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_small_and_large_effects_are_readable(audit, unit):
    """The axis' "1e-6" stood on the words beside it."""
    scaled = audit.assign({name: unit * audit[name] for name in ("estimate", "low", "high")})
    figure = figures.forest(scaled, smallest_effect=0.02 * unit)
    (axes,) = panels(figure)
    assert_readable(figure)
    assert axes.xaxis.get_offset_text().get_text() == ""
    assert f"{0.1 * unit:g}".replace("-", "−") in [tick.get_text() for tick in axes.get_xticklabels()]


def test_a_long_statement_leaves_the_rows_their_height(audit):
    def height(title):
        figure = figures.forest(audit, title=title)
        figure.canvas.draw()
        return panels(figure)[0].get_window_extent().height

    assert height("a claim in many words " * 20) == pytest.approx(height("a claim"), rel=0.05)
