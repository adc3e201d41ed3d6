"""The expected best of a budget, against enumeration of all subsets and exact binomials."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from alignlab.audit.budget import budget_curve, expected_best

TRIALS = [np.round(np.random.default_rng(n).normal(size=n), 1) for n in (1, 2, 5, 9)]  # rounded: ties


@pytest.mark.parametrize("values", TRIALS, ids=len)
@pytest.mark.parametrize(("maximize", "best"), [(False, min), (True, max)])
def test_expected_best_is_the_mean_over_all_subsets(values, maximize, best):
    for k in range(1, len(values) + 1):
        naive = np.mean([best(subset) for subset in itertools.combinations(values, k)])
        assert expected_best(values, k, maximize) == pytest.approx(naive, abs=1e-12)
        assert budget_curve(values, maximize)[k - 1] == expected_best(values, k, maximize)


def test_thousands_of_trials_neither_overflow_nor_cancel():
    n, k = 3000, 700
    exact = sum(Fraction(i * math.comb(n - i, k - 1), math.comb(n, k)) for i in range(1, n - k + 2))
    assert expected_best(np.arange(1.0, n + 1), k) == pytest.approx(float(exact), rel=1e-12)
    assert float(exact) == pytest.approx((n + 1) / (k + 1))  # the known mean of the smallest of k out of 1…n


def test_the_curve_runs_from_the_mean_to_the_best_and_never_gets_worse():
    values = np.random.default_rng(0).lognormal(size=50)
    curve = budget_curve(values)
    assert curve[0] == pytest.approx(values.mean())
    assert curve[-1] == values.min()
    assert (np.diff(curve) < 0).all()
    assert (np.diff(budget_curve(values, maximize=True)) > 0).all()


def test_it_is_unbiased():
    rng = np.random.default_rng(1)
    estimates = [expected_best(rng.random(8), 3) for _ in range(4000)]
    assert np.mean(estimates) == pytest.approx(1 / 4, abs=4 * np.std(estimates) / math.sqrt(4000))


def test_diverged_trials_count_as_the_worst():
    assert expected_best([1.0, math.inf, 2.0, math.inf], 2) == math.inf
    assert expected_best([1.0, math.inf, 2.0, math.inf], 3) == (1.0 + 1.0 + 1.0 + 2.0) / 4
    assert (
        expected_best([1.0] * 1000 + [math.inf] * 1000, 1000) == math.inf
    )  # of odds below the smallest float
    assert expected_best([1.0, -math.inf], 1, maximize=True) == -math.inf
    assert expected_best(np.r_[np.arange(2000.0), math.inf], 1500) == pytest.approx(
        sum(i * math.comb(2000 - i, 1499) / math.comb(2001, 1500) for i in range(502))
    )


@pytest.mark.parametrize(
    ("values", "k", "message"),
    [
        ([1.0, 2.0], 0, "k=0"),
        ([1.0, 2.0], 3, "k=3 cannot be drawn from 2"),
        ([], 1, "shape"),
        ([[1.0, 2.0]], 1, "shape"),
        ([1.0, math.nan], 1, "trial 1 has the value nan"),
        ([-math.inf, 1.0], 1, "trial 0 has the value -inf"),
    ],
)
def test_bad_budgets_and_trials_are_named(values, k, message):
    with pytest.raises(ValueError, match=message):
        expected_best(values, k)
