"""Rows and columns of a study's table, and contrasts of its arms: against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from alignlab.audit.contrasts import as_dataset, compared
from alignlab.audit.crossfit import each_its_best, tuned
from alignlab.audit.statistics import Interval, paired
from alignlab.audit.tables import at_steps, by_arm, counterparts, counts, differences, settings, tuning

ENDS = pd.DataFrame({"bp": [1.0, 2.0, 3.0], "fa": [3.0, 4.0, 8.0], "dfa": [2.0, 4.0, 6.0]})


def runs_of(arms: list[str], seeds: list[int], **values: object) -> xr.Dataset:
    """Runs with a test loss and an accuracy at steps 0 and 10, and coordinates from ``values``."""
    n = len(arms)
    ends = np.asarray(values.pop("ends", np.arange(n, dtype=float)), float)
    named = {
        "arm": arms,
        "seed": seeds,
        "status": ["finished"] * n,
        "run_id": [f"r{i}" for i in range(n)],
        **values,
    }
    return xr.Dataset(
        {"test_loss": (("run", "step"), np.stack([np.full(n, 9.0), ends], 1))},
        {name: ("run", np.asarray(own)) for name, own in named.items()} | {"step": [0, 10]},
    )


def test_a_row_for_each_arm_of_any_column_and_a_gap_for_what_is_not_told() -> None:
    rows = by_arm({"mean": ENDS.mean()[["bp", "fa"]], "more": {"fa": "+2", "ifa": "?"}}, title="rule")
    assert rows == [
        {"rule": "bp", "mean": 2.0, "more": ""},
        {"rule": "fa", "mean": 5.0, "more": "+2"},
        {"rule": "ifa", "mean": "", "more": "?"},
    ]


def test_differences_are_arm_minus_baseline_paired_by_seed() -> None:
    found = differences(ENDS, "bp")
    # fa − bp = 2, 2, 5: mean 3, s = √3, se = 1, t(0.975, 2) = 4.3027; dfa − bp = 1, 2, 3: se = 1/√3
    assert found == {"fa": "+3.00 [-1.30, +7.30]", "dfa": "+2.00 [-0.48, +4.48]"}
    own = differences(ENDS, {"bp": "bp", "fa": "dfa", "dfa": "dfa"}, "+.1f")
    assert own == {"fa": "+1.0 [-1.5, +3.5]"}  # 1, 0, 2
    with pytest.raises(ValueError, match=r"no arm 'sgd' to compare with: there are bp, fa, dfa"):
        differences(ENDS, "sgd")


def test_an_arms_counterpart_is_the_one_that_differs_in_the_rule_alone() -> None:
    arms = ["bp 1", "bp 1", "fa 1", "bp 3", "fa 3"]
    runs = runs_of(arms, [0, 1, 0, 0, 0], rule=["bp", "bp", "fa", "bp", "fa"], depth=[1, 1, 1, 3, 3])
    found = counterparts(runs, ["depth"], rule="bp")
    assert found == {"bp 1": "bp 1", "fa 1": "bp 1", "bp 3": "bp 3", "fa 3": "bp 3"}
    decayed = runs.assign_coords(decay=("run", [0, 0, 0, 0, 0.1]))
    assert counterparts(decayed, [], rule="fa", decay=0)["fa 3"] == "fa 1"
    with pytest.raises(ValueError, match="'fa 3' has 0 arms of rule bp with its depth"):
        counterparts(runs.isel(run=[0, 2, 4]), ["depth"], rule="bp")
    with pytest.raises(ValueError, match="'bp 1' has 2 arms of rule bp"):
        counterparts(runs, [], rule="bp")


def test_settings_and_counts_are_told_arm_by_arm() -> None:
    runs = runs_of(["b", "b", "a", "b"], [0, 1, 0, 2], lr=[0.3, 0.1, 1e-4, 0.3])
    assert settings(runs, "lr") == {"b": "0.1, 0.3", "a": "0.0001"}
    assert counts(runs, np.array([True, False, True, True])) == {"b": "2/3", "a": "1/1"}
    assert list(settings(runs, "lr")) == ["b", "a"]  # as the runs come


def test_columns_of_tuning_tell_rates_edges_ends_and_losses() -> None:
    arms, seeds, lrs = ["fa"] * 6, [0, 1] * 3, [0.1, 0.1, 0.3, 0.3, 1.0, 1.0]
    runs = runs_of(arms, seeds, lr=lrs, ends=[3.0, 2.0, 4.0, 4.0, 9.0, np.inf])
    chosen = tuned(runs, "test_loss", ["arm"])
    assert {name: own["fa"] for name, own in tuning(runs, chosen, "test_loss").items()} == {
        "best rates": "0.1",
        "on the grid's edge": "2/2",
        "test loss": 2.5,
        "lost, all rates": "2/6",  # one ended where it began, at 9, one at infinity
    }
    named = each_its_best(chosen)
    assert set(named["lr"].values) == {"each its best"}
    assert named["rate"].values.tolist() == [0.1, 0.1]


def test_at_steps_are_the_means_of_the_nearest_values() -> None:
    runs = runs_of(["fa", "fa"], [0, 1], ends=[3.0, 4.0])
    rows = at_steps({"start": 0, "end": 9}, {"loss": (runs, "test_loss", None)})
    assert rows == [
        {"moment": "start", "step": "0", "loss": 9.0},
        {"moment": "end", "step": "9", "loss": 3.5},
    ]


def test_at_steps_the_layer_that_was_asked_for_is_told() -> None:
    runs = runs_of(["fa", "fa"], [0, 1]).assign_coords(layer=["1", "3"])
    runs["gradient_angle"] = (("run", "step", "layer"), [[[80.0, 10], [70, 20]], [[80, 30], [70, 40]]])
    (row,) = at_steps({"end": 10}, {"angle": (runs, "gradient_angle", "3")})
    assert row["angle"] == 30


def test_a_contrast_is_above_zero_where_the_treatment_is_better() -> None:
    runs = runs_of(["fa"] * 3 + ["bp"] * 3, [0, 1, 2, 2, 1, 0], ends=[3.0, 4.0, 8.0, 3.0, 2.0, 1.0])
    (found,) = compared(runs, "test_loss", {"rules": [("bp", "fa")]})  # fa − bp = 2, 2, 5 of the same seeds
    assert (found.label, found.group, found.interval) == ("bp / fa", "rules", paired([2.0, 2.0, 5.0]))
    higher = runs.rename(test_loss="test_accuracy")
    assert compared(higher, "test_accuracy", {"": [("bp", "fa")]})[0].interval == paired([-2.0, -2.0, -5.0])
    with pytest.raises(ValueError, match=r"no arm 'dfa' to compare: there are fa, bp"):
        compared(runs, "test_loss", {"": [("fa", "bp"), ("dfa", "bp")]})
    with pytest.raises(ValueError, match=r"no arm 'usf' to compare"):
        compared(runs, "test_loss", {"": [("fa", "usf")]})


def test_contrasts_become_what_a_forest_plot_draws() -> None:
    interval = Interval(0.2, 0.1, 0.4, 0.05, 7, 0.01, "t", 0.05)
    other = {"estimate": -1, "low": -2, "high": 0, "n": 3, "alpha": 0.01}
    found = as_dataset([("a", "one", interval), ("b", "two", other)], "loss lower by", "nat", statement="so")
    assert found["label"].values.tolist() == ["a", "b"]
    assert found["group"].values.tolist() == ["one", "two"]
    told = {name: found[name].values.tolist() for name in found.data_vars}
    assert told == {
        "estimate": [0.2, -1],
        "low": [0.1, -2],
        "high": [0.4, 0],
        "n": [7, 3],
        "alpha": [0.05, 0.01],
    }
    assert found["estimate"].attrs == {"long_name": "loss lower by", "units": "nat"}
    assert found.attrs == {"statement": "so"}
