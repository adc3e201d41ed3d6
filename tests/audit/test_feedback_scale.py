"""The scale of feedback against its direction: on a bench whose outcomes are known, and once on real runs."""

import numpy as np
import pytest
import xarray as xr
from known_bench import CLAIM, KnownBench

import alignlab as al
from alignlab.audit.controls import ALL, FeedbackScale
from alignlab.audit.controls.feedback_scale import manipulation_check
from alignlab.training.errors import SpecError

TURNED = CLAIM.model_copy(update={"treatment": CLAIM.baseline, "baseline": CLAIM.treatment})
NORMS = {"weight": np.array([[2.0, 3.0], [2.5, 3.5], [2.6, 4.0]]), "rule": np.full((3, 2), 20.0)}
ANGLES = np.array([[30.0, 40.0], [25.0, 35.0], [20.0, 30.0]])


def parts(spec):
    """Whose direction and whose scale the feedback of a run has; W's are backprop's."""
    if spec.rule == "rescaled":
        return spec.rule_args["direction"], spec.rule_args["scale"]
    return ("weight", "weight") if spec.rule == "bp" else ("rule", "rule")


def known(spec):
    """The rule's direction costs 1, its scale gains 3, both together another 0.5."""
    direction, scale = (part == "rule" for part in parts(spec))
    return -1.0 * direction + 3.0 * scale + 0.5 * (direction and scale) + 0.01 * np.sin(spec.seed)


def recorded(direction, scale, *, norms=NORMS, gain=1.0, **changed):
    """A run of three recorded steps and three layers, whose first passes no error on."""
    values = {
        "feedback_norm": norms[scale],
        "weight_norm": norms["weight"],
        "weight_angle": ANGLES if direction == "rule" else np.zeros((3, 2)),
        "feedback_gain": np.full((3, 2), gain),
    } | changed
    first = {"weight_norm": 5.0, "feedback_gain": gain}
    table = {
        name: np.column_stack([np.full(3, first.get(name, np.nan)), own]) for name, own in values.items()
    }
    table = {name: np.vstack([own, np.full(3, np.nan)]) for name, own in table.items()}  # evaluated, no more
    return xr.Dataset({name: (("step", "layer"), own) for name, own in table.items()})


class RecordingBench(KnownBench):
    """Whose runs have the feedback that they should, but for what ``changed(spec)`` says."""

    def __init__(self, claim, value, changed=None):
        super().__init__(claim, value)
        self._changed = changed or (lambda spec: {})

    def dataset(self, spec):
        return recorded(*parts(spec), **self._changed(spec))


def applied(claim, **more):
    bench = RecordingBench(claim, known, **more)
    sides = [bench.outcomes(name, arm) for name, arm in (("t", claim.treatment), ("b", claim.baseline))]
    return FeedbackScale().apply(bench, *sides), bench


def test_the_scale_of_feedback_is_told_from_its_direction():
    found, bench = applied(CLAIM)
    effects = {contrast.label: np.mean(contrast.differences) for contrast in found.contrasts}
    assert effects == pytest.approx(
        {"feedback direction": -0.75, "feedback scale": 3.25, "feedback interaction": 0.5}
    )
    assert np.mean(found.samples.necessity) == pytest.approx(-1.0)  # the rule's direction at W's scale
    assert np.mean(found.samples.sufficiency) == pytest.approx(-0.5)  # 2.5 against W at the rule's scale
    assert [check.passed for check in found.checks] == [True]
    assert not found.caveats
    kept, given = bench.groups["sign_sync's B at bp's scale"], bench.groups["bp's B at sign_sync's scale"]
    assert {parts(spec) for spec in kept.specs} == {("rule", "weight")}
    assert {parts(spec) for spec in given.specs} == {("weight", "rule")}
    assert [spec.seed for spec in kept.specs] == list(CLAIM.seeds)


def test_where_backprop_is_the_treatment_it_is_given_the_rules_scale():
    found, bench = applied(TURNED)
    effects = {contrast.label: np.mean(contrast.differences) for contrast in found.contrasts}
    assert effects == pytest.approx(
        {"feedback direction": 0.75, "feedback scale": -3.25, "feedback interaction": 0.5}
    )
    assert np.mean(found.samples.necessity) == pytest.approx(0.5)  # W at the rule's scale, 3, against 2.5
    assert np.mean(found.samples.sufficiency) == pytest.approx(
        1.0
    )  # 0 against the rule's direction at W's scale
    assert {parts(spec) for spec in bench.groups["bp's B at sign_sync's scale"].specs} == {("weight", "rule")}


def test_the_runs_foreseen_are_the_runs_used():
    for claim in (CLAIM, TURNED):
        _, bench = applied(claim)
        used = {spec for name in list(bench.groups)[2:] for spec in bench.groups[name].specs}
        assert set(FeedbackScale().foreseen(bench)) == used
        assert len(used) == 2 * len(claim.seeds)


def test_the_rule_in_the_exchange_is_the_arms_own():
    arm = al.Arm(rule="sign_sync", rule_args={"period": 7, "init": "xavier"})
    claim = CLAIM.model_copy(update={"treatment": arm})
    _, bench = applied(claim)
    for spec in FeedbackScale().foreseen(bench):
        assert spec.rule_args["of"] == {"rule": "sign_sync", "period": 7, "init": "xavier"}
        assert spec.lr == 0.1


# --- the manipulation check -------------------------------------------------------------------------------------------


def check(direction, scale, changed, rule=None):
    """The check of one run that is to have this direction and scale, and recorded something else."""
    own = CLAIM.spec(CLAIM.treatment, 0)
    args = {"of": "sign_sync", "direction": direction, "scale": scale}
    spec = own.changed(rule="rescaled", rule_args=args)
    bench = RecordingBench(CLAIM, known, lambda s: changed if s == spec else rule or {})
    return manipulation_check(bench, [spec], [own])


AT_WEIGHT, AT_RULE = ("rule", "weight"), ("weight", "rule")


@pytest.mark.parametrize("corner", [AT_WEIGHT, AT_RULE])
def test_feedback_as_it_was_meant_passes(corner):
    found = check(*corner, {})
    assert found.passed
    assert "differs from what it was meant to be by 0.0e+00" in found.detail


def one_off(values, factor=1.01):
    """In the last layer of the last step alone."""
    changed = values.copy()
    changed[2, 1] *= factor
    return changed


@pytest.mark.parametrize(
    ("corner", "changed"),
    [
        (AT_WEIGHT, {"feedback_norm": NORMS["rule"]}),  # the scale was never replaced
        (AT_WEIGHT, {"feedback_norm": np.tile(NORMS["weight"][0], (3, 1))}),  # once, and not at every step
        (AT_WEIGHT, {"feedback_norm": one_off(NORMS["weight"])}),
        (AT_WEIGHT, {"weight_angle": np.zeros((3, 2))}),  # the direction was replaced too
        (AT_WEIGHT, {"feedback_norm": np.zeros((3, 2)), "weight_angle": np.full((3, 2), np.nan)}),
        (AT_RULE, {"feedback_norm": NORMS["weight"]}),
        (AT_RULE, {"feedback_norm": one_off(NORMS["rule"])}),
        (AT_RULE, {"weight_angle": ANGLES}),
        (AT_RULE, {"weight_angle": one_off(np.zeros((3, 2)) + 0.01, 10)}),
        (AT_RULE, {"feedback_norm": np.zeros((3, 2)), "weight_angle": np.full((3, 2), np.nan)}),
        (AT_WEIGHT, {"feedback_norm": np.full((3, 2), np.nan)}),  # nothing was recorded
        (AT_RULE, {"feedback_norm": np.full((3, 2), np.nan)}),
    ],
)
def test_feedback_other_than_meant_fails_the_check(corner, changed):
    assert check(*corner, changed).failed


def test_the_worst_run_decides():
    own = [CLAIM.spec(CLAIM.treatment, seed) for seed in range(3)]
    specs = [s.changed(rule="rescaled", rule_args={"direction": "rule", "scale": "weight"}) for s in own]
    wrong = {"feedback_norm": NORMS["rule"]}
    bench = RecordingBench(CLAIM, known, lambda s: wrong if s == specs[1] else {})
    assert manipulation_check(bench, specs, own).failed
    assert manipulation_check(bench, specs[::2], own[::2]).passed


def test_a_scale_that_depends_on_the_run_is_checked_where_the_runs_are_still_the_same():
    moving = {
        "feedback_norm": NORMS["rule"] * np.array([[1.0], [1.2], [1.5]])
    }  # a mirror's, in the rule's own run
    elsewhere = NORMS["rule"] * np.array([[1.0], [1.1], [1.3]])
    assert check(*AT_RULE, {"feedback_norm": elsewhere}, moving).passed
    assert check(*AT_RULE, {"feedback_norm": elsewhere}).failed
    assert check(*AT_RULE, {"feedback_norm": 1.1 * elsewhere}, moving).failed


def test_weights_of_zeros_have_no_scale_to_give():
    start = NORMS["weight"] * np.array([[0.0], [1.0], [1.0]])
    nothing = np.where(start == 0, np.nan, ANGLES)
    at_start = {"weight_norm": start, "weight_angle": nothing}
    assert check(*AT_WEIGHT, at_start | {"feedback_norm": start}, at_start).passed
    assert check(*AT_WEIGHT, at_start | {"feedback_norm": 2 * start}, at_start).failed


def test_a_caveat_tells_gradients_that_are_still_louder_than_backprops():
    for claim in (CLAIM, TURNED):
        found, _ = applied(claim, changed=lambda s: {"gain": 0.4 if parts(s) == AT_WEIGHT else 7.0})
        (caveat,) = found.caveats
        assert "the gradients of sign_sync are still 0.4 to 0.4 times as large as backprop's" in caveat
        assert found.checks[0].passed


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"baseline": al.Arm(rule="fa")},
            r"'feedback_scale' compares a rule with backprop; .* 'sign_sync' and 'fa'",
        ),
        (
            {"treatment": al.Arm(rule="bp", name="fast", lr=0.3)},
            r"'bp' and 'bp'. .* let bp be the rule of one arm and not of the other",
        ),
        (
            {"baseline": al.Arm(rule="bp", lr=0.3)},
            r"'feedback_scale' needs one learning rate .* \[0.1, 0.3\]",
        ),
        (
            {"treatment": al.Arm(rule="dfa")},
            "'feedback_scale' cannot rescale .*'dfa': .*straight to each layer",
        ),
        ({"treatment": al.Arm(rule="kolen_pollack")}, "has a B that the optimizer steps"),
        ({"treatment": al.Arm(rule="soap")}, "soap does not learn by what a B alone"),
        ({"treatment": al.Arm(rule="noisy_backprop")}, "noisy_backprop does not learn by"),
        ({"treatment": al.Arm(rule="rescaled")}, "rescaled is rescaled already"),
        ({"setup": {**CLAIM.setup, "record_every": 0}}, "record_every is 0, set it above 0"),
    ],
)
def test_claims_without_a_scale_to_exchange_are_refused_before_anything_runs(changes, named):
    claim = CLAIM.model_copy(update=changes)
    with pytest.raises(SpecError, match=named) as caught:
        al.audit(claim, [FeedbackScale()], store="nowhere")
    assert "\n" not in str(caught.value)
    assert "eave the control out" in str(caught.value) or "learning rate" in str(caught.value)


def test_claims_can_name_it_and_do_not_by_default():
    assert ALL["feedback_scale"] is FeedbackScale
    assert al.controls.FeedbackScale is FeedbackScale
    assert "feedback_scale" not in CLAIM.controls
    assert al.Claim(**{**CLAIM.model_dump(), "controls": ("feedback_scale",)}).controls == ("feedback_scale",)


# --- real runs --------------------------------------------------------------------------------------------------------


SETUP = {"hidden": (16, 12), "lr": 0.02, "batch_size": 4, "steps": 40, "record_every": 10, "spectra_every": 0}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    claim = al.Claim(
        statement="unscaled sign feedback beats backprop on XOR",
        treatment=al.Arm(rule="sign_sync", rule_args={"period": 10}),
        baseline=al.Arm(rule="bp"),
        task="xor",
        smallest_effect=0.01,
        seeds=range(6),
        setup=SETUP,
        controls=("feedback_scale", "magnitude"),
    )
    return al.audit(claim, store=tmp_path_factory.mktemp("audit") / "store")


def test_unscaled_signs_are_explained_by_their_scale(result):
    assert str(result.verdict) == "explained_by:feedback_scale,magnitude"
    assert "without its feedback's scale" in result.verdict.text
    assert all(check.passed for check in result.evidence.checks)
    labels = result.tree["decomposition"]["label"].values.tolist()
    assert labels[:3] == ["feedback direction", "feedback scale", "feedback interaction"]
    assert len(set(labels)) == 6


def test_real_runs_recorded_the_feedback_that_was_meant(result):
    runs = result.select("sign_sync's B at bp's scale")
    ratio = (runs["feedback_norm"] / runs["weight_norm"]).transpose("layer", "run", "step").values
    assert np.isnan(ratio[0]).all()  # the first layer passes nothing on
    there = np.isfinite(ratio[1:])
    assert there.sum() == 2 * 6 * 4  # layers, seeds, recorded steps
    assert ratio[1:][there] == pytest.approx(1.0, abs=1e-5)
    turned = result.select("bp's B at sign_sync's scale")
    assert np.nanmax(turned["weight_angle"].values) < 0.01
    own = result.select("treatment")["feedback_norm"].transpose("layer", "run", "step").values
    np.testing.assert_allclose(
        turned["feedback_norm"].transpose("layer", "run", "step").values, own, rtol=1e-5
    )


@pytest.mark.parametrize("rule", ["brsf", "rerandomised", "weight_mirror", "frsf"])
def test_every_kind_of_feedback_passes_its_own_check(rule, tmp_path):
    claim = al.Claim(
        statement="backprop beats it",
        treatment=al.Arm(rule="bp"),
        baseline=al.Arm(rule=rule),
        task="xor",
        smallest_effect=0.01,
        seeds=range(2),
        setup=SETUP,
    )
    result = al.audit(claim, [FeedbackScale()], store=tmp_path)
    assert [check.passed for check in result.evidence.checks] == [True]


def test_the_figures_draw_it(result):
    drawn = al.figures.audit_figures(result)
    rows = [tick.get_text().strip() for tick in drawn["forest"].axes[0].get_yticklabels()]
    assert rows[rows.index("feedback_scale") :][1:4] == [
        "without it",
        "baseline given it",
        "what it accounts for",
    ]
    assert "feedback scale" in rows
    texts = [text.get_text() for text in drawn["learning_curves"].findobj(lambda o: hasattr(o, "get_text"))]
    assert {"treatment without it", "baseline given it"} <= set(texts)
