"""The spike-in: louder backprop, planted, must be found out. On benches whose outcomes are known, and once on real runs."""

import numpy as np
import pytest
from known_bench import CLAIM, KnownBench

import alignlab as al
from alignlab.audit.bench import Bench
from alignlab.audit.controls import Magnitude, SpikeIn
from alignlab.audit.gathering import ControlSamples
from alignlab.training.errors import SpecError

SPIKE = SpikeIn(gain=7)  # the gain that the runs of a KnownBench record
TURNED = CLAIM.model_copy(update={"treatment": CLAIM.baseline, "baseline": CLAIM.treatment})


class PlantedBench(KnownBench):
    about = Bench.about


def planted(worth, given=True):
    """Outcomes where the spike's size is ``worth`` something, unless the graft does not take it away or give it."""

    def value(spec):
        spiked, graft = spec.rule == "noisy_backprop", spec.graft
        loud = spiked and (graft is None or not given or graft.magnitude == "rule")
        another = 3.0 * (spec.rule == "sign_sync")  # the claim's other arm is no part of the spike
        return worth * loud + another + 0.01 * np.sin(spec.seed + 5 * spiked)

    return value


def applied(control, claim, value, **more):
    bench = PlantedBench(claim, value, **more)
    sides = [bench.outcomes(name, arm) for name, arm in (("t", claim.treatment), ("b", claim.baseline))]
    return control.apply(bench, *sides), bench


@pytest.mark.parametrize("claim", [CLAIM, TURNED])
@pytest.mark.parametrize("worth", [1.0, -1.0])
def test_a_spike_that_its_size_explains_passes_whether_it_helps_or_harms(claim, worth):
    found, bench = applied(SPIKE, claim, planted(worth))
    assert [check.passed for check in found.checks] == [True, True, True]
    assert "at equal step sizes by 0.0" in found.checks[0].detail
    assert np.mean(found.contrasts[0].differences) == pytest.approx(1.0, abs=0.02)
    assert not any(contrast.compares for contrast in found.contrasts)
    assert bench.claim is claim
    assert {name for name, group in bench.groups.items() if group.kind == "compared"} == {"t", "b"}


@pytest.mark.parametrize("worth", [1.0, -1.0])
def test_an_audit_whose_graft_does_not_take_misses_the_spike(worth):
    found, _ = applied(SPIKE, CLAIM, planted(worth, given=False))
    assert found.checks[0].name == "spike-in"
    assert found.checks[0].failed


def test_a_spike_without_an_effect_shows_nothing():
    found, _ = applied(SPIKE, CLAIM, planted(0.05))
    assert [check.passed for check in found.checks] == [None, True, True]
    assert "too little to ask for its reasons" in found.caveats[0]


def test_a_spike_whose_rest_is_noise_tells_nothing():
    chaos = planted(1.0)
    found, _ = applied(
        SPIKE, CLAIM, lambda spec: chaos(spec) + 0.3 * (-1) ** spec.seed * (spec.graft is not None)
    )
    assert [check.passed for check in found.checks] == [None, True, True]
    assert "take fewer steps, a smaller gain or a larger m" in found.caveats[0]


@pytest.mark.parametrize(("left", "passed"), [(0.195, None), (0.25, False)], ids=["p 0.036", "p 0.013"])
def test_two_intervals_that_noise_may_leave_fail_the_check_together_at_alpha(left, passed):
    rest = left + np.tile([0.2, -0.2], 4)
    samples = ControlSamples("magnitude", tuple(rest), tuple(0.2 * np.array([1, -1] * 4)))
    total = tuple(3.0 + 0.1 * np.sin(np.arange(8)))
    assert SPIKE._checked(total, samples, CLAIM, continuous=True).passed is passed


def test_a_rest_above_m_on_single_seeds_passes_where_it_is_explained():
    rest = tuple(np.tile([0.11, -0.11], 4))  # its interval ends at 0.098, m is 0.1
    check = SPIKE._checked(
        tuple(3.0 + 0.1 * np.sin(np.arange(8))),
        ControlSamples("magnitude", rest, rest),
        CLAIM,
        continuous=True,
    )
    assert check.passed
    assert "by 0.11 at most" in check.detail


def test_probes_that_read_another_gain_than_the_planted_one_fail_the_check():
    found, _ = applied(SpikeIn(gain=6.9), CLAIM, planted(1.0))
    assert found.checks[1].detail.startswith("a gain of 7 was read")
    assert [check.name for check in found.checks if check.failed] == ["spike-in, gain"]


def test_a_spike_needs_backprop_and_a_gain():
    two_rules = CLAIM.model_copy(update={"baseline": al.Arm(rule="fa")})
    momentum = CLAIM.model_copy(update={"setup": {**CLAIM.setup, "momentum": 0.9}})
    for claim, named in ((two_rules, "'fa'"), (momentum, "momentum")):
        with pytest.raises(SpecError, match=f"spike_in.*{named}"):
            SpikeIn().check(claim)
    SpikeIn().check(TURNED)
    for gain in (1, 0, -2.0, float("nan"), True, "10"):
        with pytest.raises(ValueError, match="gain is"):
            SpikeIn(gain)
    assert SpikeIn(0.1).gain == 0.1  # quieter


def test_the_runs_that_a_spike_needs_are_foreseen():
    bench = PlantedBench(CLAIM, planted(1.0))
    foreseen = SPIKE.foreseen(bench)
    SPIKE.apply(bench, np.ones(5), np.zeros(5))
    assert bench.groups.keys() == {
        "bp × 7, planted",
        "bp × 7 direction, bp magnitude, planted",
        "bp direction, bp × 7 magnitude, planted",
    }
    assert set(foreseen) == {spec for group in bench.groups.values() for spec in group.specs}


@pytest.mark.parametrize("spike_first", [True, False])
def test_an_arm_that_is_called_as_the_spike_keeps_its_runs(spike_first):
    arm = CLAIM.treatment.model_copy(update={"name": "bp × 7"})
    bench = PlantedBench(CLAIM.model_copy(update={"treatment": arm}), planted(1.0))
    controls = (SPIKE, Magnitude()) if spike_first else (Magnitude(), SPIKE)
    for control in controls:
        control.apply(bench, np.ones(5), np.zeros(5))
    compared = [group for group in bench.groups.values() if group.kind == "compared"]
    assert [spec.rule for group in compared for spec in group.specs] == 10 * ["sign_sync"]
    assert len(bench.groups) == 5


def test_a_spike_whose_effect_is_not_told_from_0_is_not_called_too_little():
    found, _ = applied(SPIKE, CLAIM, lambda spec: 5.0 * (spec.rule == "noisy_backprop") * (-1) ** spec.seed)
    assert found.checks[0].passed is None
    assert "not told from 0, so that there is nothing to ask for its reasons" in found.caveats[0]
    assert "too little" not in found.caveats[0]


@pytest.fixture(scope="module")
def claim():
    return CLAIM.model_copy(
        update={
            "setup": {"hidden": (10, 10), "lr": 0.03, "batch_size": 4, "steps": 60, "record_every": 10},
            "smallest_effect": 0.02,
        }
    )


def test_a_real_audit_finds_louder_backprop_out(claim, tmp_path):
    result = al.audit(claim, [al.controls.SpikeIn()], store=tmp_path)
    checks = {check.name: check for check in result.evidence.checks}
    assert set(checks) == {"spike-in", "spike-in, gain", "spike-in, manipulation: magnitude"}
    assert all(check.passed for check in checks.values()), checks
    assert result.evidence.controls == ()
    assert result.computed == 5 * 5


def test_a_real_audit_with_a_graft_that_does_nothing_is_invalid(claim, tmp_path, monkeypatch):
    monkeypatch.setattr(Magnitude, "_grafted", lambda self, claim: ({"order": 2}, {"order": 3}))
    verdict = al.audit(claim, [al.controls.SpikeIn()], store=tmp_path).verdict
    assert verdict.kind == "invalid"
    assert "spike-in" in verdict.by
