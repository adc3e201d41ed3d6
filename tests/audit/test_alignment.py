"""Alignment: what noise at the rule's own angle makes of backprop, and what the rule's direction is worth beyond that."""

import numpy as np
import pytest
from known_bench import CLAIM, RecordingBench

import alignlab as al
from alignlab.audit.controls import Alignment
from alignlab.audit.gathering import gather
from alignlab.audit.verdict import decide
from alignlab.training.errors import SpecError

TURNED = CLAIM.model_copy(update={"treatment": CLAIM.baseline, "baseline": CLAIM.treatment})


def value(spec):
    """Steps of the rule's size gain 3, its angle costs 2, whoever has it; what else its direction has gains 0.5."""
    graft = spec.graft
    own_size = (
        spec.rule == "sign_sync" and (graft is None or graft.magnitude == "rule")
    ) or "gain" in spec.rule_args
    own_angle = spec.rule == "noisy_backprop" or (spec.rule == "sign_sync" and graft is None)
    beyond = spec.rule == "sign_sync" and graft is None
    return 3.0 * own_size - 2.0 * own_angle + 0.5 * beyond + 0.01 * np.sin(spec.seed)


def applied(claim, **more):
    bench = RecordingBench(claim, value, **more)
    sides = [bench.outcomes(name, arm) for name, arm in (("t", claim.treatment), ("b", claim.baseline))]
    return Alignment().apply(bench, *sides), bench


def test_of_a_rule_that_wins_the_angle_is_taken_away_and_given():
    found, _ = applied(CLAIM)
    assert np.mean(found.samples.necessity) == pytest.approx(3.5)  # an angle that costs 2 is taken from 1.5
    assert np.mean(found.samples.sufficiency) == pytest.approx(
        3.5
    )  # against noise at its angle and backprop's size
    assert [check.passed for check in found.checks] == [True, True]


@pytest.mark.parametrize("size", [0.0, -0.5])
def test_a_direction_that_is_worth_more_than_its_angle_is_not_explained_by_its_angle(size):
    """As a preconditioned gradient's, whose angle costs noise 0.2: backprop's direction alone has nothing of it."""

    def outcome(spec):
        rule = spec.rule == "sign_sync" and spec.graft is None
        sized = spec.rule == "sign_sync" or "gain" in spec.rule_args
        return size * sized + rule - 0.2 * (rule or spec.rule == "noisy_backprop") + 0.01 * np.sin(spec.seed)

    bench = RecordingBench(CLAIM, outcome)
    t, b = (bench.outcomes(name, arm) for name, arm in (("t", CLAIM.treatment), ("b", CLAIM.baseline)))
    found = Alignment().apply(bench, t, b)
    assert np.mean(t - b) == pytest.approx(0.8 + size)
    assert np.mean(found.samples.necessity) == pytest.approx(1.0 + size)
    varied = 0.01 * np.cos(range(5))  # differences that are all equal tell nothing of other seeds
    samples = found.samples.__class__(
        "alignment", found.samples.necessity + varied, found.samples.sufficiency
    )
    assert decide(gather(t - b + varied, [samples], CLAIM.smallest_effect)).kind == "supported"


@pytest.mark.parametrize("claim", [CLAIM, TURNED], ids=["rule", "bp"])
def test_what_the_angle_costs_and_what_lies_beyond_it_are_told_of_either_claim(claim):
    found, bench = applied(claim)
    told = {contrast.label: np.mean(contrast.differences) for contrast in found.contrasts}
    assert told == pytest.approx({"what the angle costs backprop": 2.0, "worth beyond angle and size": 0.5})
    assert not any(contrast.compares for contrast in found.contrasts)
    noise = bench.groups["noise at sign_sync's angle and gain"].specs
    assert [spec.seed for spec in noise] == list(claim.seeds)
    assert noise[4].rule_args["cosine"]["1"] == pytest.approx(np.cos(np.radians([80, 60, 54])))
    assert noise[4].rule_args["gain"]["3"] == [7.0, 7.0, 7.0]
    assert "gain" not in bench.groups["noise at sign_sync's angle, bp magnitude"].specs[0].rule_args


def test_that_backprop_has_no_angle_is_no_rival_of_its_own_claim():
    found, bench = applied(TURNED)
    assert found.samples is None
    assert [check.passed for check in found.checks] == [True]
    assert not any(spec.graft for group in bench.groups.values() for spec in group.specs)
    assert Alignment().foreseen(bench) == []
    assert len(Alignment().foreseen(RecordingBench(CLAIM, value))) == 5


def test_noise_at_another_angle_fails_the_check():
    found, _ = applied(CLAIM, off=1.02)
    failed = [check for check in found.checks if check.failed]
    assert [check.name for check in failed] == ["manipulation: alignment, noise"]
    assert "by 1.2°" in failed[0].detail


def test_a_rule_without_a_recorded_angle_cannot_be_replayed(monkeypatch):
    own = RecordingBench.dataset
    monkeypatch.setattr(
        RecordingBench, "dataset", lambda self, spec: own(self, spec) * (np.nan if spec.seed == 2 else 1)
    )
    found, _ = applied(CLAIM)
    assert found.samples is None
    assert found.checks[0].failed
    assert found.checks[0].detail == "no angle was recorded of sign_sync, seed 2"


def test_claims_that_have_no_backprop_or_no_plain_steps_are_refused():
    two_rules = CLAIM.model_copy(update={"baseline": al.Arm(rule="fa")})
    momentum = CLAIM.model_copy(update={"setup": {**CLAIM.setup, "momentum": 0.9}})
    for claim, told in ((two_rules, "'fa'"), (momentum, "momentum")):
        with pytest.raises(SpecError, match=f"control 'alignment' .*{told}"):
            Alignment().check(claim)


@pytest.mark.parametrize("rule_wins", [True, False])
def test_of_real_runs_noise_that_a_rule_is_made_of_is_no_more_than_its_angle(rule_wins, tmp_path):
    """The rule is itself noise at a fixed angle, drawn from the same seeds: nothing is left beyond its angle and size."""
    noise = al.Arm(rule="noisy_backprop", rule_args={"cosine": 0.6, "gain": 3.0}, name="noise")
    backprop = al.Arm(rule="bp")
    claim = al.Claim(
        statement="noise",
        treatment=noise if rule_wins else backprop,
        baseline=backprop if rule_wins else noise,
        task="linear_toy",
        smallest_effect=0.05,
        seeds=range(4),
        setup={
            "hidden": (20,),
            "activation": "linear",
            "steps": 30,
            "record_every": 5,
            "lr": 0.02,
            "batch_size": 16,
        },
        controls=("alignment",),
    )
    result = al.audit(claim, store=tmp_path)
    beyond = next(c for c in result.contrasts if c.label == "worth beyond angle and size")
    cost = next(c for c in result.contrasts if c.label == "what the angle costs backprop")
    assert np.abs(beyond.differences).max() < 1e-3
    assert min(cost.differences) > 10 * np.abs(beyond.differences).max()
    assert not any(check.failed for check in result.evidence.checks)
    assert bool(result.evidence.controls) == rule_wins


def test_frozen_layers_do_not_count_as_angles_that_were_not_taken(tmp_path):
    claim = al.Claim(
        statement="feedback alignment below a frozen layer",
        treatment=al.Arm(rule="fa"),
        baseline=al.Arm(rule="bp"),
        task="linear_toy",
        smallest_effect=0.05,
        seeds=range(2),
        setup={"hidden": (20, 15), "activation": "tanh", "steps": 10, "lr": 0.003, "batch_size": 16, "frozen": ("3.*",),
               "record_every": 5},
        controls=("alignment",),
    )  # fmt: skip
    result = al.audit(claim, store=tmp_path)
    assert {c.name: c.passed for c in result.evidence.checks} == {
        "manipulation: alignment, noise": True,
        "manipulation: alignment": True,
    }
