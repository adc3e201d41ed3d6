"""Replayed sizes, absolute or relative to the weights: each arm gets those of the other, and what that makes of the outcome."""

import numpy as np
import pytest
from known_bench import CLAIM, RecordingBench

import alignlab as al
from alignlab.audit.controls import ReplayedMagnitude, WeightNorm
from alignlab.training.errors import SpecError

CONTROLS = (ReplayedMagnitude(), WeightNorm())
TURNED = CLAIM.model_copy(update={"treatment": CLAIM.baseline, "baseline": CLAIM.treatment})


def size_of(spec):
    """The size of the first layer's first step, at lr 1 for the seed: 0.7 the rule's own, 0.1 backprop's."""
    own = 0.1 if spec.rule == "bp" else 0.7
    if spec.step_sizes is None:
        return own
    return spec.step_sizes.sizes["1"][0] / (1 + spec.seed) * (10 if spec.step_sizes.relative else 1)


def value(spec):  # size gains 3 a unit, the direction of the rule costs 1
    return 3.0 * size_of(spec) - 1.0 * (spec.rule != "bp") + 0.01 * np.sin(spec.seed)


def applied(control, claim, **more):
    bench = RecordingBench(claim, value, **more)
    sides = [bench.outcomes(name, arm) for name, arm in (("t", claim.treatment), ("b", claim.baseline))]
    return control.apply(bench, *sides), bench


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name)
@pytest.mark.parametrize(("claim", "sign"), [(CLAIM, 1), (TURNED, -1)], ids=["rule", "bp"])
def test_each_arm_takes_the_sizes_of_the_other_with_the_same_seed(control, claim, sign):
    found, bench = applied(control, claim)
    assert np.mean(found.samples.necessity) == pytest.approx(-1.0 * sign, abs=1e-6)  # the sizes are now equal
    assert np.mean(found.samples.sufficiency) == pytest.approx(-1.0 * sign, abs=1e-6)
    effects = [np.mean(contrast.differences) for contrast in found.contrasts]
    assert effects == pytest.approx([-1.0 * sign, 1.8 * sign, 0.0], abs=1e-6)
    assert [check.passed for check in found.checks] == [True]
    assert "of one step in 25, in straight lines between" in found.caveats[0]
    assert "record_every: 1 in the setup replays every step" in found.caveats[0]
    tables = {(s.rule, s.seed): s.step_sizes for g in bench.groups.values() for s in g.specs if s.step_sizes}
    assert len(tables) == 10
    assert tables["bp", 3].steps == [0, 4, 8]
    scale = 0.1 if control.relative else 1
    assert tables["bp", 3].sizes["3"] == pytest.approx(scale * 0.7 * 4 * 2 * np.array([1, 0.8, 0.6]))
    assert tables["sign_sync", 0].sizes["1"] == pytest.approx(scale * 0.1 * np.array([1, 0.8, 0.6]))


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name)
def test_sizes_that_did_not_take_fail_the_check(control):
    found, _ = applied(control, CLAIM, off=1.02)
    assert [(check.name, check.failed) for check in found.checks] == [(f"manipulation: {control.name}", True)]
    assert "by 0.02" in found.checks[0].detail


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name)
@pytest.mark.parametrize("taken", [0.0, 1.0], ids=["lost", "not lost"])
def test_sizes_that_are_lost_in_the_weights_rounding_do_not_fail_the_check(control, taken, monkeypatch):
    own = RecordingBench.dataset

    def silent(
        self, spec
    ):  # the rule's error of layer 1 is rounding, so that backprop is to take steps of no size there
        run = own(self, spec)
        if spec.step_sizes is None and spec.rule != "bp":
            run[control.quantity].loc[{"layer": "1"}] *= 1e-9
        if spec.step_sizes is not None and spec.rule == "bp":
            run[control.quantity].loc[{"layer": "1"}] = taken
        return run

    monkeypatch.setattr(RecordingBench, "dataset", silent)
    for claim in (CLAIM, TURNED):
        found, _ = applied(control, claim)
        assert found.checks[0].passed == (taken == 0)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name)
def test_what_rounding_may_take_is_a_share_of_the_weights_norm(control, monkeypatch):
    """Of weights of norm 10, 1.2e-6 of a step, and 1.2e-7 of one relative to them."""
    own = RecordingBench.dataset

    def slow(self, spec):
        run = own(self, spec)
        run[control.quantity].loc[{"layer": "1"}] = 5e-7 * (spec.step_sizes is None)
        return run

    monkeypatch.setattr(RecordingBench, "dataset", slow)
    assert applied(control, CLAIM)[0].checks[0].passed is not control.relative


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name)
@pytest.mark.parametrize("gradient", [0.0, 1.0], ids=["none", "some"])
def test_a_step_without_a_gradient_is_told_and_is_no_size_that_did_not_take(control, gradient, monkeypatch):
    own = RecordingBench.dataset

    def stuck(self, spec):  # seed 2 takes no step where the others take one of 0.8 among 2.4
        run = own(self, spec)
        if spec.step_sizes is not None and spec.seed == 2:
            here = {"step": 4, "layer": "1"}
            run[control.quantity].loc[here], run["gradient_norm"].loc[here] = 0.0, gradient
        return run

    monkeypatch.setattr(RecordingBench, "dataset", stuck)
    found, _ = applied(control, CLAIM)
    assert found.checks[0].passed == (gradient == 0)
    told = [caveat for caveat in found.caveats if "met a gradient of zero" in caveat]
    assert len(told) == (gradient == 0)
    assert all("up to 33 % of the replayed sizes" in caveat for caveat in told)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name)
def test_an_arm_that_recorded_nothing_cannot_be_replayed(control, monkeypatch):
    own = RecordingBench.dataset
    monkeypatch.setattr(
        RecordingBench, "dataset", lambda self, spec: own(self, spec) * (np.nan if spec.seed == 2 else 1)
    )
    found, _ = applied(control, CLAIM)
    assert found.samples is None
    assert found.checks[0].failed
    assert found.checks[0].detail == "no step size was recorded of sign_sync, seed 2, bp, seed 2"


@pytest.mark.parametrize(
    ("setup", "told"),
    [
        ({"momentum": 0.9}, "leave out momentum"),
        ({"optimizer": "adam"}, "which adam divides out.* or leave the control out$"),
        ({"record_every": 0}, "set record_every above 0"),
    ],
)
def test_arms_whose_steps_cannot_be_set_are_refused(setup, told):
    claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, **setup}})
    for control in CONTROLS:
        with pytest.raises(SpecError, match=f"control '{control.name}' .*{told}"):
            control.check(claim)


@pytest.mark.parametrize("setup", [{"weight_init": "nokland"}, {"weight_scale": 0.0}])
def test_steps_relative_to_weights_of_zero_are_refused_and_absolute_ones_are_not(setup):
    claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, **setup}})
    with pytest.raises(SpecError, match=r"control 'weight_norm' .* start from zero"):
        WeightNorm().check(claim)
    ReplayedMagnitude().check(claim)


@pytest.mark.parametrize("kind", [ReplayedMagnitude, WeightNorm], ids=lambda c: c.name)
@pytest.mark.parametrize("lost", [0.0, 0.2], ids=["nothing", "more than m"])
def test_an_arm_that_is_replayed_on_its_own_sizes_must_stay_itself(kind, lost):
    bench = RecordingBench(CLAIM, lambda spec: value(spec) - lost * (spec.step_sizes is not None))
    sides = [bench.outcomes(name, arm) for name, arm in (("t", CLAIM.treatment), ("b", CLAIM.baseline))]
    of_both = [check for check in kind(itself=True).apply(bench, *sides).checks if "itself" in check.name]
    assert [check.name.split(", ")[1] for check in of_both] == ["sign_sync", "bp"]
    assert [check.passed for check in of_both] == [lost == 0] * 2
    own = [name for name, group in bench.groups.items() if group.kind == "check"]
    assert len(own) == 2
    for name in own:  # sizes of the same rule, and of the same seed
        for spec in bench.groups[name].specs:
            size = (0.1 if spec.rule == "bp" else 0.7) * (1 + spec.seed) * (0.1 if kind.relative else 1)
            assert spec.step_sizes.sizes["1"][0] == pytest.approx(size)
    told = [check.detail.endswith("record_every: 1 in the setup replays every step") for check in of_both]
    assert told == [lost > 0] * 2


def test_by_default_no_arm_is_replayed_on_itself():
    found, bench = applied(ReplayedMagnitude(), CLAIM)
    assert len(found.checks) == 1
    assert {group.kind for group in bench.groups.values()} == {"compared"}


def test_neither_arm_need_be_backprop_nor_have_the_others_rate(tmp_path):
    claim = al.Claim(
        statement="louder feedback alignment beats feedback alignment",
        treatment=al.Arm(rule="fa", lr=0.03, name="loud"),
        baseline=al.Arm(rule="fa", lr=0.003),
        task="linear_toy",
        smallest_effect=0.05,
        seeds=range(7),  # where a replay is exact to the bit, differences tie, and fewer ties tell nothing
        setup={"hidden": (20,), "activation": "linear", "steps": 40, "record_every": 1, "batch_size": 16},
        controls=("replayed_magnitude", "weight_norm"),
    )
    result = al.audit(claim, [kind(itself=True) for kind in (ReplayedMagnitude, WeightNorm)], store=tmp_path)
    assert result.verdict.kind == "explained_by"
    assert result.verdict.by == ("replayed_magnitude", "weight_norm")
    assert [check.passed for check in result.evidence.checks] == [
        True
    ] * 6  # two of manipulation, two of each itself
    for control in result.evidence.controls:  # the two are one rule at two rates: nothing else is left
        assert abs(control.necessity.estimate) < 1e-3 * result.evidence.total.estimate
        assert abs(control.sufficiency.estimate) < 1e-3 * result.evidence.total.estimate
    assert not any("straight lines" in caveat for caveat in result.verdict.caveats)
