"""Shares, exact paired tests and tables seed × arm, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from alignlab.audit.outcomes import (
    around,
    best_step,
    by,
    final,
    layers_with,
    lost,
    of_arms,
    sense,
    steps_to,
    with_errors,
)
from alignlab.audit.shares import mcnemar_p, share_of, unseen_share, wilson
from alignlab.audit.statistics import paired

NAN = np.nan
RUNS = xr.Dataset(
    {
        "train_loss": (("run", "step"), [[4, 2, 1, 2], [5, 4, NAN, 3], [6, 1, 7, NAN], [3, 2, 1, 1]]),
        "train_accuracy": (("run", "step"), [[0, 1, 0.5, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]),
    },
    coords={
        "step": [0, 10, 20, 30],
        "run_id": ("run", list("abcd")),
        "seed": ("run", [1, 0, 0, 1]),
        "arm": ("run", ["fa", "bp", "fa", "bp"]),
        "status": ("run", ["finished", "finished", "diverged", "finished"]),
    },
)


def test_final_values_are_those_of_the_last_evaluation_and_diverged_runs_count_as_untrained() -> None:
    table = final(RUNS, "train_loss")
    assert list(table.columns) == ["fa", "bp"]
    assert table.loc[1].tolist() == [2, 1]
    assert table.loc[0].tolist() == [6, 3]


@pytest.mark.filterwarnings("error")
def test_steps_to_a_level_count_to_the_first_or_to_the_lasting_arrival() -> None:
    assert steps_to(RUNS, "train_loss", 2).loc[1].tolist() == [10, 10]
    assert steps_to(RUNS, "train_loss", 3).loc[0].tolist() == [10, 30]
    assert steps_to(RUNS, "train_loss", 1, lasting=True).loc[1].tolist() == [np.inf, 20]
    assert steps_to(RUNS, "train_accuracy", 1).loc[1].tolist() == [10, 20]
    lasting = steps_to(RUNS, "train_accuracy", 1, lasting=True)
    assert lasting.loc[1].tolist() == [30, 20]
    assert lasting.loc[0].tolist() == [np.inf, np.inf]  # one diverged, one never came
    endless = RUNS.assign(train_loss=RUNS["train_loss"].where(RUNS["step"] > 0, np.inf))
    assert steps_to(endless, "train_loss", 2, interpolated=True).loc[1].tolist() == [10, 10]  # from no line


def test_the_best_step_is_the_lowest_loss_or_the_first_highest_accuracy() -> None:
    assert best_step(RUNS, "train_loss").loc[1].tolist() == [20, 20]
    assert best_step(RUNS, "train_accuracy").loc[1].tolist() == [10, 20]


def test_around_a_step_are_the_nearest_recorded_values_in_log_time() -> None:
    assert around(RUNS, "train_loss", 29).loc[1].tolist() == [2, 1]
    assert around(RUNS, "train_loss", 21).loc[0].tolist() == [
        7,
        3,
    ]  # fa: 20 is nearest; bp has no value there
    assert around(RUNS, "train_loss", 15, over=2).loc[1].tolist() == [1.5, 1.5]
    assert around(RUNS, "train_loss", 2).loc[1].tolist() == [4, 3]  # to 0 a factor of 3, to 10 one of 11/3
    layered = RUNS.expand_dims(layer=["a", "b"]) * 1.0
    layered["train_loss"] = layered["train_loss"] * [[[1]], [[2]]]
    layered = layered.assign_coords(status=RUNS["status"])
    assert around(layered, "train_loss", 0, layer="b").loc[1].tolist() == [8, 6]


def test_losses_errors_and_angles_are_better_where_they_are_lower() -> None:
    assert [sense(name) for name in ("test_loss", "test_error", "weight_angle", "test_accuracy", "gain")] == [
        -1,
        -1,
        -1,
        1,
        1,
    ]
    falling = RUNS.rename(train_loss="weight_angle")
    assert steps_to(falling, "weight_angle", 2).loc[1].tolist() == [10, 10]
    assert best_step(falling, "weight_angle").loc[1].tolist() == [20, 20]


def test_lost_runs_ended_no_better_than_they_began_or_diverged() -> None:
    assert lost(RUNS, "train_loss").tolist() == [False, False, True, False]  # c ends at 7 from 6
    assert lost(RUNS, "train_accuracy").tolist() == [False, True, True, False]  # b never moved from 0
    infinite = RUNS.assign(train_loss=RUNS["train_loss"].where(RUNS["step"] < 30, np.inf))
    assert lost(infinite, "train_loss").all()


def test_one_layer_is_chosen_for_a_quantity_of_layers() -> None:
    angle = xr.DataArray(
        [[[9, 80, 70, 60], [9, 40, 30, 5]]] * 4, dims=("run", "layer", "step"), coords={"layer": ["a", "b"]}
    )
    layered = RUNS.assign(weight_angle=angle)
    assert final(layered, "weight_angle", layer="b").loc[1].tolist() == [5, 5]
    assert steps_to(layered, "weight_angle", 8, layer="b").loc[1].tolist() == [30, 30]
    assert steps_to(layered, "weight_angle", 8, layer="a").loc[1].tolist() == [np.inf, np.inf]


def test_runs_are_chosen_by_arm_and_by_any_level_in_their_order() -> None:
    assert of_arms(RUNS, "fa")["run_id"].values.tolist() == ["a", "c"]
    assert of_arms(RUNS, "bp", "fa")["run_id"].values.tolist() == list("abcd")
    with pytest.raises(ValueError, match="no arm 'dfa' in these runs: there are fa, bp"):
        of_arms(RUNS, "fa", "dfa")
    assert {level: own["run_id"].values.tolist() for level, own in by(RUNS, "seed").items()} == {
        1: ["a", "d"],
        0: ["b", "c"],
    }


def test_layers_with_a_value_and_errors_beside_accuracies() -> None:
    table = xr.DataArray(
        [[[NAN, 1.0, NAN]] * 4], dims=("step", "run", "layer"), coords={"layer": ["a", "b", "c"]}
    )
    assert layers_with(RUNS.assign(weight_angle=table.isel(step=0)), "weight_angle") == ["b"]
    found = with_errors(RUNS)
    assert found["train_error"].values[0].tolist() == [100, 0, 50, 0]
    assert set(found.data_vars) - set(RUNS.data_vars) == {"train_error"}
    both = with_errors(
        RUNS.assign(test_accuracy=RUNS["train_accuracy"] - 0.25)
    )  # 25 points worse on what is new
    assert both["error_gap"].values[0].tolist() == [25] * 4


def test_unknown_outcomes_and_repeated_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no outcome 'joy'.*train_loss, train_accuracy"):
        final(RUNS, "joy")
    with pytest.raises(ValueError, match="train_loss was never evaluated in 1 of these runs"):
        final(RUNS.assign(train_loss=RUNS["train_loss"].where(RUNS["run_id"] != "c")), "train_loss")
    with pytest.raises(ValueError, match="arm 'fa' has several runs of seed 1"):
        final(RUNS.assign_coords(seed=("run", [1, 0, 1, 1])), "train_loss")
    with pytest.raises(ValueError, match=r"these runs have no 'arm': give each one, runs\.assign_coords"):
        final(RUNS.drop_vars("arm"), "train_loss")


def test_wilsons_interval_is_the_published_one() -> None:
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert share_of([True] * 3 + [False]) == pytest.approx((0.75, 0.3006, 0.9544, 3, 4), abs=1e-4)
    with pytest.raises(ValueError, match=r"shape \(n,\)"):
        share_of([])


def test_a_shares_interval_stands_at_its_level_and_leaves_no_share_out_of_0_to_1() -> None:
    assert share_of([True, False, False], 0.01)[1:3] == wilson(1 / 3, 3, 0.01)
    for n in range(1, 40):  # rounding alone would lead out of it
        assert share_of([False] * n).low >= 0
        assert share_of([True] * n).high <= 1


def test_mcnemar_counts_discordant_pairs_as_coins() -> None:
    a = [1, 1, 1, 1, 0, 1, 0]
    b = [0, 0, 0, 0, 1, 1, 0]
    assert mcnemar_p(a, b) == pytest.approx(2 * (1 + 5) / 32)  # 4 against 1 of 5
    assert mcnemar_p(a, b) == mcnemar_p(b, a)
    assert mcnemar_p(a, a) == 1
    with pytest.raises(ValueError, match="one truth a seed"):
        mcnemar_p(a, b[:3])


@pytest.mark.parametrize(("n", "alpha"), [(2, 0.05), (6, 0.05), (30, 0.01)])
def test_what_a_share_of_all_seeds_does_is_missing_from_n_of_them_with_probability_alpha(
    n: int, alpha: float
) -> None:
    assert (1 - unseen_share(n, alpha)) ** n == pytest.approx(alpha)


def test_a_single_run_as_it_is_opened_has_outcomes_too() -> None:
    """A store of one run has no dim `run`: its loss was said not to be there."""
    one = RUNS.isel(run=0)
    assert final(one, "train_loss").equals(final(RUNS.isel(run=[0]), "train_loss"))
    assert steps_to(one, "train_loss", 5).equals(steps_to(RUNS.isel(run=[0]), "train_loss", 5))
    assert lost(one, "train_loss").tolist() == lost(RUNS.isel(run=[0]), "train_loss").tolist()
    assert final(RUNS.isel(run=[0, 1]).drop_vars("arm").assign_coords(arm="all"), "train_loss").shape == (
        2,
        1,
    )


# What float32 holds ---------------------------------------------------------------------------------------------------


def stored(accuracies: list[list[float]], arms: list[str]) -> xr.Dataset:
    """Accuracies as alignlab stores them, two evaluations a run."""
    n = len(arms)
    coords = {
        "arm": arms,
        "seed": [arms[:i].count(arm) for i, arm in enumerate(arms)],
        "status": ["finished"] * n,
    }
    held = {"test_accuracy": (("run", "step"), np.array(accuracies, np.float32))}
    return xr.Dataset(
        held,
        {k: ("run", v) for k, v in (coords | {"run_id": list(map(str, range(n)))}).items()}
        | {"step": [0, 10]},
    )


def test_an_accuracy_of_exactly_the_level_has_reached_it_whatever_float32_makes_of_it_and_so_has_its_error() -> (
    None
):
    shares = [i / 100 for i in range(1, 100)] + [i / 41 for i in range(1, 41)]
    runs = with_errors(stored([[0, share] for share in shares], ["fa"] * len(shares)))

    def taken(i: int, outcome: str, level: float, interpolated: bool = False) -> float:
        found = steps_to(runs.isel(run=[i]), outcome, level, interpolated=interpolated)
        return float(found["fa"].iloc[0])

    assert [share for i, share in enumerate(shares) if taken(i, "test_accuracy", share) > 10] == []
    assert [i for i in range(1, 100) if taken(i - 1, "test_error", 100 - i) > 10] == []
    for interpolated in (False, True):  # never beyond the step where it is first there
        assert taken(89, "test_accuracy", 0.9, interpolated) == 10
    assert taken(88, "test_accuracy", 0.9) == np.inf


def test_equal_differences_of_stored_accuracies_are_equal() -> None:
    runs = stored(
        [[0, 0.9012], [0, 0.4034], [0, 0.1001], [0, 0.8999], [0, 0.4021], [0, 0.0988]],
        ["fa"] * 3 + ["bp"] * 3,
    )
    table = final(runs, "test_accuracy")
    assert paired((table["fa"] - table["bp"]).to_numpy()).tied
