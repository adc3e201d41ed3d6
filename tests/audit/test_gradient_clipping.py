"""The control of clip thresholds, on outcomes that are known, and once on real runs."""

import math

import numpy as np
import pytest
import xarray as xr
from known_bench import CLAIM, KnownBench

import alignlab as al
from alignlab.audit.controls import GradientClipping
from alignlab.audit.controls.gradient_clipping import clipped_share
from alignlab.audit.gathering import gather
from alignlab.audit.search import FIRST_TUNING_SEED
from alignlab.audit.verdict import decide
from alignlab.figures.style import level_text
from alignlab.training.errors import SpecError

TURNED = CLAIM.model_copy(update={"treatment": CLAIM.baseline, "baseline": CLAIM.treatment})
GRID = GradientClipping((0.1, 1.0, 10.0))
NORM = {"sign_sync": 40.0, "bp": 4.0}  # of gradients


def share_of(spec):
    """The share of steps at which a norm between 0 and 2 NORM, evenly spread, exceeds the threshold."""
    return max(0.0, 1 - spec.clip / (2 * NORM[spec.rule]))


class ClippedBench(KnownBench):
    """Whose runs of 10 steps record, at steps 4 and 10, the share that was clipped, and a step as long as their threshold
    after one half as long."""

    def __init__(self, claim, value, share=share_of, length=lambda spec: spec.lr * spec.clip):
        super().__init__(claim, value)
        self._share, self._length = share, length

    def dataset(self, spec):
        share, length = self._share(spec), self._length(spec)
        steps = np.array([0, 3, 4, 10])
        norms = np.full((4, 2), np.nan)
        norms[:2] = np.outer([0.5, 1.0], [0.6 * length, 0.8 * length])
        columns = {
            "clip_fraction": ("step", [np.nan, np.nan, share, share]),
            "update_norm": (("step", "layer"), norms),
            "weight_norm": (("step", "layer"), np.full((4, 2), 5.0)),
            "learning_rate": ("step", [spec.lr, spec.lr, np.nan, np.nan]),
        }
        return xr.Dataset(columns, {"step": steps})


def value(spec):
    """Unclipped 1 for sign_sync and 0 for bp; at a threshold less by its distance from 1 for bp (which gains 2), from 10."""
    if spec.clip is None:
        return 1.0 * (spec.rule == "sign_sync") + 0.01 * np.sin(spec.seed)
    peak, at = (2.0, 1.0) if spec.rule == "bp" else (1.5, 10.0)
    return peak - np.log10(spec.clip / at) ** 2 + 0.01 * np.sin(spec.seed)


def found_on(claim=CLAIM, value=value, control=GRID, **more):
    bench = ClippedBench(claim, value, **more)
    sides = [bench.outcomes("t", claim.treatment), bench.outcomes("b", claim.baseline)]
    return control.apply(bench, *sides), bench, sides


@pytest.mark.parametrize(("claim", "sign"), [(CLAIM, 1), (TURNED, -1)])
def test_each_arm_takes_its_own_threshold_and_the_claimed_treatment_meets_the_baseline_at_its_best(
    claim, sign
):
    found, _, _ = found_on(claim)
    assert {arm: own["best_clip"] for arm, own in found.details.items()} == {"sign_sync": 10.0, "bp": 1.0}
    assert np.mean(found.samples.necessity) == pytest.approx(sign * (1.5 - 2.0))
    assert np.mean(found.samples.sufficiency) == pytest.approx(1.0 - 2.0 if sign > 0 else 0.0 - 1.5)
    assert all(check.passed for check in found.checks), found.checks


def test_no_clipping_is_a_choice_and_no_edge():
    found, _, _ = found_on(value=lambda spec: 3.0 if spec.clip is None else np.log10(spec.clip))
    for own in found.details.values():
        assert own["best_clip"] is None
        assert own["clip_thresholds"] == [0.1, 1.0, 10.0, None]
    assert all(check.passed for check in found.checks)
    assert found.checks[0].detail == "best clip threshold none, inside the grid from 0.1 to none"


def test_the_advantage_at_each_common_threshold_is_shown_with_both_shares_treatment_first():
    """sign_sync − bp at c: −1/2 − (log c − 1)² + (log c)²; the shares are those of evenly spread norms."""
    found, bench, (t, b) = found_on()
    shown = {c.label: np.mean(c.differences) for c in found.contrasts}
    assert shown == pytest.approx(
        {
            "clip at 0.1 (100 / 99 %)": -0.5 - 4 + 1,
            "clip at 1 (99 / 88 %)": -0.5 - 1,
            "clip at 10 (88 / 0 %)": -0.5 + 1,
            "clip at none": 1.0,
        }
    )
    assert found.contrasts[-1].differences == tuple(t - b)
    crossed = {name: group for name, group in bench.groups.items() if group.kind == "crossed"}
    assert set(crossed) == {f"{arm} at clip {c}" for arm in ("bp", "sign_sync") for c in ("0.1", "1", "10")}
    turned = found_on(TURNED)[0].contrasts[2]
    assert (turned.label, np.mean(turned.differences)) == (
        "clip at 10 (0 / 88 %)",
        pytest.approx(-0.5),
    )


def test_figures_show_the_names_of_thresholds_whole():
    found, _, _ = found_on(control=GradientClipping(), share=lambda spec: 1.0)
    assert found.contrasts[0].label == "clip at 0.0316 (100 / 100 %)"
    assert [level_text(c.label) for c in found.contrasts] == [c.label for c in found.contrasts]


def test_the_shares_of_clipped_steps_stand_in_the_details():
    found, _, _ = found_on()
    assert found.details["bp"]["clipped_steps"] == pytest.approx(
        {"0.1": 0.9875, "1": 0.875, "10": 0.0, "none": 0.0}
    )


def test_a_share_counts_steps_and_not_evaluations():
    class Uneven(ClippedBench):
        def dataset(self, spec):
            return xr.Dataset(
                {"clip_fraction": ("step", [np.nan, 1.0, np.nan, 0.5])}, {"step": [0, 2, 5, 10]}
            )

    bench = Uneven(CLAIM, value)
    spec = CLAIM.spec(CLAIM.baseline, 0, clip=1.0)
    assert clipped_share(bench, spec) == pytest.approx((2 * 1.0 + 8 * 0.5) / 10)
    assert clipped_share(bench, spec.changed(clip=None)) == 0.0


def test_a_run_that_ended_before_any_evaluation_has_no_share():
    found, _, _ = found_on(share=lambda spec: math.nan if spec.seed % 2 else share_of(spec))
    assert found.details["bp"]["clipped_steps"]["1"] == pytest.approx(0.875)


def test_the_low_edge_is_extended_by_half_decades_for_both_arms_and_fails_if_it_stays():
    def low(spec):
        return -5.0 if spec.clip is None else -abs(np.log10(spec.clip) + (2 if spec.rule == "bp" else 0))

    found, _, _ = found_on(value=low)
    for own in found.details.values():
        assert own["clip_thresholds"] == [0.00316, 0.01, 0.0316, 0.1, 1.0, 10.0, None]
    assert found.details["bp"]["best_clip"] == 0.01
    assert [check.passed for check in found.checks] == [True] * 4
    stays, _, _ = found_on(value=lambda spec: -5.0 if spec.clip is None else -np.log10(spec.clip))
    assert [check.passed for check in stays.checks] == [False, False, True, True]
    assert "on the edge of the grid from 0.00316 to none" in stays.checks[0].detail


def test_thresholds_that_clip_nothing_are_no_choice_and_fail_the_manipulation_check():
    found, _, _ = found_on(value=lambda spec: 0.01 * np.sin(spec.seed), share=lambda spec: 0.0)
    assert all(own["best_clip"] is None for own in found.details.values())
    assert [check.passed for check in found.checks] == [True, True, True, False]
    assert "pass lower thresholds" in found.checks[-1].detail


def test_one_arm_that_is_never_clipped_fails_the_manipulation_check():
    for idle in ("bp", "sign_sync"):
        found, _, _ = found_on(
            share=lambda spec, idle=idle: 0.09 * (spec.rule == idle) or 1.0 * (spec.rule != idle)
        )
        assert [check.name for check in found.checks if check.failed] == ["manipulation: gradient_clipping"]
        assert f"{idle} was clipped in 9 % of its steps" in found.checks[-1].detail


def test_steps_below_what_float32_weights_can_take_do_not_fail_the_manipulation_check():
    """Of weights of norm 5 √2 steps are rounded by up to 8e-7."""
    length = lambda spec: spec.lr * spec.clip + 8e-7  # noqa: E731
    faint = CLAIM.model_copy(update={"setup": {**CLAIM.setup, "lr": 1e-7}})
    assert found_on(faint, length=length)[0].checks[-1].passed


@pytest.mark.parametrize(
    "length",
    [
        lambda spec: 4.0 * spec.lr,
        lambda spec: 1.02 * spec.lr * spec.clip,
        lambda spec: spec.lr * spec.clip * (1.02 if spec.seed == 4 else 1),
        lambda spec: math.nan,
    ],
)
def test_steps_longer_than_their_threshold_allows_or_unknown_fail_the_manipulation_check(length):
    assert found_on(length=length)[0].checks[-1].failed


@pytest.mark.parametrize(
    "setup", [{"momentum": 0.9}, {"optimizer": "adam"}, {"record_every": 0}, {"weight_decay": 0.1}]
)
def test_lengths_of_steps_are_checked_only_where_steps_are_gradients(setup):
    claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, **setup}})
    check = found_on(claim, length=lambda spec: 1e6)[0].checks[-1]
    assert check.passed
    assert "under plain sgd with recorded steps alone" in check.detail


def test_a_gap_beside_the_choice_in_which_most_steps_are_clipped_is_told():
    always = {"share": lambda spec: 0.9}
    caveats = found_on(value=lambda s: 3.0 if s.clip is None else 0.0, **always)[0].caveats
    assert len(caveats) == 3
    assert "between the clip threshold 10 and none, of which sign_sync took one" in caveats[1]
    assert "90 % of its steps" in caveats[1]
    assert [("sign_sync" in c) for c in found_on(**always)[0].caveats] == [False, True]  # bp took 1
    assert len(found_on(share=lambda spec: 0.4)[0].caveats) == 1


def test_the_claims_own_threshold_is_among_the_choices_and_is_not_run_twice():
    claim = CLAIM.model_copy(update={"setup": {**CLAIM.setup, "clip": 3.0}})
    found, bench, (t, b) = found_on(claim)
    assert found.details["bp"]["clip_thresholds"] == [0.1, 1.0, 3.0, 10.0, None]
    assert not any("clip 3" in name for name, group in bench.groups.items() if group.kind == "crossed")
    own = next(c for c in found.contrasts if c.label.startswith("clip at 3 "))
    assert own.differences == tuple(t - b)
    assert "clip at none" in {c.label for c in found.contrasts}


def test_an_advantage_over_a_baseline_that_lacks_clipping_is_explained_by_it():
    def saved(spec):  # backprop is as good as the rule once it is clipped at 1
        gain = 1.0 if spec.rule == "sign_sync" or spec.clip == 1.0 else 0.0
        return gain + 0.01 * np.sin(spec.seed + (spec.rule == "bp"))

    found, _, (t, b) = found_on(value=saved)
    assert (
        str(decide(gather(t - b, [found.samples], 0.1, checks=found.checks)))
        == "explained_by:gradient_clipping"
    )


def test_what_is_crossed_and_searched_is_foreseen():
    foreseen = set(GRID.foreseen(ClippedBench(CLAIM, value)))
    _, bench, _ = found_on()
    ran = {
        spec for group in bench.groups.values() if group.kind in ("crossed", "search") for spec in group.specs
    }
    assert foreseen == ran
    searched = {s.seed for group in bench.groups.values() if group.kind == "search" for s in group.specs}
    assert searched == {FIRST_TUNING_SEED, FIRST_TUNING_SEED + 1}
    assert bench.asked == {"validation_loss", None}


def test_studies_choose_thresholds_too():
    found, _, _ = found_on(CLAIM.model_copy(update={"seeds": tuple(range(6)), "tuning_studies": 3}))
    assert (len(found.samples.necessity), found.samples.study_size) == (3, 2)
    assert "clip thresholds were chosen in 3 independent studies" in found.caveats[0]
    assert found.details["bp"]["clipped_steps"]["1"] == pytest.approx(0.875)
    assert found.checks[0].detail == "best clip thresholds 10, inside the grid in all 3 studies"


@pytest.mark.parametrize(
    "thresholds", [(0.1, 1.0), (0.1, 0.1, 1.0), (0.0, 0.1, 1.0), (0.1, 1.0, math.inf), (True, 0.1, 3.0)]
)
def test_thresholds_that_make_no_grid_are_refused(thresholds):
    with pytest.raises(ValueError, match="thresholds is"):
        GradientClipping(thresholds)


def test_seeds_that_choose_thresholds_are_refused(tmp_path):
    claim = CLAIM.model_copy(update={"seeds": (0, FIRST_TUNING_SEED)})
    with pytest.raises(SpecError, match="are those that choose the clip thresholds"):
        al.audit(claim, [GRID], store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_real_audit_clips(tmp_path):
    setup = {"hidden": (6,), "batch_size": 2, "steps": 20, "lr": 0.1, "record_every": 5}
    claim = al.Claim(**{**CLAIM.model_dump(), "setup": setup, "seeds": range(3), "tuning_seeds": 1})
    control = GradientClipping((0.01, 0.1, 1.0))
    result = al.audit(claim, [control], store=tmp_path)
    (check,) = [c for c in result.evidence.checks if c.name.startswith("manipulation")]
    assert check.passed, check.detail
    shares = result.details["gradient_clipping"]["bp"]["clipped_steps"]
    assert 1.0 == shares["0.01"] > shares["1"] >= shares["none"] == 0.0
    at_01 = np.subtract(result.outcomes["bp at clip 0.1"], result.outcomes["sign_sync at clip 0.1"])
    assert result.contrasts[1].differences == pytest.approx(tuple(at_01))
    head, _, *rows = result.table().splitlines()[:6]
    ends = {line.index("]") - line.index("[") and line.index("[") for line in rows}
    assert ends == {head.index("interval")}
    assert al.audit(claim, [control], store=tmp_path).computed == 0


@pytest.mark.parametrize("outcome", ["train_loss", "train_accuracy"])
def test_thresholds_that_nothing_reaches_change_no_outcome_and_draw_an_interval_of_losses_alone(
    tmp_path, outcome
):
    """Losses that are alike to the last bit are of one computation; of accuracies three that are alike tell nothing."""
    setup = {"hidden": (6,), "batch_size": 2, "steps": 10, "lr": 0.01, "record_every": 5}
    direction = {"train_loss": "lower", "train_accuracy": "higher"}[outcome]
    changed = {
        "setup": setup,
        "seeds": range(3),
        "tuning_seeds": 1,
        "outcome": outcome,
        "direction": direction,
    }
    claim = al.Claim(**{**CLAIM.model_dump(), **changed})
    result = al.audit(claim, [GradientClipping((1e6, 1e7, 1e8))], store=tmp_path)
    removed = result.evidence.rows()[-1]
    assert (removed["estimate"], removed["reading"]) == (0.0, "changed no outcome")
    row = result.contrast_dataset().isel(contrast=3)
    assert str(row["label"].values) == "gradient_clipping: what it accounts for"
    unknown = outcome == "train_accuracy"
    end = np.nan if unknown else 0.0
    np.testing.assert_array_equal([float(row["low"]), float(row["high"])], [end, end])
    texts = al.figures.audit_figures(result)["forest"].axes[0].texts
    assert sum("no interval" in text.get_text() for text in texts) == unknown
