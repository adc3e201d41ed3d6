"""Shares of a total effect: only where it has any, each with the interval that its seeds give it."""

import numpy as np
import pytest

from alignlab.audit.controls.control import Contrast
from alignlab.audit.controls.exchange import effects
from alignlab.audit.decomposition import Part, fieller, parts_of, told
from alignlab.audit.statistics import paired

LABELS = ("direction", "size", "interaction")


def exchanged(n, total=1.0, spread=0.05):
    """Four outcomes a seed, of which the direction makes 30 % and the size 70 % of the total, and their decomposition."""
    rng = np.random.default_rng(n)
    tt, bb, tb, bt = (
        level * total + spread * rng.standard_normal(n) for level in (1.0, 0.0, 0.25, 0.65)
    )  # ½ (0.35 + 0.25), ½ (0.75 + 0.65)
    return effects(tt, bb, tb, bt, LABELS), tt - bb


@pytest.mark.parametrize("n", [4, 6, 19])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_ends_of_a_share_are_those_for_which_part_minus_share_of_total_is_just_no_effect(n, alpha):
    (direction, *_), total = exchanged(n)
    ends = fieller(direction.differences, total, alpha)
    assert ends[0] < np.mean(direction.differences) / total.mean() < ends[1]
    for end in ends:
        assert paired(direction.differences - end * total, alpha).p_value == pytest.approx(alpha)


def test_direction_and_size_add_up_to_the_whole_and_the_interaction_has_no_share():
    contrasts, total = exchanged(8)
    other = Contrast("placebo", "validity", tuple(total))
    direction, size, interaction = parts_of([*contrasts, other], total)
    assert direction.share + size.share == pytest.approx(1)
    assert direction.share == pytest.approx(0.3, abs=0.05)
    assert size.ends == pytest.approx((1 - direction.ends[1], 1 - direction.ends[0]))
    assert interaction.share is None
    assert str(interaction) == ""
    assert direction.effect == paired(contrasts[0].differences)
    assert told([direction, size, interaction], paired(total)).startswith("Shares are of the total effect")


@pytest.mark.parametrize(("share", "ends", "shown"), [
    (1.031, (1.0284, 1.0337), "103.10 % [102.84, 103.37]"),  # three digits: 103 [103, 103]
    (-0.0753, (-0.173, -0.0126), "-7.5 % [-17.3, -1.3]"),
    (1.242, (1.102, 1.482), "124 % [110, 148]"),
    (0.5, (0.5, 0.5), "50.0 % [50.0, 50.0]"),
])  # fmt: skip
def test_a_share_has_two_digits_of_its_intervals_half_width(share, ends, shown):
    assert str(Part("direction", paired([1.0, 2.0]), share, ends)) == shown


def test_a_total_within_four_standard_errors_of_zero_has_no_shares_and_it_is_said_why():
    contrasts, total = exchanged(8, total=0.05)
    whole = paired(total)
    assert 0 < abs(whole.estimate) < 4 * whole.se
    parts = parts_of(contrasts, total)
    assert [part.share for part in parts] == [None] * 3
    beyond = np.floor(100 * abs(whole.estimate) / whole.se) / 100
    assert f"No shares of the total effect as claimed, {whole:+.3g}: it is {beyond:g} of its stand" in told(
        parts, whole
    )
    assert "(told from 4 on)" in told(parts, whole)


def test_shares_of_few_seeds_need_a_total_that_is_further_from_zero_than_four_standard_errors():
    """Of three seeds Fieller's interval has ends beyond 4.3 of them: t of two degrees of freedom."""
    contrasts, _ = exchanged(3)
    total = 1.0 + np.array([-1.0, 0.0, 1.0]) * np.sqrt(3) / 4.2
    whole = paired(total)
    assert abs(whole.estimate) / whole.se == pytest.approx(4.2)
    parts = parts_of(contrasts, total)
    assert [part.share for part in parts] == [None] * 3
    assert "(told from 4.3 on)" in told(parts, whole)


def test_a_total_that_is_the_same_on_few_seeds_has_no_shares():
    contrasts = [Contrast("direction", "decomposition", (0.5, 0.5, 0.5))]
    parts = parts_of(contrasts, [1.0, 1.0, 1.0])
    assert parts[0].share is None
    assert "equal on all seeds" in told(parts, paired([1.0, 1.0, 1.0]))


def test_the_share_of_one_part_is_known_no_better_than_what_is_left_for_the_other():
    """Five grafted runs that classify as the baseline does: the direction may have an effect on other seeds, [-inf, inf]."""
    tt, bb = np.array([0.81, 0.79, 0.84, 0.8, 0.83]), np.array([0.6, 0.63, 0.58, 0.61, 0.6])
    contrasts = effects(tt, bb, tb=bb, bt=tt, labels=LABELS)
    direction, size, _ = parts_of(contrasts, tt - bb)
    assert direction.effect.unbounded
    assert (direction.share, size.share) == (None, None)
    assert "equal on all seeds" in told([direction, size], paired(tt - bb))
    assert [part.share for part in parts_of(contrasts, tt - bb, continuous=True)[:2]] == [0, pytest.approx(1)]


def test_a_total_of_nothing_has_no_shares_for_being_nothing():
    assert "it is 0 of its standard errors from 0" in told([], paired([0.0] * 5, continuous=True))
