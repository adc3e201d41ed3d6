"""Reaching a level: shares of all runs with their intervals, and when each run was first there."""

import numpy as np
import pytest
import xarray as xr
from figure_reading import assert_readable, marks, texts

from alignlab.audit.shares import share_of
from alignlab.figures import reaching

STEPS = np.array([0, 10, 20, 30])
ARRIVALS = {"soon": (10, 10, 20), "late": (30, 20, None), "rarely": (10, None, None)}


def curves(arrivals):
    rows = [(arm, seed, at) for arm, steps in arrivals.items() for seed, at in enumerate(steps)]
    right = [[0.5 if at is None or step < at else 1.0 for step in STEPS] for _, _, at in rows]
    coords = {name: ("run", [row[i] for row in rows]) for i, name in enumerate(("arm", "seed"))}
    coords |= {"status": ("run", ["finished"] * len(rows)), "step": STEPS}
    return xr.Dataset({"train_accuracy": (("run", "step"), right)}, coords)


def test_shares_are_of_all_runs_of_the_arm_with_wilsons_interval():
    figure = reaching(curves(ARRIVALS), "train_accuracy", 1.0)
    left = figure.axes[0]
    assert [line.get_ydata().tolist() for line in left.lines] == [
        pytest.approx([0, 2 / 3, 1, 1]),
        pytest.approx([0, 0, 1 / 3, 2 / 3]),
        pytest.approx([0, 1 / 3, 1 / 3, 1 / 3]),
    ]
    band = left.collections[2].get_paths()[0].vertices[:, 1]
    share = share_of(np.array([True, False, False]))
    assert [band.min(), band.max()] == pytest.approx([share_of(np.zeros(3, bool)).low, share.high])
    assert_readable(figure)


def test_the_median_is_that_of_all_runs_so_that_arriving_rarely_is_not_arriving_soon():
    figure = reaching(curves(ARRIVALS), "train_accuracy", 1.0)
    right = figure.axes[1]
    assert [float(bar.get_xdata()[0]) for bar in marks(right, "_median")] == [10, 30]  # of "rarely" none
    assert {"3 of 3", "2 of 3", "1 of 3"} <= {text.get_text() for text in texts(figure)}
    assert "the median of all" in figure._supxlabel.get_text().replace("\n", " ")


def test_an_accuracy_of_exactly_the_level_counts_on_both_sides_whatever_float32_makes_of_it():
    runs = curves({"soon": (10, 10, 10)})
    nine_tenths = runs.assign(train_accuracy=(0.9 * (runs["train_accuracy"] == 1)).astype(np.float32))
    left, right = reaching(nine_tenths, "train_accuracy", 0.9).axes
    assert left.lines[0].get_ydata().tolist() == [0, 1, 1, 1]
    assert [text.get_text() for text in right.get_yticklabels()] == ["3 of 3"]


def test_the_frame_ends_with_the_evaluations_of_these_runs():
    """Selected from a store of longer runs they were pressed into the first of its steps."""
    longer = curves(ARRIVALS).reindex(step=[*STEPS, 3000])
    for axes in reaching(longer, "train_accuracy", 1.0).axes:
        assert axes.get_xlim()[1] < 35


def test_what_an_arm_is_has_to_be_known():
    with pytest.raises(ValueError, match="cannot split by 'arm'"):
        reaching(curves(ARRIVALS).drop_vars("arm"), "train_accuracy", 1.0)


@pytest.mark.parametrize("name", ["train_loss", "test_error", "weight_angle"])
def test_what_falls_is_there_once_it_lies_below_the_level(name):
    runs = curves(ARRIVALS)
    figure = reaching(runs.assign({name: 1 - runs["train_accuracy"]}), name, 0.25)
    left, right = figure.axes
    assert [line.get_ydata()[-1] for line in left.lines] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["3 of 3", "2 of 3", "1 of 3"]
    assert left.get_ylabel().endswith("≤ 0.25")


def test_each_arm_is_drawn_at_the_steps_of_its_own_evaluations():
    """Where the other arm alone was evaluated, its share fell to 0 and rose again."""
    runs = curves(ARRIVALS)
    runs["train_accuracy"].values[3:6, [1]] = np.nan  # "late" at every other step
    late = reaching(runs, "train_accuracy", 1.0).axes[0].lines[1]
    assert late.get_xdata().tolist() == [0, 20, 30]
    assert late.get_ydata().tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    runs["train_accuracy"].values[3:6, 3] = np.nan
    late = reaching(runs, "train_accuracy", 1.0).axes[0].lines[1]
    assert late.get_ydata().tolist() == pytest.approx([0, 1 / 3])
    status = ["diverged" if arm == "late" else "finished" for arm in runs.arm.values]
    late = reaching(runs.assign_coords(status=("run", status)), "train_accuracy", 1.0).axes[0].lines[1]
    assert late.get_ydata().tolist() == pytest.approx([0, 1 / 3, 0])


def test_runs_of_one_arm_that_were_evaluated_at_different_steps_are_refused():
    runs = curves(ARRIVALS)
    runs["train_accuracy"].values[3, 1] = np.nan
    with pytest.raises(ValueError, match="arm 'late' were evaluated at different steps"):
        reaching(runs, "train_accuracy", 1.0)
