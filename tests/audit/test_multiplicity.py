"""Holm's procedure against statsmodels, and what its levels promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from alignlab.audit.multiplicity import adjusted, holm, holm_levels, stepdown_levels

P_VALUES = st.lists(
    st.floats(0.0, 1.0) | st.sampled_from([0.01, 0.0125, 0.025, 0.05]), min_size=1, max_size=7
)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_holm_equals_statsmodels(k):
    p_values = np.round(np.random.default_rng(k).random(k) ** 3, 2)  # rounded: ties
    expected = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(holm(p_values), expected, rtol=1e-12)


@given(P_VALUES)
@settings(max_examples=200, deadline=None)
def test_a_p_value_is_below_its_level_iff_holm_rejects(p_values):
    levels = holm_levels(p_values, 0.05)
    by_adjusted = [p <= 0.05 * (1 + 1e-12) for p in holm(p_values)]
    assert [p <= level * (1 + 1e-12) for p, level in zip(p_values, levels, strict=True)] == by_adjusted


@given(P_VALUES)
@settings(max_examples=200, deadline=None)
def test_levels_lie_between_bonferroni_and_alpha_and_never_fall_as_p_rises(p_values):
    levels = holm_levels(p_values, 0.05)
    assert min(levels) == 0.05 / len(p_values)
    assert max(levels) <= 0.05
    ordered = [level for _, level in sorted(zip(p_values, levels, strict=True))]
    assert ordered == sorted(ordered)


@given(P_VALUES)
@settings(max_examples=100, deadline=None)
def test_a_p_adjusted_to_its_level_rejects_what_holm_rejects(p_values):
    levels = holm_levels(p_values, 0.05)
    found = [adjusted(p, level, 0.05) for p, level in zip(p_values, levels, strict=True)]
    assert [p <= 0.05 * (1 + 1e-12) for p in found] == [p <= 0.05 * (1 + 1e-12) for p in holm(p_values)]
    assert max(found) <= 1


def test_after_the_first_that_stands_no_level_rises():
    assert holm_levels([0.03, 0.04], 0.05) == (0.025, 0.025)  # 0.04 ≤ 0.05, yet Holm never gets there
    assert holm_levels([0.02, 0.04], 0.05) == (0.025, 0.05)


def test_no_hypothesis_needs_no_level():
    assert holm([]) == ()
    assert holm_levels([], 0.05) == ()


def test_stepdown_asks_each_test_at_the_number_still_standing():
    asked = []

    def test_of(name, threshold):
        def rejects(level):
            asked.append((name, level))
            return level >= threshold

        return rejects

    levels = stepdown_levels([test_of("a", 0.01), test_of("b", 0.04), test_of("c", 1.0)], 0.12)
    assert levels == pytest.approx((0.04, 0.04, 0.12))
    assert asked == [("a", 0.04), ("b", 0.04), ("c", 0.04), ("c", 0.12)]


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(bad):
    for function in (holm, holm_levels):
        with pytest.raises(ValueError, match="not a p-value"):
            function([0.5, bad])


def test_what_is_no_level_is_refused():
    with pytest.raises(ValueError, match="alpha"):
        holm_levels([0.5], 1.5)
