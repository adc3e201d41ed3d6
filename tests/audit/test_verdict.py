"""Every verdict there is, from synthetic evidence: each rule, both sides of each inequality, and their order."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.audit.controls import Magnitude, Tuning
from alignlab.audit.gathering import ControlSamples, gather
from alignlab.audit.statistics import Interval
from alignlab.audit.verdict import Check, ControlEvidence, Evidence, Verdict, decide

M = 0.1
ABOVE, BELOW = math.nextafter(M, 1), math.nextafter(M, 0)


def interval(low, high, n=5):
    return Interval((low + high) / 2, low, high, (high - low) / 4, n, 0.5, "t", 0.05)


def control(name="magnitude", without=(-0.05, 0.05), given=(-0.05, 0.05), removed=(0.5, 1.5)):
    sufficiency = None if given is None else interval(*given)
    words = {"magnitude": Magnitude, "tuning": Tuning}.get(name)
    said = (words.without, words.given) if words else ()
    return ControlEvidence(name, interval(*without), sufficiency, interval(*removed), *said)


OPEN = dict(without=(-0.5, 1.5), given=(-0.5, 1.5), removed=(-0.5, 1.5))
EXPLAINS = dict(without=(-0.05, 0.05), given=(-0.05, 0.05))
REVERSES = dict(without=(-0.9, -0.5), given=(0.5, 0.9))
PARTLY = dict(without=(0.4, 0.6), given=(0.4, 0.6), removed=(0.4, 0.6))
SURVIVES = dict(without=(0.9, 1.1), given=(0.9, 1.1), removed=(-0.05, 0.05))
PASSED = (Check("placebo", True), Check("spike_in", True))
FAILED = Check("placebo", False, "baseline against itself differs by 0.3")


def evidence(*controls, total=(0.9, 1.1), **changes):
    fields = dict(equivalent=False, smallest_effect=M, checks=PASSED) | changes
    return Evidence(interval(*total), controls=controls, **fields)


# --- each rule ----------------------------------------------------------------------------------------------------

EVERY_VERDICT = [
    (1, "invalid:placebo", evidence(control(), checks=(*PASSED, FAILED))),
    (2, "not_reproduced", evidence(control(), total=(-0.1, 0.5))),
    (3, "explained_by:magnitude", evidence(control(**EXPLAINS))),
    (4, "reversed_under:magnitude", evidence(control(**REVERSES))),
    (5, "partly_explained:magnitude", evidence(control(**PARTLY))),
    (6, "supported", evidence(control(**SURVIVES))),
    (7, "inconclusive", evidence(control(**OPEN))),
    (7, "inconclusive (+12 seeds)", evidence(control(**OPEN), seeds_needed=17)),
]


@pytest.mark.parametrize(
    ("rule", "short", "table"), EVERY_VERDICT, ids=[short for _, short, _ in EVERY_VERDICT]
)
def test_every_verdict_is_reached_by_its_rule(rule, short, table):
    verdict = decide(table)
    assert (verdict.rule, str(verdict)) == (rule, short)
    assert verdict.kind == short.split(":")[0].split(" ")[0]


@pytest.mark.parametrize("table", [table for *_, table in EVERY_VERDICT])
def test_every_verdict_says_why_in_one_or_two_sentences_with_its_numbers(table):
    text = decide(table).text
    assert text[0].isupper()
    assert text.endswith(".")
    assert text.count(". ") <= 1
    assert "placebo" in text or f"T = {table.total.estimate:+.3g} [{table.total.low:+.3g}, " in text


# --- both sides of each inequality --------------------------------------------------------------------------------


def rule_of(*controls, **changes):
    return decide(evidence(*controls, **changes)).rule


@pytest.mark.parametrize(
    ("low", "equivalent", "reproduced"),
    [
        (0.0, False, False),
        (1e-300, False, True),
        (-1e-300, False, False),
        (0.5, True, False),
        (-0.5, True, False),
    ],
)
def test_reproduced_means_above_zero_and_not_equivalent(low, equivalent, reproduced):
    assert (rule_of(control(), total=(low, 1.0), equivalent=equivalent) != 2) == reproduced


@pytest.mark.parametrize(
    ("without", "given", "rule"),
    [
        (M, M, 3),
        (ABOVE, M, 7),
        (M, ABOVE, 7),
        (-M, M, 3),
        (-ABOVE, M, 3),
        (-ABOVE, ABOVE, 4),
        (-M, ABOVE, 7),
        (-BELOW, ABOVE, 7),
    ],
)
def test_explained_and_reversed_hang_on_upper_bounds(without, given, rule):
    assert rule_of(control(without=(-2.0, without), given=(-2.0, given), removed=(0.0, 3.0))) == rule


@pytest.mark.parametrize(("removed", "without", "rule"), [(ABOVE, ABOVE, 5), (M, ABOVE, 7), (ABOVE, M, 5)])
def test_partly_explained_needs_more_than_m_removed_whatever_is_left(removed, without, rule):
    assert rule_of(control(without=(-1.0, without), given=(0.0, 1.0), removed=(removed, 2.0))) == rule


@pytest.mark.parametrize(("low", "rule"), [(1e-300, 6), (0.0, 7), (-1e-300, 7)])
def test_supported_needs_every_lower_bound_above_zero(low, rule):
    last = control("last", without=(low, 1.0), given=None, removed=(0.0, 1.0))
    assert rule_of(control(**SURVIVES), last) == rule
    assert rule_of(control(name="first", **SURVIVES), dataclasses.replace(last, name="last")) == rule


def test_without_a_sufficiency_arm_nothing_is_explained():
    assert rule_of(control(without=(-0.05, 0.05), given=None, removed=(0.0, 1.0))) == 7
    assert rule_of(control(without=(-0.05, 0.05), given=None)) == 5
    verdict = decide(evidence(control(without=(-0.9, -0.5), given=None)))
    assert str(verdict) == "reversed_under:magnitude"
    assert "was not measured" in verdict.text
    assert rule_of(control(without=(0.4, 0.6), given=None, removed=(0.4, 0.6))) == 5
    assert rule_of(control(without=(0.9, 1.1), given=None, removed=(-0.1, 0.1))) == 6


def test_without_any_control_nothing_is_supported():
    verdict = decide(evidence(seeds_needed=50))
    assert str(verdict) == "inconclusive"
    assert "no intervention questioned it" in verdict.text
    assert decide(evidence(checks=PASSED)).text == verdict.text  # a placebo is no intervention


# --- order --------------------------------------------------------------------------------------------------------


def test_the_first_rule_that_holds_answers():
    kinds = [EXPLAINS, REVERSES, PARTLY, SURVIVES, OPEN]
    for first, rule in zip(range(len(kinds)), (3, 4, 5, 7), strict=False):
        controls = [control(str(k), **kinds[k]) for k in range(first, len(kinds))]
        verdict = decide(evidence(*controls))
        assert verdict.rule == rule
        assert verdict.by == ((str(first),) if rule < 7 else ())
        assert rule_of(*controls, total=(-1.0, 1.0)) == 2
        assert rule_of(*controls, total=(-1.0, 1.0), checks=(FAILED,)) == 1


def test_invalid_names_every_failed_check():
    verdict = decide(evidence(control(), checks=(FAILED, Check("runs", True), Check("grid_edge", False))))
    assert str(verdict) == "invalid:placebo,grid_edge"
    assert "placebo (baseline against itself differs by 0.3) and grid_edge" in verdict.text
    assert "runs" not in verdict.text


def test_all_controls_that_explain_are_named_with_the_primary_one_first():
    names = ("tuning", "magnitude", "zeal")
    table = evidence(*[control(name, **EXPLAINS) for name in names], control("other", **SURVIVES))
    assert str(decide(table)) == "explained_by:tuning,magnitude,zeal"
    assert all(name in decide(table).text for name in names)


# --- what the texts say -------------------------------------------------------------------------------------------


def test_explained_by_says_where_the_treatment_is_worse():
    lost = control("magnitude", without=(-0.9, -0.5), given=(-0.3, -0.2))
    text = decide(evidence(lost, control("tuning", **EXPLAINS))).text
    assert "explained by magnitude and tuning" in text
    assert "without its magnitudes it is N = -0.7 [-0.9, -0.5]" in text
    assert "against a baseline given its magnitudes S = -0.25 [-0.3, -0.2]" in text
    assert "tuned against tuned it is N = +0 [-0.05, +0.05]" in text
    assert "no upper bound exceeds m = 0.1." in text
    assert text.endswith("Without its magnitudes the treatment is worse than the baseline.")
    edge = control("magnitude", without=(-0.9, -M), given=(-0.3, -0.2))
    assert "worse" not in decide(evidence(edge)).text


def test_an_effect_of_nothing_on_every_seed_is_neither_better_nor_worse():
    text = decide(gather([0.0] * 6, [], M)).text
    assert text.startswith("Not reproduced: T = +0 [+0, +0], and treatment and baseline are equivalent")


def test_an_interval_without_ends_is_shown_as_it_is_where_differences_are_not_equal():
    wide = control("noise", **OPEN)
    wide = dataclasses.replace(
        wide, necessity=dataclasses.replace(wide.necessity, low=-math.inf, high=math.inf)
    )
    assert "without noise N = +0.5 [-inf, +inf]" in decide(evidence(wide)).text


def test_equal_differences_that_can_tell_are_shown_with_their_interval():
    text = decide(gather([0.25] * 6, [ControlSamples("noise", [0.25] * 6, [0.25] * 6)], M)).text
    assert "T = +0.25 [+0.25, +0.25]" in text
    assert "cannot tell" not in text


@pytest.mark.parametrize(
    ("total", "equivalent", "says"),
    [
        ((-0.5, -0.3), False, "does worse"),
        ((0.01, 0.05), True, "does better, T = +0.03 [+0.01, +0.05], but by less than the m = 0.1"),
        ((-0.05, -0.01), True, "does worse than the baseline, T = -0.03 [-0.05, -0.01], but by less than"),
        ((-0.05, 0.05), True, "equivalent within m = 0.1"),
        ((-0.05, 0.5), False, "Nor is one above m = 0.1 excluded: 5 seeds leave it open"),
        ((-0.5, 0.1), False, "One above m = 0.1 is excluded"),
    ],
)
def test_not_reproduced_says_how(total, equivalent, says):
    assert says in decide(evidence(control(), total=total, equivalent=equivalent)).text


def test_reversed_says_why_it_is_not_an_explanation():
    assert "stays ahead, S = +0.7" in decide(evidence(control(**REVERSES))).text
    unsure = control(without=(-0.9, -0.5), given=(-0.5, 0.5))
    assert (
        "is open: against a baseline given its magnitudes S = +0 [-0.5, +0.5]"
        in decide(evidence(unsure)).text
    )


@pytest.mark.parametrize("found", [EXPLAINS, REVERSES, PARTLY])
def test_a_sentence_names_the_controls_that_gave_the_verdict_and_no_other(found):
    text = decide(evidence(control("magnitude", **found), control("noise", **SURVIVES))).text
    assert "magnitude" in text
    assert "noise" not in text


def test_partly_explained_says_what_is_left():
    text = decide(evidence(control("noise", **PARTLY))).text
    assert "noise accounts for T − N = +0.5 [+0.4, +0.6]" in text
    assert "Without noise N = +0.5 [+0.4, +0.6] is left" in text
    doubtful = control("noise", without=(-0.1, 0.6), given=(0.4, 0.6), removed=(0.4, 0.6))
    assert "not told from 0" in decide(evidence(doubtful)).text


def test_partly_explained_names_the_control_that_removes_everything_and_says_why_it_does_not_explain():
    """T = .32 of m = .1: without magnitude nothing is left, but given it the treatment may be ahead by more than m."""
    everything = control("magnitude", without=(-0.026, 0.0074), given=(0.05, 0.15), removed=(0.28, 0.36))
    most = control("tuning", without=(0.02, 0.12), given=(0.01, 0.3), removed=(0.25, 0.35))
    verdict = decide(evidence(everything, most, total=(0.3, 0.34)))
    assert str(verdict) == "partly_explained:magnitude,tuning"
    assert "Without its magnitudes N = -0.0093 [-0.026, +0.0074] is no more than m, but" in verdict.text
    assert "whether magnitude alone makes the advantage is open: against a baseline given" in verdict.text
    assert "tuned against tuned N = +0.07 [+0.02, +0.12] is left" in verdict.text
    ahead = control("magnitude", without=(-0.05, 0.05), given=(0.2, 0.3), removed=(0.2, 0.3))
    assert "stays ahead, S = +0.25" in decide(evidence(ahead)).text
    unknown = control("magnitude", without=(-0.05, 0.05), given=None, removed=(0.2, 0.3))
    assert "was not measured" in decide(evidence(unknown)).text


@pytest.mark.parametrize(("controls", "enough"), [(1, 6), (2, 7)])
def test_controls_that_leave_exactly_nothing_on_too_few_seeds_say_how_many_could_tell(controls, enough):
    """Sign flips reject at 2^(1 − n): 0.0625 with 5 seeds, 0.03125 with 6, 0.0156 with 7."""
    nothing = [0.0] * 5
    said = f"Without k0 N = +0 (all 5 differences are equal, and so few seeds cannot tell: {enough} can), so that it stays open"
    total = [0.1, 0.12, 0.09, 0.11, 0.1]
    table = gather(total, [ControlSamples(f"k{i}", nothing, nothing) for i in range(controls)], 0.01)
    verdict = decide(table)
    assert verdict.kind == "partly_explained"
    assert said in verdict.text
    samples = [ControlSamples(f"k{i}", [0.0] * enough, [0.0] * enough) for i in range(controls)]
    assert decide(gather((total * 2)[:enough], samples, 0.01)).kind == "explained_by"


def test_supported_admits_when_little_is_left():
    assert "no more than m = 0.1 is left" not in decide(evidence(control(**SURVIVES))).text
    little = control("noise", without=(0.02, 0.08), given=None, removed=(0.05, 1.0))
    verdict = decide(evidence(control(**SURVIVES), little))
    assert verdict.rule == 6
    assert "Without noise, though, no more than m = 0.1 is left" in verdict.text


def test_inconclusive_names_what_is_undecided_and_asks_for_seeds_only_where_they_help():
    noisy, settled = control("noise", **OPEN), control("magnitude", **SURVIVES)
    verdict = decide(evidence(noisy, settled, seeds_needed=17))
    assert "without noise" in verdict.text
    assert "magnitude" not in verdict.text
    assert "12 more seeds" in verdict.text
    assert (
        "in four audits of five; a verdict that is asked for again is wrong somewhat more often"
        in verdict.text
    )
    unsure = control("noise", without=(-0.05, 0.05), given=(-0.5, 0.5), removed=(0.0, 1.0))
    assert decide(evidence(unsure, seeds_needed=17)).more_seeds == 12
    for structural in (None, (0.5, 0.9)):  # no more than m is left without it, yet it does not suffice
        settled = control("noise", without=(-0.05, 0.05), given=structural, removed=(0.0, 1.0))
        assert str(decide(evidence(settled, seeds_needed=17))) == "inconclusive"
        wide = control("noise", without=(-0.5, 0.5), given=structural, removed=(0.0, 1.0))
        assert decide(evidence(wide, seeds_needed=17)).more_seeds == 12  # more may yet be left without it


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (PARTLY | {"without": (-0.05, M)}, "is no more than m, but against a baseline"),
        (SURVIVES | {"without": (0.02, M)}, "Without noise, though, no more than m = 0.1 is left"),
        (OPEN | {"without": (-0.05, M)}, "no more than m = 0.1, but whether noise alone"),
        (PARTLY | {"without": (0.0, 0.6)}, "may be left, and is not told from 0"),
        (OPEN | {"without": (0.0, 0.6)}, "excludes neither 0 nor more than m = 0.1"),
    ],
)
def test_a_bound_of_exactly_m_is_no_more_than_m_and_one_of_0_does_not_exclude_it(fields, says):
    assert says in decide(evidence(control("noise", **fields))).text


def test_little_is_left_only_where_the_upper_bound_says_so():
    assert "though" not in decide(evidence(control(**SURVIVES | {"without": (0.02, 0.12)}))).text


def test_more_seeds_come_in_whole_studies_where_any_control_has_them():
    tuned = dataclasses.replace(control("tuning", **OPEN), study_size=2)
    text = decide(evidence(control("noise", **OPEN), tuned, seeds_needed=18)).text
    assert "13 more seeds, in 7 more studies (tuning_studies) of 2 seeds each, would tell" in text


@pytest.mark.parametrize("needed", [None, 4, 5])
def test_enough_seeds_ask_for_no_more(needed):
    assert str(decide(evidence(control(**OPEN), seeds_needed=needed))) == "inconclusive"


def test_more_seeds_are_counted_from_the_contrast_with_the_fewest():
    few = dataclasses.replace(control(**OPEN), sufficiency=interval(-0.5, 1.5, n=3))
    assert str(decide(evidence(few, seeds_needed=17))) == "inconclusive (+14 seeds)"


# --- caveats, values ----------------------------------------------------------------------------------------------


def test_caveats_travel_with_every_verdict():
    for *_, table in EVERY_VERDICT:
        assert "one task only" in decide(dataclasses.replace(table, caveats=("one task only",))).caveats
    assert decide(evidence(control())).caveats == ()


def test_an_audit_without_checks_or_spread_says_so():
    for checks in ((), (Check("placebo", None),)):
        verdict = decide(evidence(control(**EXPLAINS), checks=checks))
        assert verdict.rule == 3
        assert "No validity check" in verdict.caveats[0]
    constant = dataclasses.replace(
        control(), removed=Interval(1.0, 1.0, 1.0, 0.0, 5, 0.0, "degenerate", 0.05)
    )
    (caveat,) = decide(evidence(constant)).caveats
    assert "exactly the same difference" in caveat
    assert "leaves out whatever other seeds may show" in caveat


def test_a_control_that_changed_nothing_is_named():
    nothing = Interval(0.0, -math.inf, math.inf, 1.0, 4, 0.0, "degenerate", 0.05)
    table = evidence(dataclasses.replace(control(), removed=nothing))
    assert table.rows()[-1]["reading"] == "changed no outcome"
    (caveat,) = decide(table).caveats
    assert caveat.startswith(
        "magnitude changed no outcome on any seed: its search chose what was claimed, the arms do not differ in it, it"
    )


def test_two_equal_differences_decide_nothing_and_the_verdict_says_why():
    table = gather([0.25] * 2, [ControlSamples("magnitude", [0.25] * 2, [0.25] * 2)], 0.02)
    verdict = decide(table)
    assert verdict.kind == "not_reproduced"
    assert "T = +0.25 (all 2 differences are equal, and so few seeds cannot tell: 6 can)" in verdict.text
    assert "leave it open" in verdict.text
    assert Evidence.from_dict(json.loads(json.dumps(table.to_dict(), allow_nan=False))) == table


@pytest.mark.parametrize("n", [3, 4, 5, 6])
@pytest.mark.parametrize("rounded", ["N", "S", "both", "neither"])
def test_one_verdict_whether_runs_that_compute_the_same_are_rounded_alike_or_apart(n, rounded):
    apart, alike = 1e-8 * np.sin(np.arange(n)), np.zeros(n)
    samples = ControlSamples(
        "magnitude",
        apart if rounded in ("N", "both") else alike,
        apart if rounded in ("S", "both") else alike,
    )
    total = 0.3 + 0.01 * np.cos(np.arange(n))
    assert str(decide(gather(total, [samples], 0.02, continuous=True))) == "explained_by:magnitude"


def test_ties_of_a_control_ask_for_the_seeds_at_which_they_would_tell():
    table = gather([0.5, 0.75, 0.5, 0.7], [ControlSamples("magnitude", [0.0] * 4, [0.0] * 4)], 1.0)
    assert table.seeds_needed == 6
    verdict = decide(dataclasses.replace(table, smallest_effect=0.1, equivalent=False))
    assert "all 4 differences are equal" in verdict.text


@pytest.mark.parametrize("table", [table for *_, table in EVERY_VERDICT])
def test_a_verdict_survives_json(table):
    verdict = decide(dataclasses.replace(table, caveats=("one task only",)))
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


# --- the rules, said again ----------------------------------------------------------------------------------------

BOUNDS = st.sampled_from([-2.0, -ABOVE, -M, -BELOW, -0.05, 0.0, 0.05, BELOW, M, ABOVE, 0.5, 2.0]) | st.floats(
    -2, 2
)
INTERVALS = st.tuples(BOUNDS, BOUNDS).map(lambda pair: interval(*sorted(pair)))
CONTROLS = st.lists(
    st.builds(ControlEvidence, st.text("abc", min_size=1), INTERVALS, st.none() | INTERVALS, INTERVALS),
    max_size=4,
    unique_by=lambda c: c.name,
).map(tuple)
TABLES = st.builds(
    Evidence,
    total=st.just(interval(0.5, 1.0)) | INTERVALS,
    equivalent=st.sampled_from([False, False, True]),
    smallest_effect=st.just(M),
    controls=CONTROLS,
    checks=st.lists(
        st.builds(Check, st.sampled_from(["placebo", "runs"]), st.sampled_from([True, None] * 5 + [False]))
    ).map(tuple),
    seeds_needed=st.none() | st.integers(2, 50),
)


def restated(e):
    """Kind and names by the seven rules, written from the page and not from the code."""
    if [check for check in e.checks if check.passed is False]:
        return "invalid", {check.name for check in e.checks if check.passed is False}
    above_zero = e.total.low > 0
    if e.equivalent or not above_zero:
        return "not_reproduced", set()
    named = {"explained_by": set(), "reversed_under": set(), "partly_explained": set()}
    beaten = bool(e.controls)
    for c in e.controls:
        s_holds = c.sufficiency is not None and not c.sufficiency.high > e.smallest_effect
        n_holds = not c.necessity.high > e.smallest_effect
        if n_holds and s_holds:
            named["explained_by"].add(c.name)
        if c.necessity.high + e.smallest_effect < 0 and not s_holds:
            named["reversed_under"].add(c.name)
        if c.removed.low > e.smallest_effect:
            named["partly_explained"].add(c.name)
        beaten = beaten and c.necessity.low > 0
    for kind, names in named.items():
        if names:
            return kind, names
    return ("supported" if beaten else "inconclusive"), set()


@given(TABLES)
@settings(max_examples=400, deadline=None)
def test_every_table_gets_the_verdict_that_the_rules_give(table):
    verdict = decide(table)
    assert (verdict.kind, set(verdict.by)) == restated(table)
    assert verdict == decide(table)
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    assert verdict.text.endswith(".")
    assert (verdict.more_seeds is None) or (verdict.kind == "inconclusive" and verdict.more_seeds > 0)


@given(TABLES, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_order_and_names_of_the_other_controls_change_nothing_but_their_own_mention(table, random):
    verdict = decide(table)
    others = list(table.controls[1:])
    random.shuffle(others)
    new_names = {c.name: f"other {c.name}" for c in others}
    renamed = [dataclasses.replace(c, name=new_names[c.name]) for c in others]
    shuffled = decide(dataclasses.replace(table, controls=(*table.controls[:1], *renamed)))
    assert (shuffled.kind, shuffled.rule, shuffled.more_seeds) == (
        verdict.kind,
        verdict.rule,
        verdict.more_seeds,
    )
    if verdict.kind != "invalid":
        assert set(shuffled.by) == {new_names.get(name, name) for name in verdict.by}
        primary = [c.name for c in table.controls[:1]]
        assert set(primary).isdisjoint(shuffled.by) or shuffled.by[0] == primary[0]
