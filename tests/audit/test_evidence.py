"""The evidence table: made from differences at the right levels, told in rows, kept through JSON."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.audit.evidence import Check, Evidence
from alignlab.audit.gathering import ControlSamples, gather
from alignlab.audit.statistics import paired, seeds_needed, tost
from alignlab.audit.verdict import decide

M = 0.1


def seeds(mean, n=8, spread=0.02, seed=0):
    """n differences with exactly this mean and this standard deviation."""
    d = np.random.default_rng(seed).normal(size=n)
    return mean + spread * (d - d.mean()) / d.std(ddof=1)


def control(name, without, given, seed=1, **changes):
    sufficiency = None if given is None else seeds(given, seed=seed + 1)
    return ControlSamples(name, seeds(without, seed=seed), sufficiency, **changes)


def test_gather_holds_what_the_statistics_say():
    total = seeds(1.0)
    samples = dataclasses.replace(control("magnitude", 0.7, 0.6), given="in words")
    evidence = gather(total, [samples], M, alpha=0.02, checks=[Check("placebo", True)], caveats=["one task"])
    (found,) = evidence.controls
    assert evidence.total == paired(total, 0.02)
    assert evidence.equivalent == tost(total, M, 0.02).equivalent
    assert (found.name, found.without) == ("magnitude", "without magnitude")
    assert found.given == "in words"
    assert found.necessity == paired(samples.necessity, 0.02)
    assert found.sufficiency == paired(samples.sufficiency, 0.02)
    assert found.removed == paired(total - samples.necessity, 0.02)
    assert (evidence.checks, evidence.caveats) == ((Check("placebo", True),), ("one task",))


def test_equivalence_is_tested_at_the_claims_alpha():
    total = seeds(0.09, spread=0.012)  # TOST p = 0.025
    assert gather(total, [], M, alpha=0.05).equivalent
    assert not gather(total, [], M, alpha=0.02).equivalent


def test_while_no_control_explains_all_stand_at_bonferronis_level():
    evidence = gather(
        seeds(1.0), [control("a", 0.9, 0.9), control("b", 0.5, 0.5), control("c", 0.0, None)], M
    )
    assert {c.necessity.alpha for c in evidence.controls} == {0.05 / 3}
    assert {c.removed.alpha for c in evidence.controls} == {0.05 / 3}
    assert evidence.total.alpha == 0.05


def test_a_control_that_explains_leaves_its_share_of_alpha_to_the_others():
    evidence = gather(seeds(1.0), [control("a", 0.9, 0.9), control("b", 0.0, 0.0)], M)
    assert [c.necessity.alpha for c in evidence.controls] == [0.05, 0.025]


def test_the_step_down_decides_where_bonferroni_does_not():
    barely = (
        M - 1.05 * paired(seeds(0.0, seed=5), 0.05).high
    )  # upper bound just below m at 0.05, above it at 0.025
    samples = [
        ControlSamples("clear", seeds(-0.5), seeds(-0.5)),
        ControlSamples("barely", seeds(barely, seed=5), seeds(barely, seed=5)),
    ]
    assert paired(samples[1].necessity, 0.025).high > M
    assert decide(gather(seeds(1.0), samples, M)).by == ("clear", "barely")
    assert decide(gather(seeds(1.0), [samples[1], control("none", 0.9, 0.9)], M)).kind != "explained_by"


@pytest.mark.parametrize("barely", ["necessity", "sufficiency"])
def test_a_control_that_would_explain_at_alpha_alone_leaves_the_others_where_they_stand(barely):
    mean = M - 1.05 * paired(seeds(0.0, seed=5), 0.05).high  # as above
    samples = {"necessity": seeds(-0.5), "sufficiency": seeds(-0.5), barely: seeds(mean, seed=5)}
    evidence = gather(seeds(1.0), [ControlSamples("a", **samples), control("b", 0.9, 0.9)], M)
    assert {c.necessity.alpha for c in evidence.controls} == {0.025}


@pytest.mark.parametrize("truly", [0, 1, 2])
def test_a_control_that_does_not_explain_is_named_at_most_at_alpha(truly):
    """Family-wise: of three controls, `truly` explain; for the others no more than m is left only on one side."""
    rng, wrong, repeats = np.random.default_rng(7), 0, 300
    for _ in range(repeats):
        total = rng.normal(1.0, 0.02, 5)
        samples = [
            ControlSamples(
                str(k), rng.normal(-1.0 if k < truly else M, 0.05, 5), rng.normal(-1.0, 0.05, 5), total
            )
            for k in range(3)
        ]
        verdict = decide(gather(total, samples, M, max_seeds=2))
        wrong += any(int(name) >= truly for name in verdict.by if verdict.kind == "explained_by")
    assert 0 < wrong <= 0.05 * repeats


def test_seeds_needed_is_asked_of_the_widest_contrast_at_the_controls_level():
    wide = seeds(0.05, spread=0.3, seed=9)
    samples = [control("a", 0.2, 0.2), ControlSamples("b", seeds(0.1), wide)]
    assert gather(seeds(1.0), samples, M).seeds_needed == seeds_needed(wide, M, 0.025)
    assert gather(seeds(1.0), samples, M, max_seeds=20).seeds_needed is None
    assert gather(seeds(1.0), [], M).seeds_needed is None


def test_seeds_needed_are_those_at_which_ties_beside_a_spread_would_tell_too():
    narrow = seeds(0.2, n=4)
    assert seeds_needed(narrow, M) == 3
    for samples in (([0.0] * 4, narrow), (narrow, [0.0] * 4)):
        assert (
            gather(seeds(1.0, n=4), [ControlSamples("a", *samples)], M).seeds_needed == 6
        )  # 2^(1 − 6) < 0.05


def test_controls_with_other_seeds_must_say_what_they_removed():
    samples = ControlSamples("tuning", seeds(0.0, n=6), seeds(0.0, n=6))
    with pytest.raises(ValueError, match="'tuning' has 6 seeds and the claim 8"):
        gather(seeds(1.0), [samples], M)
    shared = ControlSamples("tuning", seeds(0.0, n=6), seeds(0.0, n=6), removed=seeds(1.0, n=6))
    assert gather(seeds(1.0), [shared], M).controls[0].removed == paired(shared.removed, 0.05)


@pytest.mark.parametrize("m", [0.0, -0.1, float("nan"), float("inf")])
def test_a_claim_must_say_which_effect_matters(m):
    with pytest.raises(ValueError, match="smallest_effect"):
        gather(seeds(1.0), [], m)
    with pytest.raises(ValueError, match="smallest_effect"):
        Evidence(paired(seeds(1.0)), False, m)


def test_two_controls_of_one_name_are_refused():
    with pytest.raises(ValueError, match="share a name"):
        gather(seeds(1.0), [control("a", 0.0, 0.0), control("a", 0.5, 0.5)], M)


# --- rows ---------------------------------------------------------------------------------------------------------


def table():
    samples = [control("b", 0.02, 0.02), control("a", 0.6, None, seed=3)]
    return gather(seeds(1.0), samples, M, checks=[Check("placebo", True, "0.001")])


def test_rows_name_every_contrast_with_the_primary_control_first():
    rows = table().rows()
    assert [(row["name"], row["contrast"]) for row in rows] == [
        ("total", "total"),
        *[("b", contrast) for contrast in ("without", "given", "removed")],
        *[("a", contrast) for contrast in ("without", "removed")],
    ]
    evidence = table()
    for row, interval in zip(rows, evidence.intervals(), strict=True):
        values = (
            interval.estimate,
            interval.low,
            interval.high,
            interval.p_value,
            interval.n,
            interval.alpha,
        )
        assert tuple(row[key] for key in ("estimate", "low", "high", "p", "n", "alpha")) == values


@st.composite
def samples(draw):
    n, rng = draw(st.integers(2, 30)), np.random.default_rng(draw(st.integers(0, 10**6)))
    spread = draw(st.sampled_from([0.0, 0.02, 0.1, 0.3]))

    def some():
        return draw(st.sampled_from([-0.3, -0.05, 0.0, 0.05, 0.1, 0.15, 0.3])) + spread * rng.normal(size=n)

    controls = [ControlSamples(str(k), some(), some()) for k in range(draw(st.integers(0, 4)))]
    return gather(some(), controls, M, max_seeds=2)


@given(samples())
@settings(max_examples=200, deadline=None)
def test_p_interval_and_reading_of_a_row_agree_whatever_the_data(evidence):
    for row in evidence.rows():
        excluded = row["low"] > 0 or row["high"] < 0
        assert excluded == (row["p_adjusted"] <= 0.05)
        told = row["reading"].startswith(
            ("better", "worse", "accounts for something", "hides", "accounts for more")
        )
        assert excluded or not told
        small = (row["low"] >= -M and row["high"] <= M) or (row["name"] == "total" and evidence.equivalent)
        assert told or small or not excluded


def test_rows_adjust_p_to_the_level_of_their_interval():
    one, two, three = (gather(seeds(1.0), controls, M).rows()[1] for controls in (
        [control("a", 0.5, 0.5)],
        [control("a", 0.5, 0.5), control("b", 0.6, 0.6)],
        [control("a", 0.5, 0.5), control("b", 0.0, 0.0), control("c", 0.0, 0.0)],
    ))  # fmt: skip
    assert one["p_adjusted"] == one["p"] == three["p_adjusted"]  # the others have left
    assert two["p_adjusted"] == pytest.approx(2 * one["p"])


def test_an_equivalence_that_the_shorter_interval_alone_shows_is_read_as_such_in_table_and_text():
    total = seeds(0.09, spread=0.0125)  # 95 %: up to 0.1004
    evidence = gather(total, [], M)
    assert evidence.total.high > M > evidence.equivalence.high
    assert evidence.rows()[0]["reading"] == "no difference that matters (two one-sided tests)"
    low, high = evidence.equivalence.low, evidence.equivalence.high
    text = decide(evidence).text
    assert f"(two one-sided tests: the 90 % interval [{low:+.3g}, {high:+.3g}] lies within ±m)" in text
    assert f"+{evidence.total.high:.3g}]" in text


def test_a_control_called_total_keeps_its_place():
    evidence = gather(seeds(1.0), [control("a", 0.5, 0.5), control("total", 0.5, 0.5, seed=4)], M)
    assert [row["name"] for row in evidence.rows()] == ["total", *["a"] * 3, *["total"] * 3]


@pytest.mark.parametrize(
    ("mean", "spread", "reading"),
    [
        (-1.0, 0.02, "worse by more than m"),
        (1.0, 0.02, "better by more than m"),
        (0.05, 0.02, "no difference that matters"),
        (-0.11, 0.02, "worse"),
        (0.11, 0.02, "better"),
        (-0.05, 0.1, "not better by more than m"),
        (0.05, 0.5, "undecided"),
    ],
)
def test_rows_read_an_interval_as_far_as_it_goes(mean, spread, reading):
    samples = ControlSamples("a", seeds(mean, spread=spread), None)
    rows = gather(seeds(1.0), [samples], M).rows()
    assert rows[1]["reading"] == reading


@pytest.mark.parametrize(
    ("mean", "spread", "reading"),
    [
        (0.5, 0.02, "accounts for more than m"),
        (0.1, 0.02, "accounts for something"),
        (-0.1, 0.02, "hides some of the advantage"),
        (0.0, 0.02, "accounts for no more than m"),
        (0.1, 0.5, "undecided"),
    ],
)
def test_rows_read_what_a_control_removes(mean, spread, reading):
    samples = ControlSamples("a", seeds(0.5), None, removed=seeds(mean, spread=spread))
    assert gather(seeds(1.0), [samples], M).rows()[2]["reading"] == reading


def test_rows_make_a_dataset():
    evidence = table()
    dataset = pd.DataFrame(evidence.rows()).to_xarray()
    assert dataset["estimate"].dtype == np.float64
    assert dataset["n"].dtype == np.int64
    assert dataset.sizes["index"] == len(evidence.intervals())


def test_evidence_survives_json():
    for evidence in (table(), gather(seeds(0.3), [], M), dataclasses.replace(table(), equivalence=None)):
        assert Evidence.from_dict(json.loads(json.dumps(evidence.to_dict()))) == evidence
