"""The control of initial scales, on outcomes that are known, and once on real runs."""

import numpy as np
import pytest
import xarray as xr
from known_bench import CLAIM, KnownBench

import alignlab as al
from alignlab.audit.controls import InitScale
from alignlab.audit.gathering import gather
from alignlab.audit.search import FIRST_TUNING_SEED
from alignlab.audit.verdict import decide
from alignlab.training.errors import SpecError

TURNED = CLAIM.model_copy(update={"treatment": CLAIM.baseline, "baseline": CLAIM.treatment})


class ScaledBench(KnownBench):
    """Whose runs record the initial norms that they should have, or those of ``norms``."""

    def __init__(self, claim, value, norms=lambda spec: spec.weight_scale * np.array([3.0, 2.0])):
        super().__init__(claim, value)
        self._norms = norms

    def dataset(self, spec):
        norms = np.array([self._norms(spec), [7.0, 7.0]])
        return xr.Dataset({"weight_norm": (("step", "layer"), norms)})


def value(spec):
    """sign_sync is best at twice the claimed scale, bp at half of it; log2 of the scale costs its square, bp is 1 ahead."""
    off = np.log2(spec.weight_scale) + (1 if spec.rule == "bp" else -1)
    return 1.0 * (spec.rule == "bp") - off**2 + 0.01 * np.sin(spec.seed)


def found_on(claim=CLAIM, value=value, control=None, **more):
    bench = ScaledBench(claim, value, **more)
    sides = [bench.outcomes("t", claim.treatment), bench.outcomes("b", claim.baseline)]
    return (control or InitScale()).apply(bench, *sides), bench, sides


@pytest.mark.parametrize(("claim", "sign"), [(CLAIM, 1), (TURNED, -1)])
def test_each_arm_takes_its_own_scale_and_the_claimed_treatment_meets_the_baseline_at_its_best(claim, sign):
    """As claimed (scale 1): sign_sync −1, bp 0. Best: sign_sync 0 at 2, bp 1 at 1/2."""
    found, _, _ = found_on(claim)
    assert found.details["sign_sync"]["best_weight_scale"] == 2.0
    assert found.details["bp"]["best_weight_scale"] == 0.5
    assert np.mean(found.samples.necessity) == pytest.approx(sign * -1.0)
    assert np.mean(found.samples.sufficiency) == pytest.approx(-2.0 if sign > 0 else 0.0)
    assert [check.passed for check in found.checks] == [True] * 4


def test_the_advantage_at_each_common_scale_is_shown_with_the_treatment_first():
    """(bp − sign_sync) = 1 − (l + 1)² + (l − 1)² = 1 − 4 l for l = log2 of the factor."""
    found, bench, (t, b) = found_on(TURNED)
    shown = {c.label: np.mean(c.differences) for c in found.contrasts}
    assert shown == pytest.approx(
        {
            f"init scale × {f}": 1.0 - 4 * log
            for f, log in (("1/4", -2), ("1/2", -1), ("1", 0), ("2", 1), ("4", 2))
        }
    )
    assert found.contrasts[2].differences == tuple(t - b)
    crossed = {name: group for name, group in bench.groups.items() if group.kind == "crossed"}
    assert set(crossed) == {
        f"{arm} at init scale {f}" for arm in ("bp", "sign_sync") for f in ("0.25", "0.5", "2", "4")
    }
    assert all(tuple(s.seed for s in group.specs) == CLAIM.seeds for group in crossed.values())


def test_factors_are_times_the_claims_own_scale():
    claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, "weight_scale": 0.5}})
    found, bench, _ = found_on(claim)
    assert found.details["bp"]["init_scales"] == [0.125, 0.25, 0.5, 1.0, 2.0, 4.0]  # extended: best at 2
    tried = {
        spec.weight_scale
        for group in bench.groups.values()
        if group.kind == "crossed"
        for spec in group.specs
    }
    assert tried == {0.125, 0.25, 1.0, 2.0}
    assert found.contrasts[2].label == "init scale × 1"
    assert found.checks[-1].passed


def test_scales_are_chosen_on_tuning_seeds_with_equal_budgets_and_extended_at_both_edges():
    far = {"sign_sync": 4, "bp": -4}  # log2 of the best scale

    def distant(spec):
        return -abs(np.log2(spec.weight_scale) - far[spec.rule])

    found, bench, _ = found_on(value=distant)
    assert {arm: own["best_weight_scale"] for arm, own in found.details.items()} == {
        "sign_sync": 16.0,
        "bp": 0.0625,
    }
    for own in found.details.values():
        assert own["init_scales"] == [0.0312, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert all(check.passed for check in found.checks)
    searched = [group for group in bench.groups.values() if group.kind == "search"]
    assert {spec.seed for group in searched for spec in group.specs} == {
        FIRST_TUNING_SEED,
        FIRST_TUNING_SEED + 1,
    }
    assert bench.asked == {"validation_loss", None}


def test_an_optimum_that_stays_on_the_edge_fails_the_check():
    found, _, _ = found_on(value=lambda spec: np.log2(spec.weight_scale) * (1 if spec.rule == "bp" else -1))
    failed = {check.name for check in found.checks if check.failed}
    assert failed == {"grid edge, init scales: bp", "grid edge, init scales: sign_sync"}


@pytest.mark.parametrize(
    "norms",
    [
        lambda spec: [3.0, 2.0],  # nothing was scaled
        lambda spec: [3.0 * spec.weight_scale, 2.0],  # a layer was not
        lambda spec: [
            3.0 * spec.weight_scale,
            2.0 * spec.weight_scale * (1.01 if (spec.seed, spec.weight_scale) == (4, 2.0) else 1),
        ],  # in a run
        lambda spec: [np.nan, np.nan],
    ],
)
def test_scales_that_did_not_reach_the_runs_fail_the_manipulation_check(norms):
    check = found_on(norms=norms)[0].checks[-1]
    assert check.name == "manipulation: init_scale"
    assert check.failed


def test_layers_without_a_norm_do_not_fail_the_manipulation_check():
    assert found_on(norms=lambda spec: [np.nan, 2.0 * spec.weight_scale])[0].checks[-1].passed
    assert found_on(norms=lambda spec: [0.0, 2.0 * spec.weight_scale])[0].checks[-1].passed


def test_an_advantage_that_is_one_of_scale_is_explained_by_it():
    def lucky(
        spec,
    ):  # the arms are equal but for the scale that suits them, and the claim has that of sign_sync
        best = 1.0 if spec.rule == "sign_sync" else 2.0
        return -(np.log2(spec.weight_scale / best) ** 2) + 0.01 * np.sin(spec.seed + (spec.rule == "bp"))

    found, _, (t, b) = found_on(value=lucky)
    assert str(decide(gather(t - b, [found.samples], 0.1, checks=found.checks))) == "explained_by:init_scale"


def test_what_is_crossed_and_searched_is_foreseen():
    bench = ScaledBench(CLAIM, value)
    foreseen = set(InitScale().foreseen(bench))
    _, bench, _ = found_on()
    apart = {"t", "b", "sign_sync, at its best init scale", "bp, at its best init scale"}
    assert foreseen == {
        spec for name, group in bench.groups.items() if name not in apart for spec in group.specs
    }


def test_studies_choose_scales_too():
    claim = CLAIM.model_copy(update={"seeds": tuple(range(6)), "tuning_studies": 3})
    found, _, _ = found_on(claim)
    assert (len(found.samples.necessity), found.samples.study_size) == (3, 2)
    assert len(found.contrasts[0].differences) == 6
    assert "init scales were chosen in 3 independent studies" in found.caveats[0]


@pytest.mark.parametrize(
    ("setup", "named"),
    [
        ({"weight_scale": 0.0}, "weight_scale is 0.0"),
        ({"weight_init": "nokland"}, "weight_init is 'nokland'"),
        ({"record_every": 0}, "record_every is 0"),
    ],
)
def test_claims_without_anything_to_scale_or_to_check_by_are_refused(setup, named, tmp_path):
    claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, **setup}})
    with pytest.raises(SpecError, match=f"^control 'init_scale' .*{named}"):
        al.audit(claim, [InitScale()], store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_seeds_that_choose_scales_are_refused():
    with pytest.raises(SpecError, match="are those that choose the init scales"):
        InitScale().check(CLAIM.model_copy(update={"seeds": (0, FIRST_TUNING_SEED)}))


@pytest.mark.parametrize(
    "factors",
    [(0.5, 1.0), (0.5, 2.0, 4.0), (1.0, 1.0, 2.0), (0.0, 1.0, 2.0), (1.0, 2.0, np.inf), (True, 2.0, 3.0)],
)
def test_factors_that_make_no_grid_are_refused(factors):
    with pytest.raises(ValueError, match="factors is"):
        InitScale(factors)


def test_a_real_audit_crosses_the_scales(tmp_path):
    setup = {"hidden": (6,), "batch_size": 2, "steps": 20, "lr": 0.1, "record_every": 10}
    claim = al.Claim(
        **{
            **CLAIM.model_dump(),
            "setup": setup,
            "seeds": range(3),
            "tuning_seeds": 1,
            "controls": ("init_scale",),
        }
    )
    result = al.audit(claim, store=tmp_path)
    checks = {check.name: check.passed for check in result.evidence.checks}
    assert checks["manipulation: init_scale"]
    assert checks["budgets: init scales"]
    labels = result.contrast_dataset()["label"].values.tolist()
    assert labels[-5:] == [f"init scale × {f}" for f in ("1/4", "1/2", "1", "2", "4")]
    at_2 = np.subtract(result.outcomes["bp at init scale 2"], result.outcomes["sign_sync at init scale 2"])
    assert result.contrasts[3].differences == pytest.approx(tuple(at_2))
    assert not any("init_scale" in caveat for caveat in result.verdict.caveats if "not controlled" in caveat)
    assert any("tuning" in caveat for caveat in result.verdict.caveats if "not controlled" in caveat)
    assert "loss_against_lr" not in al.figures.audit_figures(result)
    assert al.audit(claim, store=tmp_path).computed == 0
