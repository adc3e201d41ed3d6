"""Intervals, p-values, equivalence and power: against scipy and statsmodels, and by what they promise in simulation."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from alignlab.audit.improvement import probability_of_improvement
from alignlab.audit.resampling import bootstrap_pivots, pivot_interval, pivot_p, sign_flip_p
from alignlab.audit.statistics import (
    Interval,
    paired,
    seeds_needed,
    share,
    tost,
)

SAMPLES = [np.random.default_rng(n).normal(0.4, 1.0, n) for n in (2, 3, 5, 8, 13, 19)]


def interval(estimate, low, high, se=1.0, **changes):
    fields = dict(n=10, p_value=0.5, method="t", alpha=0.05) | changes
    return Interval(estimate, low, high, se, **fields)


def test_an_interval_is_written_in_the_format_of_its_numbers():
    assert f"{interval(0.25, -0.1, 0.6):+.2f}" == "+0.25 [-0.10, +0.60]"
    assert f"{interval(1234.5, 1000, 2000):.3g}" == "1.23e+03 [1e+03, 2e+03]"
    assert f"{interval(1, 0, 2)}" == str(interval(1, 0, 2))


def test_an_end_that_is_not_zero_is_not_written_as_zero():
    """A study's table had [+0.00, +0.05] for an interval that excludes 0."""
    assert f"{interval(0.02, 0.003, 0.05):+.2f}" == "+0.02 [+0.003, +0.05]"
    assert f"{interval(-0.2, -0.5, -0.0004):.1f}" == "-0.2 [-0.5, -0.0004]"
    assert f"{interval(0.0, 0.0, 0.0):+.2f}" == "+0.00 [+0.00, +0.00]"
    assert f"{interval(0.3, -np.inf, np.inf):+.1f}" == "+0.3 [-inf, +inf]"


# --- the paired interval ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", SAMPLES, ids=len)
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_below_twenty_seeds_the_interval_is_students(d, alpha):
    result, reference = paired(d, alpha), scipy.stats.ttest_1samp(d, 0.0)
    expected = reference.confidence_interval(1 - alpha)
    assert result.method == "t"
    assert (result.n, result.alpha) == (len(d), alpha)
    np.testing.assert_allclose([result.low, result.high], [expected.low, expected.high], rtol=1e-10)
    np.testing.assert_allclose(
        [result.estimate, result.se, result.p_value], [d.mean(), scipy.stats.sem(d), reference.pvalue]
    )


SKEWED = [np.random.default_rng(n).gamma(1.0, size=n) - 0.6 for n in (20, 25, 30)]


@pytest.mark.parametrize("d", [*SAMPLES, *SKEWED, np.ones(4)], ids=len)
def test_the_p_value_and_the_interval_agree_on_zero_at_every_level(d):
    p = paired(d).p_value
    for alpha in (p * 0.999, min(p * 1.001, 0.999)):
        result = paired(d, alpha)
        assert (p <= alpha) == (result.low > 0 or result.high < 0)


def test_a_level_beyond_what_resamples_can_show_leaves_the_interval_open():
    d = np.random.default_rng(0).normal(5.0, 1.0, 30)
    assert paired(d, 1e-3).low > 0
    assert paired(d, 1e-5).unbounded


def test_from_twenty_seeds_on_whole_runs_are_bootstrapped():
    d = np.random.default_rng(0).normal(0.4, 1.0, 20)
    assert paired(d[:19]).method == "t"
    result = paired(d)
    assert result.method == "bootstrap-t"
    assert result.p_value != result.p_sign_flip
    t = scipy.stats.ttest_1samp(d, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose([result.low, result.high], [t.low, t.high], atol=0.25 * (t.high - t.low))


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("mirrored", [1, -1])
def test_from_twenty_seeds_on_an_interval_reaches_as_far_as_students_and_the_bootstraps(mirrored, alpha):
    rng = np.random.default_rng(3)
    for draw in (rng.normal, rng.exponential, rng.standard_t):
        d = mirrored * (0.3 + draw(*([2] if draw == rng.standard_t else []), size=25))
        t, (low, high) = scipy.stats.ttest_1samp(d, 0.0), bootstrap_interval(d, alpha)
        ends, result = t.confidence_interval(1 - alpha), paired(d, alpha)
        assert result.low == pytest.approx(min(low, ends.low))
        assert result.high == pytest.approx(max(high, ends.high))
        assert result.p_value == pytest.approx(max(t.pvalue, pivot_p(bootstrap_pivots(d))))


def test_long_tails_on_both_sides_do_not_take_from_the_coverage_of_twenty_seeds():
    def lognormals(rng, n):
        return rng.lognormal(size=n) - rng.lognormal(size=n)

    def make(d):
        return paired(d).low, paired(d).high

    assert coverage(20, lognormals, 0.0, 200, make) > 0.93
    assert coverage(20, lognormals, 0.0, 200, lambda d: bootstrap_interval(d, 0.05)) < 0.92


def bootstrap_interval(d, alpha):
    return pivot_interval(bootstrap_pivots(np.asarray(d)), alpha)


def test_bootstrap_equals_its_naive_twin():
    d = np.random.default_rng(1).gamma(1.0, size=30)
    low, high = bootstrap_interval(d, 0.1)
    rng, mean, t_star = np.random.default_rng(99), d.mean(), []
    for _ in range(5_000):
        resample = rng.choice(d, len(d))
        t_star.append((resample.mean() - mean) / (resample.std(ddof=1) / math.sqrt(len(d))))
    twin = mean - np.quantile(t_star, [0.95, 0.05]) * scipy.stats.sem(d)
    np.testing.assert_allclose([low, high], twin, atol=0.05 * (high - low))
    assert high - mean > 1.3 * (mean - low)  # it sees the skew that Student's interval cannot


def test_bootstrap_repeats_and_leaves_numpys_random_state_alone():
    d = np.random.default_rng(2).normal(size=25)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert paired(d) == paired(d)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("tied", [0.0, 0.1])  # 0.1: rounding gives thirty equal numbers a spread
def test_too_many_ties_for_a_bootstrap_give_the_t_interval(tied):
    d = np.full(30, tied)
    d[0] = 1.0
    result, expected = paired(d), scipy.stats.ttest_1samp(d, 0.0)
    assert bootstrap_pivots(d) is None
    assert result.method == "t"
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.low == pytest.approx(expected.confidence_interval(0.95).low)


@pytest.mark.parametrize("odd", [1, 3])
def test_an_interval_of_seeds_that_nearly_tie_does_not_reach_beyond_all_that_was_seen(odd):
    """Grafted runs that compute one thing end 1e-8 apart, but for the seeds in which rounding has grown."""
    d = 1e-8 * np.random.default_rng(0).standard_normal(22)
    d[:odd] = 8.8e-4
    result, t = paired(d, 0.025), scipy.stats.ttest_1samp(d, 0.0).confidence_interval(0.975)
    assert result.method == "bootstrap-t"
    assert result.high == pytest.approx(max(d.max(), t.high))
    assert result.low == pytest.approx(min(d.min(), t.low))
    assert paired(-d, 0.025).low == pytest.approx(-result.high)


@pytest.mark.parametrize("n", [2, 6, 19, 20, 47])
def test_swapping_the_arms_mirrors_the_interval_and_order_does_not_matter(n):
    d = np.random.default_rng(n).gamma(2.0, size=n) - 1.5
    straight, mirrored = paired(d), paired(-d[::-1])
    np.testing.assert_allclose([mirrored.low, mirrored.high], [-straight.high, -straight.low], rtol=1e-9)
    assert mirrored.p_sign_flip == straight.p_sign_flip
    assert mirrored.p_value == pytest.approx(straight.p_value, rel=1e-9)


@pytest.mark.parametrize("n", [5, 30])
def test_a_stricter_level_gives_an_interval_that_contains_the_laxer_one(n):
    d = np.random.default_rng(n).normal(size=n)
    nested = [paired(d, alpha) for alpha in (0.2, 0.05, 0.01)]
    assert all(a.low > b.low and a.high < b.high for a, b in itertools.pairwise(nested))


@pytest.mark.parametrize("value", [0.25, -1.0, 0.0])
@pytest.mark.parametrize("n", [2, 5, 6, 30])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_equal_differences_tell_what_sign_flips_tell_and_few_of_them_nothing(value, n, alpha):
    result, least = paired([value] * n, alpha), 2.0 ** (1 - n)
    assert (result.estimate, result.method) == (value, "degenerate")
    assert result.p_value == result.p_sign_flip == (least if value else 1.0)
    assert result.unbounded == (least > alpha)
    if not result.unbounded:
        assert (result.low, result.high) == (value, value)


@pytest.mark.parametrize("n", [2, 4, 30])
def test_losses_that_are_alike_on_every_seed_differ_by_nothing_however_few(n):
    alike = paired([0.0] * n, 0.01, continuous=True)
    assert (alike.low, alike.high, alike.p_value) == (0.0, 0.0, 1.0)
    for other in ([0.25] * n, [0.0] * (n - 1) + [0.1]):  # equal otherwise, or not all
        assert paired(other, continuous=True) == paired(other)


def test_differences_that_rounding_alone_sets_apart_are_equal():
    d = np.array([0.9, 0.8, 0.7, 0.6]) - np.array([0.65, 0.55, 0.45, 0.35])
    assert np.ptp(d) > 0
    assert paired(d).unbounded
    assert paired(d + 1e-9 * np.arange(4)).method == "t"


def test_accuracies_that_differ_by_one_of_ten_thousand_samples_in_every_seed_are_equal_differences():
    right = np.arange(5000, 9999)
    steps = (right + 1) / 10_000 - right / 10_000
    most, least = steps.max(), steps.min()
    assert most > least
    assert paired([most, least]).unbounded


@pytest.mark.parametrize("seeds", [0, 1])
def test_fewer_than_two_seeds_are_an_error_that_says_how_many(seeds):
    with pytest.raises(ValueError, match=rf"{seeds} paired seed.*at least 2"):
        paired([0.1] * seeds)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", [paired, lambda d: tost(d, 1.0)])
def test_a_difference_that_is_not_finite_is_named(bad, function):
    with pytest.raises(ValueError, match=rf"pair 2 .* is {bad}"):
        function([0.1, 0.2, bad, 0.3])


def test_wrong_shapes_and_levels_are_errors():
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        paired(np.ones((2, 2)))
    for alpha in (0.0, 1.0, -0.1):
        for d in ([0.1, 0.2], [0.1, 0.1], np.arange(25.0)):
            with pytest.raises(ValueError, match="alpha"):
                paired(d, alpha)


def coverage(n, draw, truth, repeats, make):
    rng = np.random.default_rng(2024)
    bounds = [make(draw(rng, n)) for _ in range(repeats)]
    return float(np.mean([low <= truth <= high for low, high in bounds]))


def test_t_interval_of_five_normal_seeds_covers_what_it_promises():
    def make(d):
        return paired(d).low, paired(d).high

    assert coverage(5, lambda rng, n: rng.normal(0.3, 2.0, n), 0.3, 2000, make) == pytest.approx(
        0.95, abs=0.015
    )


def test_percentile_bootstrap_of_five_seeds_does_not_which_is_why_it_is_not_used():
    def make(d):
        means = np.random.default_rng(0).choice(d, (1000, len(d))).mean(axis=1)
        return np.quantile(means, [0.025, 0.975])

    assert coverage(5, lambda rng, n: rng.normal(size=n), 0.0, 2000, make) == pytest.approx(0.835, abs=0.02)


def test_bootstrap_of_twenty_seeds_covers_better_than_the_percentile_one_where_runs_are_skewed():
    def percentile(d):
        means = np.random.default_rng(0).choice(d, (1000, len(d))).mean(axis=1)
        return np.quantile(means, [0.025, 0.975])

    def lognormal(rng, n):
        return rng.lognormal(size=n)

    truth = math.exp(0.5)
    ours = coverage(20, lognormal, truth, 400, lambda d: bootstrap_interval(d, 0.05))
    assert ours > 0.89
    assert ours > coverage(20, lognormal, truth, 400, percentile) + 0.03


# --- sign flips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12])
def test_sign_flip_p_counts_every_pattern(n):
    d = np.round(np.random.default_rng(n).normal(0.5, 1.0, n), 1)  # rounded, so that sums tie
    sums = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True)))
        for signs in itertools.product((1, -1), repeat=n)
    ]
    assert sign_flip_p(d) == pytest.approx(np.mean(np.array(sums) >= abs(d.sum()) - 1e-9), abs=1e-15)


@pytest.mark.parametrize("n", [8, 25])
def test_sign_flip_p_is_that_of_other_units(n):
    d = np.round(np.random.default_rng(n).normal(0.3, 1.0, n), 1)
    assert sign_flip_p(d) == sign_flip_p(2.0**-60 * d) == sign_flip_p(2.0**60 * d) < 1


def test_sign_flip_p_equals_scipys_permutation_test():
    d = SAMPLES[3]
    reference = scipy.stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_p(d) == pytest.approx(reference.pvalue)


def test_sign_flips_of_signed_ranks_are_wilcoxons_test():
    d = SAMPLES[4]
    signed_ranks = np.sign(d) * scipy.stats.rankdata(np.abs(d))
    assert sign_flip_p(signed_ranks) == pytest.approx(scipy.stats.wilcoxon(d, method="exact").pvalue)


@pytest.mark.parametrize("n", [2, 5, 10, 19])
def test_sign_flip_p_of_unanimous_seeds_is_the_smallest_there_is(n):
    assert sign_flip_p(np.arange(1.0, n + 1)) == 2.0 ** (1 - n)


def test_counted_and_drawn_sign_flips_agree(monkeypatch):
    d = np.random.default_rng(5).normal(0.4, 1.0, 19)
    exact = sign_flip_p(d)
    monkeypatch.setattr("alignlab.audit.resampling.EXACT_FLIPS", 10)
    drawn = sign_flip_p(d)
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 10_000))


def test_drawn_sign_flips_never_claim_p_zero():
    assert sign_flip_p(np.full(40, 1.0)) == pytest.approx(1 / 10_001)


# --- the interval as a value --------------------------------------------------------------------------------------


def test_an_interval_survives_json():
    for result in (
        paired([0.1, 0.3, 0.2]),
        paired([0.1, 0.1]),
        paired(np.arange(25.0)),
        probability_of_improvement([1.0], [2.0]),
    ):
        assert Interval.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result


@pytest.mark.parametrize("bounds", [(math.nan, 0.0, 1.0), (0.5, -math.inf, 1.0), (0.5, 1.0, 0.0)])
def test_an_interval_that_no_rule_could_read_is_refused(bounds):
    with pytest.raises(ValueError, match=r"finite|upside down"):
        interval(*bounds)
    with pytest.raises(ValueError, match="alpha is 5"):
        replace(interval(0.5, 0.0, 1.0), alpha=5)  # percent


# --- equivalence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", SAMPLES, ids=len)
@pytest.mark.parametrize("margin", [0.1, 0.5, 2.0])
def test_tost_equals_statsmodels(d, margin):
    result = tost(d, margin)
    assert result.p_value == pytest.approx(ttost_paired(d, np.zeros_like(d), -margin, margin)[0], rel=1e-8)
    assert result.equivalent == (result.p_value <= 0.05)
    assert result.margin == margin


@pytest.mark.parametrize("shift", [-0.3, 0.3, 0.0, 0.2])
def test_equivalent_means_the_ninety_percent_interval_lies_within_the_margin(shift):
    d = np.random.default_rng(3).normal(0.0, 0.2, 12) + shift
    ninety = paired(d, 0.1)
    edge = max(abs(ninety.low), abs(ninety.high))
    assert tost(d, edge * 1.0001).equivalent
    assert not tost(d, edge * 0.9999).equivalent


def test_equal_differences_are_equivalent_iff_inside_the_margin_and_enough():
    assert tost([0.1] * 5, 0.2).equivalent
    assert not tost([0.1] * 5, 0.05).equivalent
    assert not tost([-0.3] * 5, 0.2).equivalent
    assert [tost([0.0] * n, 0.2).equivalent for n in (2, 4, 5)] == [False, False, True]
    assert tost([0.0] * 4, 0.2).p_value == 2.0**-4


@given(st.integers(2, 30), st.floats(0.01, 2.0), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_equivalence_its_p_and_its_interval_agree(n, margin, seed):
    result = tost(np.random.default_rng(seed).normal(0, 0.8, n), margin)
    assert result.equivalent == (result.p_value <= 0.05)
    assert result.equivalent == (-margin <= result.interval.low and result.interval.high <= margin)
    assert result.interval.alpha == 0.1


@pytest.mark.parametrize("alpha", [0.5, 0.7])
def test_equivalence_at_a_level_that_leaves_no_interval_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        tost([0.1, 0.2, 0.3], 1.0, alpha)


def test_a_margin_must_be_positive():
    for margin in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="margin"):
            tost([0.1, 0.2], margin)


# --- probability of improvement -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_probability_of_improvement_counts_ties_half(pairs):
    treatment, baseline = zip(*pairs, strict=True)
    result = probability_of_improvement(treatment, baseline)
    wins = sum(1.0 if t < b else 0.5 if t == b else 0.0 for t, b in pairs)
    assert result.estimate == pytest.approx(wins / len(pairs))
    expected = proportion_confint(wins, len(pairs), 0.05, method="wilson")
    np.testing.assert_allclose([result.low, result.high], expected, atol=1e-12)
    share = result.estimate
    assert result.se == pytest.approx(math.sqrt(share * (1 - share) / len(pairs)))
    flipped = probability_of_improvement(treatment, baseline, maximize=True)
    assert flipped.estimate == pytest.approx(1 - result.estimate)
    assert flipped.p_value == pytest.approx(result.p_value)


def test_probability_of_improvement_has_the_sign_tests_p():
    treatment, baseline = np.zeros(9), np.array([1, 1, 1, 1, 1, 1, 1, -1, 0])
    expected = scipy.stats.binomtest(7, 8).pvalue
    assert probability_of_improvement(treatment, baseline).p_value == pytest.approx(expected)
    assert probability_of_improvement([1.0, 1.0], [1.0, 1.0]).p_value == 1.0


def test_a_diverged_run_loses_and_two_tie():
    inf = math.inf
    assert probability_of_improvement([1.0, inf, inf], [inf, 1.0, inf]).estimate == 0.5
    assert probability_of_improvement([1.0], [inf]).estimate == 1.0


def test_the_interval_of_a_probability_of_improvement_stands_at_its_level():
    result = probability_of_improvement([1.0, 2.0, 3.0], [2.0, 3.0, 1.0], 0.01)
    expected = proportion_confint(2, 3, 0.01, method="wilson")
    np.testing.assert_allclose([result.low, result.high], expected, atol=1e-12)
    assert result.alpha == 0.01


def test_probability_of_improvement_names_what_is_wrong():
    with pytest.raises(ValueError, match="pair 1 holds a NaN"):
        probability_of_improvement([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="pair 0 holds a NaN"):
        probability_of_improvement([1.0, 2.0], [math.nan, 2.0])
    with pytest.raises(ValueError, match=r"\(2,\) and baseline \(3,\)"):
        probability_of_improvement([1.0, 2.0], [1.0, 2.0, 3.0])


# --- shares and seeds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "expected"), [(4.01, 2 / 4.01), (4.0, None), (-4.01, -2 / 4.01), (0.0, None)]
)
def test_a_share_needs_a_total_beyond_four_standard_errors(total, expected):
    part = interval(2.0, 1.0, 3.0)
    assert share(part, interval(total, total - 2, total + 2)) == (expected and pytest.approx(expected))


def test_a_share_of_nothing_is_none_even_without_spread():
    assert share(interval(1.0, 0.0, 2.0), interval(0.0, 0.0, 0.0, se=0.0)) is None
    assert share(interval(1.0, 0.0, 2.0), interval(2.0, 2.0, 2.0, se=0.0)) == 0.5


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("target", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_seeds_needed_agrees_with_the_noncentral_t(n, target, alpha):
    d = np.random.default_rng(n).normal(5.0, 1.0, n)
    expected = TTestPower().solve_power(target / d.std(ddof=1), alpha=alpha, power=0.8)
    assert seeds_needed(d, target, alpha) == pytest.approx(expected, rel=0.03, abs=2.0)


@pytest.mark.parametrize(("target", "n"), [(1.2, 8), (1.6, 6), (1.8, 5), (2.5, 4), (4.0, 3)])
def test_few_seeds_needed_are_those_of_the_noncentral_t_to_the_seed(target, n):
    assert TTestPower().power(target, n, 0.05) > 0.8 > TTestPower().power(target, n - 1, 0.05)
    assert seeds_needed([-math.sqrt(0.5), math.sqrt(0.5)], target) == n  # a spread of 1


def test_seeds_needed_depends_on_the_spread_and_not_on_the_observed_effect():
    d = np.random.default_rng(4).normal(size=6)
    assert seeds_needed(d, 0.5) == seeds_needed(d + 100, 0.5)
    assert seeds_needed(2 * d, 0.5) > 2 * seeds_needed(d, 0.5)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seeds_needed_suffice_in_both_directions_where_differences_are_skewed(seed):
    """Exponential differences: telling 0 from m takes more seeds than telling m from 0, or the reverse if mirrored."""
    d = np.random.default_rng(seed).exponential(size=25)
    needed = seeds_needed(d, 0.5)
    assert seeds_needed(-d, 0.5) == pytest.approx(needed, rel=0.05)
    residuals = math.sqrt(25 / 24) * np.random.default_rng(9).choice(d - d.mean(), (2000, needed))
    half = scipy.stats.t.ppf(0.975, needed - 1) * scipy.stats.sem(residuals, axis=1)
    assert np.mean(residuals.mean(axis=1) - half > -0.5) > 0.77
    assert np.mean(residuals.mean(axis=1) + half < 0.5) > 0.77


def test_seeds_needed_gives_up_beyond_its_limit_and_not_before():
    d = np.random.default_rng(4).normal(size=6)
    needed = seeds_needed(d, 0.5)
    assert seeds_needed(d, 0.5, max_n=needed) == needed
    assert seeds_needed(d, 0.5, max_n=needed - 1) is None


@pytest.mark.parametrize("alpha", [0.05, 0.025, 0.25])
def test_no_spread_needs_the_seeds_at_which_equal_differences_tell_anything(alpha):
    needed = seeds_needed([0.1, 0.1], 0.01, alpha)
    assert paired([0.1] * (needed - 1), alpha).unbounded
    assert not paired([0.1] * needed, alpha).unbounded
    assert seeds_needed([0.1, 0.1], 0.01, alpha, max_n=needed - 1) is None


@pytest.mark.parametrize("changes", [{"target": 0.0}, {"power": 1.0}, {"alpha": 0.0}, {"max_n": 1}])
def test_seeds_needed_refuses_senseless_questions(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        seeds_needed([0.1, 0.2], **({"target": 0.1} | changes))
    with pytest.raises(ValueError, match="nan"):
        seeds_needed([0.1, math.nan], 0.1)
