"""Ratios of steps to a level: exact for exponentials, bounds where runs are late, best rates by other seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import xarray as xr

from alignlab.audit.crossfit import favoured, tuned
from alignlab.audit.durations import duration_ratio, duration_ratios
from alignlab.audit.outcomes import steps_to

INF = math.inf
STEPS = np.array([0, 1, 3, 10, 30, 100, 300])


def decays(speed: dict[str, dict[float, list[float]]]) -> xr.Dataset:
    """Losses 2 exp(−speed · step), a run for each seed of each arm at each rate: 2/e^k is reached after k / speed steps."""
    rows = [
        (arm, lr, seed, k)
        for arm, at in speed.items() for lr, speeds in at.items() for seed, k in enumerate(speeds)
    ]  # fmt: skip
    loss = np.array([2 * np.exp(-k * STEPS) for *_, k in rows])
    names = ("arm", "lr", "seed")
    coords = {name: ("run", [row[i] for row in rows]) for i, name in enumerate(names)}
    n = len(rows)
    coords |= {"status": ("run", ["finished"] * n), "last_step": ("run", [300] * n)}
    coords |= {"run_id": ("run", [str(i) for i in range(n)]), "step": ("step", STEPS)}
    return xr.Dataset({"train_loss": (("run", "step"), loss)}, coords)


def test_the_end_kept_beside_late_runs_bounds_the_true_ratio_as_often_as_promised_but_not_what_waiting_would_give():
    """True ratio 2, lognormal around it; with a budget of 2.2 the half of five runs is late."""
    rng, repeats, beyond, waited = np.random.default_rng(0), 1000, 0, 0
    for _ in range(repeats):
        durations = 2 * np.exp(0.4 * rng.standard_normal(5))
        seen = duration_ratio(np.where(durations > 2.2, INF, durations), np.ones(5), 2.2)
        beyond += seen.low > 2
        waited += duration_ratio(durations, np.ones(5), 100).low < seen.low
    assert beyond <= 0.025 * repeats
    assert waited > 0


def test_a_level_is_interpolated_on_the_logarithm_of_a_loss() -> None:
    runs = decays({"bp": {0.1: [0.05, 0.01]}})
    for level, at in ((2 / math.e, [20, 100]), (2 / math.e**0.5, [10, 50]), (2 / math.e**4, [80, INF])):
        assert steps_to(runs, "train_loss", level, interpolated=True)["bp"].tolist() == pytest.approx(at)
    assert steps_to(runs, "train_loss", 2 / math.e)["bp"].tolist() == [30, 100]
    assert steps_to(runs, "train_loss", 5, interpolated=True)["bp"].tolist() == [0, 0]


def test_what_is_no_positive_loss_is_interpolated_as_it_is() -> None:
    runs = decays({"bp": {0.1: [0.05]}})
    rising = runs.assign(train_accuracy=(("run", "step"), [[0, 0.2, 0.4, 0.8, 0.7, 1, 1]]))
    assert steps_to(rising, "train_accuracy", 0.5, interpolated=True)["bp"].tolist() == [4.75]
    assert steps_to(rising, "train_accuracy", 0.75, interpolated=True, lasting=True)["bp"].tolist() == [
        pytest.approx(30 + 70 * 0.05 / 0.3)
    ]
    falling = runs.assign(x_loss=(("run", "step"), [[1, 1, 1, 1, 1, -1, -2]]))
    assert steps_to(falling, "x_loss", 0.5, interpolated=True)["bp"].tolist() == [47.5]


def test_a_ratio_is_geometric_and_paired() -> None:
    ratio = duration_ratio([200, 800], [100, 100], budget=1000)
    assert (ratio.estimate, ratio.sign, ratio.n) == (pytest.approx(4), "=", 2)
    half = 12.7062 * math.log(2)  # t at one degree of freedom times the standard error of log 2 and log 8
    assert (ratio.low, ratio.high) == pytest.approx((4 / math.exp(half), 4 * math.exp(half)), rel=1e-3)
    back = duration_ratio([100, 100], [200, 800], budget=1000)
    assert (back.estimate, back.low, back.high) == pytest.approx((1 / 4, 1 / ratio.high, 1 / ratio.low))


def test_a_ratios_interval_stands_at_its_level() -> None:
    ratio = duration_ratio([200, 800], [100, 100], budget=1000, alpha=0.5)
    assert ratio.high == pytest.approx(4 * math.exp(math.log(2)))  # t at one degree of freedom is 1
    runs = decays({"bp": {0.1: [0.1, 0.1]}, "fa": {0.1: [0.05, 0.0125]}})
    found = duration_ratios(runs, "train_loss", [2 / math.e], alpha=0.5)
    assert [own.ratio.high for own in found] == pytest.approx([8, 8])


def test_late_runs_are_counted_and_make_bounds() -> None:
    late = duration_ratio([200, INF], [100, 100], budget=400)
    assert (late.sign, late.late, late.baseline_late, late.high) == ("≥", 1, 0, INF)
    assert late.estimate == pytest.approx(math.sqrt(2 * 4))
    assert late.low == pytest.approx(duration_ratio([200, 400], [100, 100], 400).low)
    early = duration_ratio([100, 100], [200, INF], budget=400)
    assert (early.sign, early.late, early.baseline_late, early.low) == ("≤", 0, 1, 0)
    assert early.estimate == pytest.approx(1 / late.estimate)
    both = duration_ratio([INF, 100], [INF, 200], budget=400)
    assert (both.sign, both.late, both.baseline_late, str(both)) == ("?", 1, 1, "?")
    assert math.isnan(both.estimate)


@pytest.mark.parametrize("wrong", [0, -3, math.nan, 401])
def test_a_duration_out_of_range_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="a duration is"):
        duration_ratio([wrong, 1], [1, 1], budget=400)


def test_ratios_at_each_rate_and_best_against_best() -> None:
    runs = decays({"bp": {0.1: [0.1, 0.1], 0.2: [0.2, 0.2]}, "fa": {0.1: [0.05, 0.05], 0.2: [0.01, 0.01]}})
    found = duration_ratios(runs, "train_loss", [2 / math.e, 2 / math.e**2])
    assert [(r.arm, r.lr, round(r.ratio.estimate, 6), r.ratio.sign) for r in found] == [
        ("fa", 0.1, 2, "="), ("fa", 0.2, 20, "="), ("fa", None, 4, "="),
    ] * 2  # fmt: skip
    assert found[2].rates.tolist() == [[0.1, 0.2], [0.1, 0.2]]


def test_a_seed_is_reported_at_the_rate_that_the_others_favour() -> None:
    runs = decays({"bp": {0.1: [0.1] * 3, 0.2: [0.01] * 3}, "fa": {0.1: [0.1, 0.02, 0.02], 0.2: [0.04] * 3}})
    best = duration_ratios(runs, "train_loss", [2 / math.e])[-1]
    assert best.rates.tolist() == [
        [0.2, 0.1],
        [0.1, 0.1],
        [0.1, 0.1],
    ]  # only seed 0 makes fa's lower rate look better
    assert best.ratio.estimate == pytest.approx((25 / 10 * 5 * 5) ** (1 / 3))


def test_runs_that_are_missing_are_named() -> None:
    runs = decays({"bp": {0.1: [0.1, 0.1], 0.2: [0.2, 0.2]}, "fa": {0.1: [0.05, 0.05]}})
    with pytest.raises(ValueError, match="arm 'fa' lacks a run"):
        duration_ratios(runs, "train_loss", [1.0])
    other = decays({arm: {0.1: [0.1, 0.1], 0.2: [0.2, 0.2]} for arm in ("bp", "fa")})
    other = other.assign_coords(
        seed=other["seed"] + (other["lr"] == 0.2)
    )  # 0 and 1 at one rate, 1 and 2 at another
    with pytest.raises(ValueError, match="arm 'bp' lacks a run"):
        duration_ratios(other, "train_loss", [1.0])
    with pytest.raises(ValueError, match=r"no arm 'sgd'.*bp, fa"):
        duration_ratios(runs.isel(run=runs["lr"] == 0.1), "train_loss", [1.0], baseline="sgd")


@pytest.mark.parametrize("levels", [[], [1.0, math.nan], [INF], 1.0])
def test_what_is_no_level_is_refused(levels: Any) -> None:
    runs = decays({arm: {0.1: [0.1, 0.1]} for arm in ("bp", "fa")})
    with pytest.raises(ValueError, match="expected a list of finite numbers, one at least"):
        duration_ratios(runs, "train_loss", levels)


def test_a_run_that_stopped_before_the_others_bounds_no_ratio_by_their_last_step() -> None:
    """fa takes 2.5 times as long as bp; stopped after 100 steps of bp's 300, it would have counted as taking 300 or more."""
    runs = decays({"bp": {0.1: [0.04] * 3}, "fa": {0.1: [0.016] * 3}})
    short = runs.assign(train_loss=runs["train_loss"].where((runs["arm"] == "bp") | (runs["step"] <= 100)))
    assert duration_ratios(short, "train_loss", [1.0])[0].ratio.estimate == pytest.approx(2.5)  # all arrived
    with pytest.raises(
        ValueError, match=r"arm 'fa', seed 0, lr 0\.1 was last evaluated at step 100, short of .*step 300"
    ):
        duration_ratios(short, "train_loss", [0.1])
    gone = short.assign_coords(status=("run", ["finished"] * 3 + ["diverged"] * 3))  # these never arrive
    assert duration_ratios(gone, "train_loss", [0.1])[0].ratio.estimate == pytest.approx(
        300 / (np.log(20) / 0.04)
    )


def test_late_runs_count_as_arriving_at_the_last_step_that_was_evaluated() -> None:
    runs = decays({"bp": {0.1: [0.04] * 3}, "fa": {0.1: [0.001] * 3}})
    found = duration_ratios(runs.assign_coords(last_step=("run", [5000] * 6)), "train_loss", [1.0])[0].ratio
    assert found.estimate == pytest.approx(300 / (np.log(2) / 0.04))


# Cross-fitted choice --------------------------------------------------------------------------------------------------


def test_the_others_prefer_rates_that_never_fail() -> None:
    scores = np.array([[1, 5, 7], [1, 5, 7], [INF, 5, 7], [1, 5, 4]])
    assert favoured(scores).tolist() == [1, 1, 0, 1]
    assert favoured(np.full((2, 3), INF)).tolist() == [0, 0]
    assert favoured(np.array([[INF, INF], [INF, 3], [INF, INF]])).tolist() == [1, 0, 1]


def test_a_loss_that_exploded_does_not_drown_what_the_other_seeds_favour() -> None:
    scores = np.array([[3, 2], [3, 2], [1e20, 2]])
    assert favoured(scores).tolist() == [1, 1, 1]
    assert favoured(scores[:, ::-1]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scores", [np.ones((1, 3)), np.ones(3), np.ones((2, 0)), [[1, math.nan], [1, 1]]])
def test_scores_that_nobody_else_can_judge_are_refused(scores: object) -> None:
    with pytest.raises(ValueError, match=r"two seeds or more|is missing"):
        favoured(np.asarray(scores))


def test_tuned_runs_are_one_for_each_condition_and_seed() -> None:
    runs = decays(
        {"bp": {1.0: [0.1] * 2, 2.0: [0.2] * 2, 3.0: [0.1] * 2}, "fa": {1.0: [0.2] * 2, 2.0: [0.1] * 2}}
    )
    found = tuned(runs, "train_loss", ["arm"])
    assert list(zip(found.arm.values, found.lr.values, found.seed.values, found.on_edge.values, strict=True)) == [
        ("bp", 2.0, 0, False), ("bp", 2.0, 1, False), ("fa", 1.0, 0, True), ("fa", 1.0, 1, True),
    ]  # fmt: skip
    high = decays({"bp": {1.0: [0.1] * 2, 2.0: [0.2] * 2, 3.0: [0.3] * 2}})
    assert tuned(high, "train_loss", ["arm"])["on_edge"].values.tolist() == [True, True]
    rising = runs.assign(validation_accuracy=1 / runs["train_loss"])
    assert tuned(rising, "validation_accuracy", ["arm"])["lr"].values.tolist() == [2, 2, 1, 1]
    lost = runs.assign_coords(status=("run", np.where(runs["lr"] == 2.0, "diverged", "finished")))
    assert tuned(lost, "train_loss", ["arm"])["lr"].values.tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="fa: 3 runs of 2 seeds at 2"):
        tuned(runs.isel(run=slice(0, -1)), "train_loss", ["arm"])
    twice = runs.isel(run=[0, 1, 2, 2])  # as many runs as two seeds at two rates have
    with pytest.raises(ValueError, match="bp: 4 runs of 2 seeds at 2"):
        tuned(twice, "train_loss", ["arm"])
