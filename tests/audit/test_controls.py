"""Controls on a bench whose outcomes are known, so that what they conclude can be checked by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from known_bench import CLAIM, KnownBench, RecordingBench, recorded

import alignlab as al
from alignlab.audit.bench import _final_values, _samples
from alignlab.audit.controls import ALL, Magnitude, Placebo, ReplayedMagnitude, Tuning, WeightNorm
from alignlab.audit.controls.magnitude import manipulation_check
from alignlab.audit.gathering import gather
from alignlab.audit.statistics import paired
from alignlab.training.errors import SpecError
from alignlab.training.spec import SPLITS, RunSpec


def noise(spec):
    return 0.01 * np.sin(spec.seed)


def claimed(bench):
    return (
        bench.outcomes(name, arm)
        for name, arm in (("treatment", bench.claim.treatment), ("baseline", bench.claim.baseline))
    )


def test_magnitude_separates_direction_from_size():
    def value(spec):  # direction of the rule costs 1, its size gains 3, both together another 0.5
        own_direction = spec.rule != "bp" and (spec.graft is None or spec.graft.direction == "rule")
        own_size = spec.rule != "bp" and (spec.graft is None or spec.graft.magnitude == "rule")
        return -1.0 * own_direction + 3.0 * own_size + 0.5 * (own_direction and own_size) + noise(spec)

    bench = KnownBench(CLAIM, value)
    found = Magnitude().apply(bench, *claimed(bench))
    effects = {contrast.label: np.mean(contrast.differences) for contrast in found.contrasts}
    assert effects == pytest.approx({"direction": -0.75, "magnitude": 3.25, "interaction": 0.5})
    assert np.mean(found.samples.necessity) == pytest.approx(-1.0)
    assert np.mean(found.samples.sufficiency) == pytest.approx(-0.5)
    assert effects["direction"] + effects["magnitude"] == pytest.approx(2.5)
    assert found.checks[0].passed


@pytest.mark.parametrize("control", [Magnitude(), ReplayedMagnitude(), WeightNorm()], ids=lambda c: c.name)
@pytest.mark.parametrize(
    ("rule", "bias", "told"),
    [("weight_perturbation", True, 1), ("weight_perturbation", False, 0), ("fa", True, 0)],
)
def test_what_a_rule_that_fills_gradients_itself_does_to_biases_is_told_to_count_as_direction(
    control, rule, bias, told
):
    setup = {**CLAIM.setup, "bias": bias}
    claim = CLAIM.model_copy(update={"treatment": al.Arm(rule=rule), "setup": setup})
    bench = RecordingBench(claim, noise)
    sides = (bench.outcomes(arm.label, arm) for arm in (claim.treatment, claim.baseline))
    caveats = control.apply(bench, *sides).caveats
    assert sum(f"what {rule} does to biases alone counts as direction" in c for c in caveats) == told


def test_magnitude_works_where_backprop_is_the_treatment():
    turned = CLAIM.model_copy(update={"treatment": CLAIM.baseline, "baseline": CLAIM.treatment})

    def value(spec):  # the direction of bp alone is worth 2
        return 2.0 * (spec.rule == "bp" or (spec.graft is not None and spec.graft.direction == "bp")) + noise(
            spec
        )

    bench = KnownBench(turned, value)
    treatment, baseline = bench.outcomes("t", turned.treatment), bench.outcomes("b", turned.baseline)
    found = Magnitude().apply(bench, treatment, baseline)
    assert np.mean(found.samples.necessity) == pytest.approx(2.0)
    assert np.mean(found.samples.sufficiency) == pytest.approx(2.0)


def test_a_graft_that_did_not_take_fails_the_manipulation_check():
    spec = CLAIM.spec(CLAIM.treatment, 0, graft={"direction": "rule", "magnitude": "bp"})
    reverse = CLAIM.spec(CLAIM.treatment, 0, graft={"direction": "bp", "magnitude": "rule"})
    good, bad = KnownBench(CLAIM, noise), KnownBench(CLAIM, noise, applied=lambda spec: 7.0)
    never = KnownBench(CLAIM, noise, applied=lambda spec: np.nan)
    assert manipulation_check(good, [spec, reverse]).passed
    assert not manipulation_check(bad, [spec]).passed
    assert manipulation_check(bad, [reverse]).passed
    assert not manipulation_check(never, [spec]).passed


def test_sizes_that_a_silent_layer_could_not_be_given_are_a_caveat_of_a_graft():
    """A B of zero has neither direction nor size: the exchange counts what it costs half as each."""

    class Silent(KnownBench):
        def dataset(self, spec):  # of two layers, at three steps; the rule sends nothing to the lower one
            return recorded(np.array([[0.0, 1.0]] * 3), np.array([[0.0, 1.0]] * 3))

    bench = Silent(CLAIM, noise)
    found = Magnitude().apply(bench, *claimed(bench))
    assert not any(check.failed for check in found.checks)
    assert found.caveats == [
        "magnitude: up to 100 % of the exchanged sizes (of a layer, in one run) met a gradient of zero and made no step: there "
        "the arm had nothing that could be given a size"
    ]
    assert Magnitude().apply(KnownBench(CLAIM, noise), *claimed(KnownBench(CLAIM, noise))).caveats == []


def test_magnitude_refuses_two_rules_and_two_rates():
    two_rules = CLAIM.model_copy(update={"baseline": al.Arm(rule="fa")})
    two_rates = CLAIM.model_copy(update={"baseline": al.Arm(rule="bp", lr=0.3)})
    for claim, named in ((two_rules, "'fa'"), (two_rates, "learning rate")):
        with pytest.raises(SpecError, match=named):
            Magnitude().apply(KnownBench(claim, noise), np.zeros(5), np.zeros(5))


@pytest.mark.parametrize("name", ["magnitude", "global_magnitude", "spike_in"])
@pytest.mark.parametrize(
    "setup", [{"momentum": 0.9}, {"weight_decay": 0.1}, {"clip": 1.0}, {"record_every": 0}]
)
def test_sizes_of_steps_that_are_no_gradients_or_unrecorded_are_refused(name, setup):
    claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, **setup}})
    with pytest.raises(SpecError, match="checks each step's size against the gradient's"):
        ALL[name]().check(claim)


def parabola(optimum, top):
    return lambda spec: top - np.log10(spec.lr / optimum) ** 2 + noise(spec)


def test_tuning_compares_best_with_best_and_extends_both_grids():
    curves = {"sign_sync": parabola(0.1, 1.0), "bp": parabola(10.0, 2.0)}
    bench = KnownBench(CLAIM, lambda spec: curves[spec.rule](spec))
    found = Tuning().apply(bench, *claimed(bench))
    assert found.details["sign_sync"]["best_lr"] == pytest.approx(0.1)
    assert found.details["bp"]["best_lr"] == pytest.approx(10.0)
    assert found.details["bp"]["learning_rates"] == pytest.approx([0.01, 0.1, 1.0, 10.0, 100.0])
    assert found.details["sign_sync"]["learning_rates"] == found.details["bp"]["learning_rates"]
    assert all(check.passed for check in found.checks)
    assert np.mean(found.samples.necessity) == pytest.approx(-1.0)


def test_a_rate_of_an_arms_own_between_those_of_the_grid_is_no_more_than_a_rate():
    """Both arms are backprop, one at the best rate there is: the grid's 0.1 and 1 are worse by 0.3."""
    arms = {"treatment": al.Arm(rule="bp", lr=0.3, name="new"), "baseline": al.Arm(rule="bp", lr=0.03)}
    bench = KnownBench(CLAIM.model_copy(update=arms), parabola(0.3, 1.0))
    treatment, baseline = claimed(bench)
    found = Tuning().apply(bench, treatment, baseline)
    assert found.details["bp"]["learning_rates"] == [0.01, 0.03, 0.1, 0.3, 1.0]
    assert [found.details[arm]["best_lr"] for arm in ("new", "bp")] == [0.3, 0.3]
    samples = found.samples
    assert np.mean(treatment - baseline) == pytest.approx(1.0)
    assert [np.mean(samples.necessity), np.mean(samples.sufficiency)] == pytest.approx([0.0, 0.0])


def test_an_own_rate_next_to_the_edge_does_not_make_the_grid_grow_by_less_than_its_own_factor():
    claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, "lr": 0.9}})
    bench = KnownBench(claim, parabola(8.0, 1.0))
    found = Tuning().apply(bench, *claimed(bench))
    assert found.details["bp"]["learning_rates"] == [0.01, 0.1, 0.9, 1.0, 10.0, 100.0]


@pytest.mark.parametrize(("own", "lowest"), [(0.002, [0.001, 0.002]), (1e-5, [0.001]), (9.99e-4, [0.001])])
def test_an_own_rate_far_beyond_the_grid_leaves_no_hole_in_it(own, lowest):
    """Beside 1e-5 and 0.01, of which the latter is better, 0.001 would not be tried."""
    claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, "lr": own}})
    bench = KnownBench(claim, parabola(0.008, 1.0))
    found = Tuning().apply(bench, *claimed(bench))
    assert found.details["bp"]["learning_rates"] == [*lowest, 0.01, 0.1, 1.0]
    assert all(check.passed for check in found.checks)


@pytest.mark.parametrize("own", [0.0099, 1.01])
def test_an_own_rate_next_to_an_edge_does_not_stand_for_what_lies_beyond_it(own):
    """A step beyond it is far better, and beside it, by chance, a little worse than on it."""
    best = 0.001 if own < 0.01 else 10.0
    claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, "lr": own}})
    bench = KnownBench(claim, lambda spec: -2.0 if spec.lr == own else parabola(best, 1.0)(spec))
    found = Tuning().apply(bench, *claimed(bench))
    assert found.details["bp"]["best_lr"] == pytest.approx(best)


def test_an_own_rate_a_rounded_step_below_the_grid_joins_it_as_one_above_does():
    grid = (0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316, 1.0)
    for own in (0.000316, 3.16):
        claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, "lr": own}, "learning_rates": grid})
        assert Tuning().grid(claim).values == tuple(sorted((*grid, own)))


@pytest.mark.parametrize("control", [Magnitude(), Tuning()])
def test_what_a_control_accounts_for_is_the_claimed_advantage_less_what_is_left_of_it(control):
    bench = KnownBench(CLAIM, lambda spec: parabola(0.5 if spec.rule == "bp" else 0.2, 1.0)(spec))
    treatment, baseline = claimed(bench)
    samples = control.apply(bench, treatment, baseline).samples
    removed = gather(treatment - baseline, [samples], 0.1).controls[0].removed
    assert removed.estimate == pytest.approx(np.mean(treatment - baseline) - np.mean(samples.necessity))


def test_an_optimum_that_stays_on_the_edge_fails_the_check():
    bench = KnownBench(CLAIM, lambda spec: np.log10(spec.lr) + noise(spec))
    found = Tuning().apply(bench, *claimed(bench))
    assert {check.name for check in found.checks if not check.passed} == {
        "grid edge: sign_sync",
        "grid edge: bp",
    }


@pytest.mark.parametrize("name", ["magnitude", "global_magnitude", "alignment", "spike_in"])
def test_a_control_that_cannot_set_adams_steps_says_that_it_may_be_left_out(name):
    claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, "optimizer": "adam"}})
    with pytest.raises(SpecError, match=f"control '{name}'.* use optimizer sgd, or leave the control out$"):
        ALL[name]().check(claim)


def test_tuning_seeds_are_not_the_claims():
    seen = set()
    bench = KnownBench(CLAIM, lambda spec: seen.add((spec.seed, spec.lr)) or parabola(0.1, 1)(spec))
    Tuning().apply(bench, *claimed(bench))
    choosing = {seed for seed, lr in seen if lr == 0.01}
    assert choosing.isdisjoint(CLAIM.seeds)
    assert len(choosing) == CLAIM.tuning_seeds


def test_placebo_passes_on_noise_and_fails_on_an_effect():
    quiet = KnownBench(CLAIM, lambda spec: 0.3 * np.sin(10 * spec.seed + spec.order))
    shifted = KnownBench(CLAIM, lambda spec: noise(spec) + (1.0 + 0.1 * np.cos(spec.seed)) * spec.order)
    assert Placebo().apply(quiet, *claimed(quiet)).checks[0].passed
    assert not Placebo().apply(shifted, *claimed(shifted)).checks[0].passed


def test_an_effect_too_small_to_matter_does_not_fail_the_placebo():
    bench = KnownBench(CLAIM, lambda spec: (0.001 * np.sin(spec.seed) + 0.02) * spec.order)
    (check,) = Placebo().apply(bench, *claimed(bench)).checks
    assert check.passed
    assert check.detail.endswith("which is not 0 but less than m = 0.1")


def test_a_diverged_run_counts_as_untrained():
    losses = {"train_loss": np.array([2.3, np.nan, 1e30]), "step": np.arange(3)}
    diverged, finished = (losses | {"status": np.array(status)} for status in ("diverged", "finished"))
    assert _final_values(diverged) == {"diverged": 1.0, "train_loss": 2.3, "initial train_loss": 2.3}
    assert _final_values(finished)["train_loss"] == np.float64(1e30)


@pytest.mark.parametrize(
    ("setup", "applies"),
    [
        ({"batch_size": 4}, False),
        ({"batch_size": 64}, False),
        ({"batch_size": 3}, True),
        ({"batch_size": 4, "sampling": "replacement"}, True),
    ],
)
def test_the_placebo_does_not_apply_where_no_order_can_matter(setup, applies):
    claim = CLAIM.model_copy(update={"setup": setup})
    quiet = KnownBench(claim, lambda spec: 1e-8 * np.sin(10 * spec.seed + spec.order))
    found = Placebo().apply(quiet, *claimed(quiet))
    assert found.checks[0].passed is (True if applies else None)
    assert not any(contrast.compares for contrast in found.contrasts)
    assert bool(found.caveats) is not applies
    wild = KnownBench(claim, lambda spec: noise(spec) + (1 + 0.1 * np.cos(spec.seed)) * spec.order)
    assert Placebo().apply(wild, *claimed(wild)).checks[0].failed  # and yet it did: something is wrong


def test_a_placebo_of_nothing_but_equal_outcomes_shows_nothing():
    bench = KnownBench(CLAIM, noise)
    assert Placebo().apply(bench, *claimed(bench)).checks[0].passed is None
    one = KnownBench(CLAIM, lambda spec: noise(spec) + 1e-3 * spec.order * (spec.seed == CLAIM.seeds[0]))
    assert Placebo().apply(one, *claimed(one)).checks[0].passed is True  # it could have been otherwise


def test_equal_differences_of_accuracies_are_equal_although_float32_rounds_them():
    def ends(first, last):
        table = {"test_accuracy": np.array([first, last], np.float32), "status": np.array("finished")}
        return _final_values(table)["test_accuracy"]

    assert np.ptp([np.float32(a) - np.float64(np.float32(b)) for a, b in ((0.91, 0.66), (0.26, 0.01))]) > 1e-9
    assert paired([ends(0, 0.91) - ends(0, 0.66), ends(0, 0.26) - ends(0, 0.01)]).tied


def test_equal_differences_of_accuracies_are_equal_where_no_decimal_is_a_share_of_the_samples():
    def ends(right):
        table = {
            "test_accuracy": np.array([0, right / 41], np.float32),
            "status": np.array("finished"),
        }
        return _final_values(table, _samples(SimpleNamespace(**dict.fromkeys(SPLITS, range(41)))))

    right = [(37, 36), (34, 33), (35, 34)]
    assert paired([ends(a)["test_accuracy"] - ends(b)["test_accuracy"] for a, b in right]).tied


def test_an_accuracy_over_positions_of_sequences_is_not_rounded_to_a_share_of_the_sequences():
    table = {"test_accuracy": np.array([0, 0.37], np.float32), "status": np.array("finished")}
    samples = _samples(SimpleNamespace(**dict.fromkeys(SPLITS, range(10))))
    assert _final_values(table, samples)["test_accuracy"] == 0.37


def test_controls_are_listed_under_the_names_that_claims_use():
    assert all(name == control.name for name, control in ALL.items())
    with pytest.raises(SpecError, match=f"expected different ones out of {', '.join(ALL)}"):
        al.Claim(**{**CLAIM.model_dump(), "controls": ("magnitude", "magnitud")})
    assert set(al.Claim.model_fields["controls"].default) <= set(ALL)
    assert isinstance(CLAIM.spec(CLAIM.treatment, 0), RunSpec)
    assert SimpleNamespace(**{name: control.name for name, control in ALL.items()}).tuning == "tuning"
