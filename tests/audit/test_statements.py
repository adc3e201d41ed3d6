"""Statements of others about arms: read as differences with a margin, judged at best rates and at each rate."""

import re

import numpy as np
import pytest
import xarray as xr

from alignlab.audit.statements import Statement, as_rows, judged
from alignlab.training import load
from alignlab.training.spec import RunSpec

# test errors of three seeds, and validation accuracies that pick the rate, by arm and rate
ERRORS = {
    ("bp", 0.1): ([10, 11, 12], 0.9),
    ("bp", 0.3): ([30, 31, 32], 0.7),
    ("fa", 0.1): ([20, 22, 21], 0.8),
    ("fa", 0.3): ([31, 33, 32], 0.6),
    ("clip 1", 0.1): ([50, 19, 50], 0.5),
    ("clip 1", 0.3): ([60, 60, 60], 0.1),
    ("clip 2", 0.1): ([18, 50, 20], 0.5),
    ("clip 2", 0.3): ([60, 60, 60], 0.1),
}


def runs(steps=100):
    rows = [(arm, lr, seed) for arm, lr in ERRORS for seed in range(3)]
    errors = [ERRORS[arm, lr][0][seed] for arm, lr, seed in rows]
    chosen = [ERRORS[arm, lr][1] for arm, lr, _ in rows]
    arms, rates, seeds = zip(*rows, strict=True)
    n = len(rows)
    return xr.Dataset(
        {
            "test_error": (("run", "step"), np.array(errors, float)[:, None]),
            "validation_accuracy": (("run", "step"), np.array(chosen)[:, None]),
            "last_step": ("run", np.full(n, steps)),
        },
        {
            "arm": ("run", list(arms)),
            "lr": ("run", list(rates)),
            "seed": ("run", list(seeds)),
            "status": ("run", ["complete"] * n),
            "run_id": ("run", [str(i) for i in range(n)]),
            "spec": ("run", [RunSpec(task="mnist_small", batch_size=10).to_yaml()] * n),
            "step": [steps],
        },
    )


def one(**changed):
    settings = {"about": "fa", "said": "poor", "more": ["fa"], "less": ["bp"], **changed}
    return judged(runs(), [Statement(**settings)])[0]


def test_a_difference_is_taken_at_each_arms_own_best_rate():
    found = one()
    # 20 − 10, 22 − 11, 21 − 12 at lr 0.1, which both favour; t₂ = 4.303, s = 1
    assert found.interval.estimate == pytest.approx(10)
    assert found.interval.low == pytest.approx(10 - 4.3027 / np.sqrt(3), abs=1e-3)
    assert {lr: own.estimate for lr, own in found.at.items()} == pytest.approx({0.1: 10, 0.3: 1})


@pytest.mark.parametrize(
    ("margin", "verdict"), [(0, "holds"), (7.5, "holds"), (7.6, "undecided"), (10, "undecided"), (13, "does not hold")]
)  # fmt: skip
def test_a_statement_holds_where_its_interval_is_above_the_margin(margin, verdict):
    assert one(margin=margin).verdict == verdict


def test_a_rate_at_which_it_holds_all_the_same_is_named():
    # at 0.3: 31 − 11 − 10 … : the sides have other best rates than the rate they are compared at
    found = judged(runs(), [Statement("x", "y", ["bp"], ["fa"], margin=-5)])[0]
    assert found.interval.high < -5
    assert found.verdict == "does not hold; holds at lr 0.3"  # −1, −2, 0 against −5


def test_a_rate_that_one_of_its_arms_lacks_is_no_rate_to_compare_them_at():
    some = runs()
    partly = some.isel(run=np.flatnonzero((some["arm"].values != "fa") | (some["lr"].values != 0.3)))
    (found,) = judged(partly, [Statement("x", "y", ["fa"], ["bp"])])
    assert list(found.at) == [0.1]


def test_a_difference_that_is_the_margin_on_every_seed_does_not_exceed_it():
    more = runs().assign_coords(seed=runs()["seed"] + 3)
    six = xr.concat([runs(), more.assign_coords(run_id=more["run_id"] + "+")], "run")
    (found,) = judged(six, [Statement("x", "y", ["bp", "fa"], ["fa", "bp"])])
    assert (found.interval.low, found.interval.high, found.verdict) == (0, 0, "does not hold")


def test_the_rate_is_picked_by_what_was_asked_and_not_by_the_outcome():
    swapped = runs()
    swapped["validation_accuracy"] = 1 - swapped["validation_accuracy"]
    (found,) = judged(swapped, [Statement("x", "y", ["fa"], ["bp"])])
    assert found.interval.estimate == pytest.approx(1)  # both at 0.3, where both are worse


def test_of_several_arms_the_more_accurate_counts_where_the_outcome_is_an_accuracy():
    accurate = runs().rename(test_error="test_accuracy")  # clip 1: 50, 19, 50; clip 2: 18, 50, 20
    (found,) = judged(
        accurate, [Statement("x", "y", [("clip 1", "clip 2")], ["fa"], outcome="test_accuracy")]
    )
    assert found.interval.estimate == pytest.approx(np.mean([18 - 20, 19 - 22, 50 - 21]))


def test_of_several_arms_that_counts_which_the_other_seeds_favour():
    found = one(more=[("clip 1", "clip 2")], less=["fa"])
    # clip 1: 50, 19, 50; clip 2: 18, 50, 20. The others favour clip 1 (34.5 to 35), clip 2 (19 to 50), clip 2 (34)
    assert found.interval.estimate == pytest.approx(np.mean([50 - 20, 50 - 22, 20 - 21]))
    assert list(found.statement.shown) == ["fa", "clip 1", "clip 2"]
    assert list(one(picture=("bp", "clip 1")).statement.shown) == ["bp", "clip 1"]


def test_sides_of_several_arms_are_added_up():
    assert one(more=["fa", "bp"], less=["bp", "bp"]).interval.estimate == pytest.approx(10)


def test_what_needs_images_seen_again_cannot_show_before():
    statement = Statement("x", "over-fits", ["fa"], ["bp"], repeats=True)
    (early,), (late,) = (judged(runs(steps), [statement]) for steps in (100, 10**6))
    assert early.verdict == "cannot show: no image seen twice"
    assert late.verdict == "holds"


def test_one_whole_epoch_shows_no_image_twice_and_the_longest_run_tells_how_many_there_were():
    statement = Statement("x", "over-fits", ["fa"], ["bp"], repeats=True)
    once = len(load("mnist_small").train) // 10  # batches of 10
    assert judged(runs(once), [statement])[0].verdict == "cannot show: no image seen twice"
    longer = runs(once + 1)
    assert judged(longer, [statement])[0].verdict == "holds"
    longer["last_step"][0] = 1  # a run that diverged
    assert judged(longer, [statement])[0].verdict == "holds"


def test_a_row_says_what_was_compared():
    (row,) = as_rows([one(more=[("clip 1", "clip 2")], less=["fa", "bp"])], "points")
    assert row["difference [points]"] == "best of (clip 1 | clip 2) − fa − bp (test_error)"
    assert row["holds if above"] == 0
    assert re.match(r"[+-]\d", row["at best rates [95 %]"])


def test_an_arm_without_runs_is_named():
    with pytest.raises(ValueError, match="no arm 'dfa' to judge by: there are bp, fa"):
        one(more=["dfa"])
