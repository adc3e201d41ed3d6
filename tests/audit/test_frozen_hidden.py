"""The readout alone: on benches whose outcomes are known, by every rule, in every model, and once in a real audit."""

import numpy as np
import pytest
import xarray as xr
from known_bench import CLAIM, KnownBench

import alignlab as al
from alignlab.audit.controls import ALL, FrozenHidden
from alignlab.audit.controls.frozen_hidden import frozen_hidden
from alignlab.rules.registry import RULES
from alignlab.training import models, tasks, train
from alignlab.training.errors import SpecError
from alignlab.training.spec import RunSpec

HIDDEN = ("1.*", "3.*")
TURNED = CLAIM.model_copy(update={"treatment": CLAIM.baseline, "baseline": CLAIM.treatment})


class StepsBench(KnownBench):
    """Of the runs it records the size of each layer's steps: NaN where a layer cannot learn."""

    steps = (np.nan, np.nan, 0.3)

    def dataset(self, spec):
        table = np.array([self.steps, self.steps])
        return xr.Dataset({"update_norm": (("step", "layer"), table)}, {"layer": ["1", "3", "5"]})


def changed(claim=CLAIM, **setup):
    return claim.model_copy(update={"setup": {**claim.setup, **setup}})


def worth(bp, sign_sync, alone, optimum=1.0):
    """Outcomes of the arms as claimed, and of the readout alone at its best rate: 1 less for every tenth of that rate."""

    def value(spec):
        noise = 0.01 * np.sin(spec.seed + 3 * bool(spec.frozen) + 5 * (spec.rule == "bp"))
        if spec.frozen:
            return alone - abs(np.log10(spec.lr / optimum)) + noise
        return {"bp": bp, "sign_sync": sign_sync}[spec.rule] + noise

    return value


def applied(value, claim=CLAIM, kind=StepsBench):
    bench = kind(claim, value)
    sides = [bench.outcomes(name, arm) for name, arm in (("t", claim.treatment), ("b", claim.baseline))]
    return FrozenHidden().apply(bench, *sides), bench


@pytest.mark.parametrize("claim", [CLAIM, TURNED])
def test_each_arm_is_held_against_the_readout_alone_at_both_rates(claim):
    found, bench = applied(worth(bp=2.0, sign_sync=5.0, alone=1.0, optimum=10.0), claim)
    means = {(c.group, c.label): np.mean(c.differences) for c in found.contrasts}
    assert means == pytest.approx(
        {
            ("readout alone", "sign_sync − readout alone"): 6.0,  # at lr 0.1 the readout alone is worth −1
            ("readout alone", "bp − readout alone"): 3.0,
            ("readout alone, at its best rate", "sign_sync − readout alone"): 4.0,
            ("readout alone, at its best rate", "bp − readout alone"): 1.0,
        },
        abs=0.03,
    )
    assert not any(contrast.compares for contrast in found.contrasts)
    assert found.caveats == []
    assert found.samples is None  # no rival explanation: the verdict is not its to give
    assert found.details["readout alone"]["best_lr"] == 10
    assert found.details["readout alone"]["learning_rates"] == [0.01, 0.1, 1.0, 10.0, 100.0]
    for group in ("readout alone", "readout alone, at its best rate"):
        specs = bench.groups[group].specs
        assert {(s.rule, s.frozen) for s in specs} == {("bp", HIDDEN)}
        assert [s.seed for s in specs] == list(claim.seeds)


def test_an_arm_that_is_no_better_than_the_readout_alone_is_named_with_the_interval():
    found, _ = applied(worth(bp=1.0, sign_sync=5.0, alone=2.0, optimum=10.0))
    (caveat,) = found.caveats
    assert "lr 10, the best for it) bp is not better by more than m = 0.1 (-0.997 [-1.02, -0.977])" in caveat
    assert caveat.endswith(": what bp reached can be had without learning in hidden layers")
    assert "sign_sync" not in caveat


def test_where_neither_arm_is_better_the_comparison_says_little_about_rules():
    found, _ = applied(worth(bp=1.0, sign_sync=2.04, alone=2.0, optimum=10.0))
    (caveat,) = found.caveats
    assert "sign_sync is not better by more than m = 0.1" in caveat
    assert "what sign_sync and bp reached can be had without learning" in caveat
    assert caveat.endswith("so that the comparison says little about rules for these")


def test_an_arm_about_which_the_seeds_do_not_decide_is_not_called_no_better():
    noisy = worth(bp=2.3, sign_sync=5.0, alone=2.0)
    found, _ = applied(
        lambda spec: noisy(spec) + 0.5 * (-1) ** spec.seed * (spec.rule == "bp" and not spec.frozen)
    )
    (caveat,) = found.caveats
    assert "bp is not shown to be better by more than m = 0.1" in caveat
    assert caveat.endswith("that what bp reached needs learning in hidden layers is not shown")


def test_an_arm_whose_hidden_layers_never_moved_is_no_better_than_the_readout_alone_however_few_the_seeds():
    """Its losses are those of the readout alone, to the last bit: of five seeds, whose interval told of nothing else."""
    found, _ = applied(
        lambda spec: 3.0 * (spec.rule == "bp" and not spec.frozen) + 0.01 * np.sin(spec.seed + spec.lr)
    )
    assert "sign_sync is not better by more than m = 0.1 (+0 [+0, +0])" in found.caveats[0]


def test_a_readout_whose_best_rate_is_the_claims_is_one_group():
    found, bench = applied(worth(bp=1.0, sign_sync=5.0, alone=1.0, optimum=0.1))
    assert len(found.contrasts) == 2
    assert "readout alone, at its best rate" not in bench.groups
    assert "lr 0.1, the best for it" in found.caveats[0]


def test_a_best_rate_that_stays_on_the_edge_is_a_caveat():
    found, _ = applied(worth(bp=20.0, sign_sync=20.0, alone=1.0, optimum=1e9))
    (caveat,) = found.caveats
    assert "1000, lies on the edge of the grid" in caveat


def test_the_rate_is_chosen_by_validation_on_seeds_of_their_own():
    bench = StepsBench(CLAIM, worth(2.0, 5.0, 1.0))
    foreseen = FrozenHidden().foreseen(bench)
    found = FrozenHidden().apply(bench, np.zeros(5), np.zeros(5))
    searched = [s for group in bench.groups.values() if group.kind == "search" for s in group.specs]
    assert {s.lr for s in searched} == {*CLAIM.learning_rates, 10.0}  # 1.0, the best, was on the edge
    assert {s.seed for s in searched}.isdisjoint(CLAIM.seeds)
    assert "validation_loss" in bench.asked
    assert found.details["readout alone"]["metric"] == "validation_loss"
    asked = {s for group in bench.groups.values() for s in group.specs}
    assert set(foreseen) == {s for s in asked if s.lr == 0.1 or (s in searched and s.lr != 10)}


@pytest.mark.parametrize(("steps", "passed"), [
    ((np.nan, np.nan, 0.3), True),
    ((0.0, 0.0, 0.3), True),
    ((np.nan, 1e-9, 0.3), False),
    ((np.nan, np.nan, np.nan), False),
    ((0.1, np.nan, 0.0), False),
])  # fmt: skip
def test_a_hidden_layer_that_learned_or_a_readout_that_did_not_fails_the_check(monkeypatch, steps, passed):
    monkeypatch.setattr(StepsBench, "steps", steps)
    (check,) = applied(worth(2.0, 5.0, 1.0))[0].checks
    assert check.passed is passed
    assert check.name == "manipulation: frozen_hidden"


class Unrecorded(KnownBench):
    def dataset(self, spec):
        return super().dataset(spec).drop_vars("update_norm")


def test_without_recorded_steps_the_check_is_not_applicable():
    (check,) = applied(worth(2.0, 5.0, 1.0), kind=Unrecorded)[0].checks
    assert check.passed is None


@pytest.mark.parametrize(("setup", "expected", "readout"), [
    ({"hidden": (4,)}, ("1.*",), "3"),
    ({"hidden": (4, 3), "frozen": ["3.*"]}, ("3.*", "1.*"), "5"),
    ({"hidden": (4, 3), "frozen": ["*.bias"]}, ("*.bias", "1.*", "3.*"), "5"),
    ({"hidden": (4, 3), "bias": False}, ("1.*", "3.*"), "5"),
    ({"model": "lenet"}, ("0.*", "3.*", "7.*", "9.*"), "11"),
    ({"model": "convnet"}, ("0.*", "2.*", "5.*"), "7"),
    ({"model": "untied"}, ("0.*", "2.*", "5.*"), "7"),
])  # fmt: skip
def test_all_but_the_last_layer_with_weights_is_frozen_in_every_model(setup, expected, readout):
    claim = CLAIM.model_copy(update={"setup": setup, "task": "mnist_small"})
    assert frozen_hidden(claim) == expected
    spec = claim.spec(claim.baseline, 0, frozen=expected)
    left = [n for n, p in models.build(spec, tasks.load("mnist_small")).named_parameters() if p.requires_grad]
    assert {name.rpartition(".")[0] for name in left} == {readout}


@pytest.mark.parametrize(("claim", "named"), [
    (changed(hidden=()), "needs hidden layers: the mlp with hidden \\[\\]"),
    (changed(frozen=["5.*"]), "holds its weight \\(5.weight\\)"),
    (changed(frozen=["1.*", "3.*"]), "nothing to freeze"),
    (changed(weight_init="nokland"), "layer '1' are all 0 \\(weight_init 'nokland'"),
    (changed(weight_scale=0.0), "weight_scale 0"),
    (CLAIM.model_copy(update={"seeds": (1, 1_000_003)}), "seeds \\[1000003\\] are those that choose"),
    (CLAIM.model_copy(update={"baseline": al.Arm(rule="bp", name="readout alone")}), "rename the arm"),
])  # fmt: skip
def test_claims_without_a_readout_on_hidden_layers_are_refused_in_a_line(claim, named):
    with pytest.raises(SpecError, match=named) as told:
        FrozenHidden().check(claim)
    assert "\n" not in str(told.value)


REFUSED = {"node_perturbation", "weight_perturbation", "soap", "noisy_backprop"}
ARGUMENTS = {
    "sign_sync": {"period": 3},
    "weight_mirror": {"period": 2, "samples": 3},
    "noisy_backprop": {"cosine": 0.5},
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_refused_unless_the_readout_alone_is_the_same_run_as_by_backprop(rule):
    """Decay, momentum and clipping included: under a rule that is not refused, it is the same to the last bit."""
    setup = dict(
        task="mnist_small", hidden=(6, 5), lr=0.1, batch_size=8, steps=6, weight_decay=0.01, momentum=0.5
    )
    setup |= dict(clip=0.7, record_every=0, splits=("validation",), evaluations=2, frozen=HIDDEN)
    args = ARGUMENTS.get(rule, {})
    by_rule, by_bp = (
        train(RunSpec(rule=name, rule_args=given, **setup)) for name, given in ((rule, args), ("bp", {}))
    )
    same = by_rule["validation_loss"].values[-1] == by_bp["validation_loss"].values[-1]
    assert by_bp["validation_loss"].values[-1] < by_bp["validation_loss"].values[0] - 0.01
    assert same == (rule not in REFUSED)
    other = "bp" if rule != "bp" else "fa"
    claim = CLAIM.model_copy(
        update={"treatment": al.Arm(rule=rule, rule_args=args), "baseline": al.Arm(rule=other)}
    )
    if same:
        FrozenHidden().check(claim)
        return
    with pytest.raises(SpecError, match=f"true gradient; under '{rule}'"):
        FrozenHidden().check(claim)


@pytest.fixture(scope="module")
def small():
    setup = {"hidden": (10, 10), "lr": 0.03, "batch_size": 4, "steps": 60, "record_every": 10}
    return CLAIM.model_copy(update={"setup": setup, "smallest_effect": 0.02})


def test_a_real_audit_trains_the_readout_alone(small, tmp_path):
    result = al.audit(small, [FrozenHidden()], store=tmp_path)
    (check,) = result.evidence.checks
    assert check.passed
    assert check.detail == "layers that took steps with the hidden ones frozen: 5; the readout is 5"
    best = result.details["frozen_hidden"]["readout alone"]["best_lr"]
    alone = result.outcomes["readout alone, at its best rate"]
    by_hand = train(small.spec(small.baseline, 2, lr=best, frozen=HIDDEN))["train_loss"].values
    assert alone[2] == pytest.approx(by_hand[np.isfinite(by_hand)][-1], rel=1e-5)
    contrasts = result.contrast_dataset()
    row = contrasts.isel(contrast=np.flatnonzero(contrasts["group"] == "readout alone, at its best rate")[0])
    assert float(row["estimate"]) == pytest.approx(
        np.mean(np.subtract(alone, result.outcomes["treatment"])), rel=1e-6
    )
    assert result.evidence.controls == ()
    assert "not checked by: placebo, spike_in" in result.verdict.caveats
    assert {result.arms[group] for group in result.arms} == {"sign_sync", "bp", "readout alone"}
    rivals = ", ".join(name for name in ALL if name not in ("frozen_hidden", "placebo", "spike_in"))
    assert f"not controlled for: {rivals}" in result.verdict.caveats
    assert "loss_against_lr" in al.figures.audit_figures(result)


def test_a_real_audit_in_which_nothing_was_frozen_is_invalid(small, tmp_path, monkeypatch):
    monkeypatch.setattr("alignlab.audit.controls.frozen_hidden.frozen_hidden", lambda claim: ("1.bias",))
    verdict = al.audit(small, [FrozenHidden()], store=tmp_path).verdict
    assert verdict.kind == "invalid"
    assert verdict.by == ("manipulation: frozen_hidden",)
