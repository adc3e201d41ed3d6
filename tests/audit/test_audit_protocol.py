"""The protocol: what is chosen on what, at which level it is read, what is refused, and what reaches the result."""

from types import SimpleNamespace

import numpy as np
import pytest
from known_bench import CLAIM, KnownBench, recorded

import alignlab as al
from alignlab.audit.bench import Bench, Group, _final_values
from alignlab.audit.controls import Placebo, Tuning
from alignlab.audit.controls.magnitude import manipulation_check
from alignlab.audit.running import _caveats, _divergence
from alignlab.audit.shares import unseen_share
from alignlab.audit.statistics import paired
from alignlab.audit.studies import Searches
from alignlab.training.errors import SpecError


def peak(optimum, top):
    return lambda s: top - np.log10(s.lr / optimum) ** 2 + 0.01 * np.sin(s.seed)


def test_tuning_given_is_the_claimed_treatment_against_the_tuned_baseline_chosen_on_validation():
    bench = KnownBench(CLAIM, lambda s: peak(*(0.02, 1.0) if s.rule == "sign_sync" else (0.4, 2.0))(s))
    t, b = bench.outcomes("t", CLAIM.treatment), bench.outcomes("b", CLAIM.baseline)
    bench.asked.clear()
    found = Tuning().apply(bench, t, b)
    best_b = bench.values(bench.specs(CLAIM.baseline, lr=found.details["bp"]["best_lr"]))
    assert found.samples.sufficiency == pytest.approx(tuple(t - best_b))
    assert bench.asked == {"validation_loss", None}  # None: the claim's own outcome, of the final runs


def test_an_optimum_at_the_lower_edge_extends_downwards_and_fails_if_it_stays():
    bench = KnownBench(CLAIM, lambda s: -np.log10(s.lr))
    found = Tuning().apply(bench, np.arange(5.0), np.zeros(5))
    assert min(found.details["bp"]["learning_rates"]) == pytest.approx(1e-5)
    assert [c.passed for c in found.checks] == [False, False, True]


def test_unequal_budgets_fail():
    searches = Searches(KnownBench(CLAIM, peak(0.1, 1.0)), Tuning().grid(CLAIM))
    searches.run()
    assert searches.checks()[-1].passed
    searches.studies[0][0].scores[77.0] = np.zeros(2)
    assert searches.checks()[-1].failed


def test_values_are_oriented_by_their_metric(tmp_path):
    bench = Bench(CLAIM, tmp_path)
    bench.final = lambda spec: {"train_loss": 2.0, "validation_accuracy": 0.7}
    assert bench.values([None]) == [-2.0]
    assert bench.values([None], "validation_accuracy") == [0.7]


def test_where_runs_began_is_told_of_the_split_and_what_they_gained_of_the_metric_of_the_outcome(tmp_path):
    bench = Bench(CLAIM.model_copy(update={"outcome": "test_accuracy"}), tmp_path)
    ends = {"test_accuracy": 0.7, "test_loss": 0.1, "train_loss": 0.2}
    starts = {"initial test_accuracy": 0.5, "initial test_loss": 2.0, "initial train_loss": 3.0}
    bench.final = lambda spec: ends | starts
    assert bench.begun([None]) == [2.0]
    assert bench.gained([None]) == pytest.approx([0.2])


def test_within_a_planted_claim_groups_are_its_own_and_afterwards_the_claim_is_the_audits(tmp_path):
    bench, planted = Bench(CLAIM, tmp_path), CLAIM.model_copy(update={"statement": "planted"})
    bench.groups["treatment"] = Group((), "sync")
    with bench.about(planted, "check"):
        assert (bench.claim, bench.groups) == (planted, {})
        bench.groups["treatment"] = Group((), "bp")
    assert bench.claim is CLAIM
    assert bench.groups == {
        "treatment": Group((), "sync", "compared"),
        "treatment, planted": Group((), "bp", "check"),
    }
    assert [spec.seed for spec in bench.specs(CLAIM.baseline, [7, 9])] == [7, 9]


def test_caveats_tell_left_out_controls_by_what_they_do_and_rare_failures_at_the_claims_level():
    notes = _caveats(SimpleNamespace(claim=CLAIM.model_copy(update={"alpha": 0.2}), groups={}), [Tuning()])
    explaining, checking, scale = notes
    assert "magnitude" in explaining
    assert "placebo" not in explaining
    assert checking.startswith("not checked by: ")
    assert "placebo" in checking
    assert "magnitude" not in checking
    assert f"{100 * unseen_share(5, 0.2):.2g} % of seeds" in scale


def test_final_values_are_the_last_that_are_known_and_what_float32_stands_for():
    run = {
        "status": np.array("finished"),
        "test_loss": np.float32([2.3, 0.91, np.nan]),
        "train_loss": np.float32([2.5, np.inf, np.nan]),
        "test_accuracy": np.float32([0.1, np.nan, 37 / 41]),
        "validation_accuracy": np.float32([0.1, np.nan, 0.123]),
    }
    samples = {"test_accuracy": 41, "validation_accuracy": 41}
    found = _final_values(run, samples)
    assert (found["test_loss"], found["initial test_loss"]) == (0.91, 2.3)
    assert found["train_loss"] == found["initial train_loss"] == 2.5  # as untrained
    assert found["test_accuracy"] == 37 / 41
    assert found["validation_accuracy"] == 0.123  # no share of 41 samples
    assert _final_values(run | {"status": np.array("diverged")}, samples)["test_loss"] == 2.3


def test_the_placebo_is_read_at_the_claims_alpha():
    difference = np.array([0.3, 0.5, 0.1, 0.45, -0.02])
    alpha = paired(difference).p_value
    for factor, passes in ((0.9, True), (1.1, False)):
        claim = CLAIM.model_copy(update={"alpha": factor * alpha})
        bench = KnownBench(claim, lambda s: difference[s.seed] if s.order else 0.0)
        assert Placebo().apply(bench, np.zeros(5), np.zeros(5)).checks[0].passed is passes


def test_one_bad_run_fails_the_manipulation_check_wherever_it_stands():
    spec = CLAIM.spec(CLAIM.treatment, 0, graft={"direction": "rule", "magnitude": "bp"})

    class Runs:
        def __init__(self):
            self.applied = iter((7.0, 1.0))

        def dataset(self, spec):
            return recorded(np.full((3, 2), 7.0), np.full((3, 2), next(self.applied)))

    assert not manipulation_check(Runs(), [spec, spec]).passed


def test_alpha_and_orientation_and_divergence_reach_the_result(tmp_path):
    claim = al.Claim(
        statement="s",
        treatment=al.Arm(rule="bp", lr=100.0),
        baseline=al.Arm(rule="fa", lr=0.01),
        task="linear_toy",
        smallest_effect=0.1,
        seeds=range(3),
        alpha=0.2,
        controls=("placebo",),
        setup={"hidden": (5,), "activation": "linear", "steps": 60, "record_every": 20},
    )
    result = al.audit(claim, store=tmp_path)
    d = np.subtract(result.outcomes["baseline"], result.outcomes["treatment"])
    assert result.evidence.total == paired(d, 0.2)
    placebo = result.contrast_dataset().isel(contrast=-1)
    assert float(placebo["low"]) == pytest.approx(paired(result.contrasts[0].differences, 0.2).low)
    assert result.probability_of_improvement().estimate == np.mean(d > 0)
    assert any("3 of 3 runs of 'treatment' diverged" in c for c in result.verdict.caveats)


@pytest.mark.parametrize("label", ["sync, lr high", "sync, other data order"])
def test_divergence_and_curves_of_an_arm_show_whatever_its_name(label, tmp_path):
    claim = al.Claim(
        statement="s",
        treatment=al.Arm(name=label, rule="bp", lr=100.0),
        baseline=al.Arm(rule="fa", lr=0.01),
        task="linear_toy",
        smallest_effect=0.1,
        seeds=range(2),
        setup={"hidden": (5,), "activation": "linear", "steps": 60, "record_every": 20},
        learning_rates=(0.01, 0.03, 0.1),
        tuning_seeds=1,
    )
    result = al.audit(claim, [Tuning(), Placebo()], store=tmp_path)
    assert any("2 of 2 runs of 'treatment' diverged" in c for c in result.verdict.caveats)
    assert result.kinds[f"{label}, tuned"] == "compared"
    assert {g for g, kind in result.kinds.items() if kind == "check"} == {"fa, other data order"}
    drawn = al.figures.audit_figures(result)
    curves = {line.get_label().removeprefix("_") for line in drawn["learning_curves"].axes[0].lines}
    assert {f"{label}, as claimed", "fa, as claimed", "treatment without it", "baseline given it"} <= curves
    hues = {line.get_label() for line in drawn["loss_against_lr"].axes[0].lines}
    for name in (label, "fa"):
        assert any(name in hue for hue in hues), hues


def test_a_search_that_diverges_needs_no_caveat_but_an_arm_named_like_one_does():
    groups = {
        "bp, lr 10": Group((None,), "bp", "search"),
        "sync, lr high, tuned": Group((None, None), "sync, lr high"),
    }
    bench = SimpleNamespace(
        claim=CLAIM,
        groups=groups,
        diverged=lambda specs: np.ones(len(specs), bool),
        gained=lambda specs: np.zeros(len(specs)),
    )
    assert [c for c in _caveats(bench, []) if "diverged" in c] == [
        "2 of 2 runs of 'sync, lr high, tuned' diverged and count as untrained"
    ]


def test_runs_that_ended_worse_than_they_began_are_told_by_more_than_m_and_what_diverged_is_told_once():
    finals = {
        "a": {"diverged": 1.0, "train_loss": 2.0, "initial train_loss": 2.0},
        "b": {"diverged": 0.0, "train_loss": 3.5e6, "initial train_loss": 2.0},
        "c": {"diverged": 0.0, "train_loss": 2.05, "initial train_loss": 2.0},
        "d": {"diverged": 0.0, "train_loss": 0.1, "initial train_loss": 2.0},
    }
    bench = Bench(CLAIM, "nowhere")
    bench.final = finals.get
    bench.groups = {"bp with its sizes": Group(tuple(finals), "bp"), "lr 10": Group(("b",), "bp", "search")}
    told = [c for c in _caveats(bench, []) if "bp with its sizes" in c or "lr 10" in c]
    assert [caveat.partition(" and count")[0] for caveat in told] == [
        "1 of 4 runs of 'bp with its sizes' diverged",
        "1 of 4 runs of 'bp with its sizes' ended worse than they began, by up to 3.5e+06,",
    ]


@pytest.mark.parametrize(
    ("ends", "diverged", "same"),
    [
        ((0.3, 0.2), (0, 0), True),
        ((0.3, 0.2), (0, 1), False),  # a loss from before training
        ((0.0, 0.0), (0, 0), False),  # the least of losses
        ((0.6931472, 0.6931472), (0, 0), False),  # of one answer to all
    ],
)
def test_runs_that_end_alike_computed_the_same_unless_their_losses_are_at_an_end_that_others_reach_too(
    ends, diverged, same
):
    bench = Bench(CLAIM, "nowhere")
    runs = zip(ends, diverged, strict=True)
    finals = [{"diverged": float(gone), "train_loss": end} for end, gone in runs]
    bench.final = finals.__getitem__
    finals.append({"diverged": 1.0, "train_loss": 0.3})
    bench.groups = {"bp": Group((0, 1), "bp"), "lr 10": Group((0, 2), "bp", "search")}
    bench.groups["one run for two seeds"] = Group((0, 0), "bp")
    assert bench.continuous is same
    bench.claim = CLAIM.model_copy(update={"outcome": "train_accuracy"})
    assert not bench.continuous


def test_how_the_rates_were_chosen_travels_with_the_result():
    bench = KnownBench(CLAIM, peak(0.1, 1.0))
    (caveat,) = Tuning().apply(bench, np.arange(5.0), np.zeros(5)).caveats
    assert "chosen once, on 2 tuning seeds; the intervals leave out" in caveat


def test_the_audits_figures_draw_its_own_numbers(tmp_path):
    claim = CLAIM.model_copy(
        update={"seeds": (0, 1, 2), "setup": {"hidden": (4,), "batch_size": 4, "steps": 20}}
    )
    result = al.audit(claim, [al.controls.Magnitude(), Tuning()], store=tmp_path)
    drawn = al.figures.audit_figures(result)
    axes = drawn["forest"].axes[0]
    rows = result.evidence.rows()
    spans = [list(line.get_xdata()) for line in axes.lines if line.get_label() == "_interval"]
    assert spans[: len(rows)] == [[row["low"], row["high"]] for row in rows]
    contrasts = result.contrast_dataset()
    roles = dict(zip(contrasts["label"].values.tolist(), contrasts["role"].values.tolist(), strict=True))
    assert [name for name, role in roles.items() if role == "part"] == [
        "magnitude: what it accounts for", "tuning: what it accounts for", "interaction"
    ]  # fmt: skip
    names = [label.get_text().strip() for label in axes.get_yticklabels()]
    assert names.index("magnitude") < names.index("without it") < names.index("baseline given it")
    assert any("±0.1" in text.get_text() for text in drawn["forest"].legends[0].get_texts())
    assert "Intervals" in drawn["forest"]._supxlabel.get_text()
    panels = {ax.get_title(loc="left"): ax for ax in drawn["learning_curves"].axes}
    behind = {
        "control magnitude": ("sign_sync direction, bp magnitude", "bp direction, sign_sync magnitude"),
        "control tuning": ("sign_sync, tuned", "bp, tuned"),
    }
    assert set(panels) == set(behind)
    for title, groups in behind.items():
        ends = {line.get_label(): line.get_ydata()[-1] for line in panels[title].lines}
        names = ("sign_sync, as claimed", "bp, as claimed", "treatment without it", "baseline given it")
        for name, group in zip(names, ("treatment", "baseline", *groups), strict=True):
            mean = np.exp(np.mean(np.log(result.outcomes[group])))
            assert ends[name] == pytest.approx(mean, rel=1e-5), (title, name)
    assert "validation" in drawn["loss_against_lr"].axes[0].get_ylabel()


def test_one_layer_that_was_not_grafted_fails_the_manipulation_check():
    """The top layer is right by construction, so over all layers the median would be."""
    spec = CLAIM.spec(CLAIM.treatment, 0, graft={"direction": "rule", "magnitude": "bp"})

    def bench(*applied):
        run = recorded(*(np.tile(v, (4, 1)) for v in ((200.0, 14.0, 1.0), applied)))
        return SimpleNamespace(dataset=lambda spec: run)

    assert manipulation_check(bench(1.0, 1.0, 1.0), [spec]).passed
    assert not manipulation_check(bench(200.0, 1.0, 1.0), [spec]).passed
    assert manipulation_check(bench(np.nan, 1.0, 1.0), [spec]).passed  # a layer that is not measured
    assert not manipulation_check(bench(np.nan, np.nan, np.nan), [spec]).passed


def test_steps_that_float32_weights_cannot_take_once_a_run_has_converged_do_not_fail_the_manipulation_check():
    spec = CLAIM.spec(CLAIM.treatment, 0, graft={"direction": "rule", "magnitude": "bp"})
    norm, gain = np.array([[1.0], [1e-9], [1e-9], [0.0]]), np.array([[7.0], [7.0], [7.0], [np.nan]])

    def check(*applied):
        run = recorded(gain, np.array(applied)[:, None], norm)
        return manipulation_check(SimpleNamespace(dataset=lambda spec: run), [spec])

    assert check(1.0, 0.0, 0.0, np.nan).passed
    assert not check(1.02, 1.0, 1.0, np.nan).passed
    assert not check(np.nan, 0.0, 0.0, np.nan).passed  # none of the steps that are known was taken


def test_a_layer_whose_error_cancelled_down_to_rounding_does_not_fail_the_manipulation_check():
    """As that of sign_sync where the two classes' feedback has equal signs: 1e-7 of backprop's, at which no weight moves."""
    spec = CLAIM.spec(CLAIM.treatment, 0, graft={"direction": "bp", "magnitude": "rule"})

    def check(taken, weights=1.0):
        run = recorded(np.array([[1e-7, 1.0]] * 3), np.tile(taken, (3, 1)))
        run["weight_norm"] = weights * run["weight_norm"]
        return manipulation_check(SimpleNamespace(dataset=lambda spec: run), [spec])

    assert check([0.0, 1.0]).passed
    assert not check([0.0, 1.0], weights=1e-4).passed  # which such steps would move
    assert not check([1.0, 1.0]).passed  # backprop's own, which were not grafted
    assert not check([0.0, 1.02]).passed
    run = recorded(np.array([[0.0, 1.0]] * 3), np.tile([1.0, 1.0], (3, 1)))
    assert manipulation_check(
        SimpleNamespace(dataset=lambda spec: run), [spec]
    ).failed  # no size, and yet a step


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_step_without_a_direction_takes_no_size_and_fails_no_manipulation_check(scope):
    graft = {"direction": "rule", "magnitude": "bp", "scope": scope}
    spec = CLAIM.spec(CLAIM.treatment, 0, graft=graft)

    def check(gain, applied):  # of two layers, at four steps of one size
        norm = np.ones_like(gain) if scope == "layer" else np.array([[1.0, 0.0]] * 4)  # the lower one is dead
        run = recorded(gain, np.where(norm == 0, 0.0, applied), norm)
        run["gradient_norm"] = run["gradient_norm"].fillna(0.0)
        return manipulation_check(SimpleNamespace(dataset=lambda spec: run), [spec])

    silent, loud = np.full((4, 2), 7.0), np.full((4, 2), 7.0)
    silent[2] = 0.0  # the rule sends nothing at the third step
    stood_still = np.where(silent == 0, 0.0, 1.0)
    assert check(silent, stood_still).passed
    assert "; up to 25 % of a layer's sizes met a gradient of zero" in check(silent, stood_still).detail
    assert "gradient of zero" not in check(loud, np.ones((4, 2))).detail
    assert not check(loud, stood_still).passed


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"setup": {"lr": 0.1, "steps": 10, "record_every": 0}}, "record_every"),
        ({"setup": {"lr": 0.1, "steps": 10, "momentum": 0.9}}, "momentum"),
        ({"setup": {"lr": 0.1, "steps": 10, "clip": 1.0}}, "no clip"),
        ({"baseline": al.Arm(rule="fa")}, "'sign_sync' and 'fa'"),
        ({"baseline": al.Arm(rule="bp", lr=0.2)}, "one learning rate"),
        ({"task": "linear_toy", "outcome": "train_accuracy", "direction": "higher"}, "has no classes"),
        ({"seeds": (0, 1_000_003)}, r"seeds \[1000003\] are those that choose"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_anything_runs(changes, named, tmp_path):
    claim = al.Claim(**{**{name: getattr(CLAIM, name) for name in type(CLAIM).model_fields}, **changes})
    with pytest.raises(SpecError, match=named):
        al.audit(claim, [al.controls.Magnitude(), Tuning(), Placebo()], store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_arms_of_one_name_are_refused():
    arms = {
        "treatment": al.Arm(rule="sign_sync", rule_args={"period": 3}),
        "baseline": al.Arm(rule="sign_sync"),
    }
    fields = {"statement": "s", "task": "xor", "smallest_effect": 0.1}
    with pytest.raises(ValueError, match="both arms are called 'sign_sync'"):
        al.Claim(**arms, **fields)
    arms["treatment"] = al.Arm(name="often", rule="sign_sync", rule_args={"period": 3})
    assert al.Claim(**arms, **fields).treatment.label == "often"


@pytest.mark.parametrize("seeds", [range(3), [0, 1, 2], (0, 1, 2), 3])
def test_seeds_may_be_any_sequence_and_are_one_claim(seeds):
    claim = al.Claim(**{**CLAIM.model_dump(), "seeds": seeds})
    assert claim.seeds == (0, 1, 2)
    assert hash(claim.seeds)


def test_the_star_is_at_the_rate_that_the_audit_chose(tmp_path):
    """Not where the figure's own means are best: it leaves diverged runs out, the audit counts them as untrained."""
    claim = CLAIM.model_copy(update={"seeds": (0, 1), "setup": {"hidden": (4,), "batch_size": 4, "steps": 5}})
    result = al.audit(claim, [Tuning()], store=tmp_path)
    for label, search in result.details["tuning"].items():
        search["best_lr"] = search["learning_rates"][1 if label == "bp" else 2]
    (axes,) = [a for a in al.figures.audit_figures(result)["loss_against_lr"].axes if a.get_xlabel()]
    stars = {float(line.get_xdata()[0]) for line in axes.lines if line.get_label() == "_optimum"}
    assert stars == {s["best_lr"] for s in result.details["tuning"].values()}


@pytest.mark.parametrize(
    ("difference", "treatment", "baseline", "fails"),
    [
        (
            [5.0, 0.3, 0.2],
            [True, False, False],
            [False] * 3,
            True,
        ),  # an advantage that is the other arm's ruin
        ([-5.0, 0.3, 0.2], [False] * 3, [True, False, False], True),
        ([-5.0, 0.3, 0.2], [True, False, False], [False] * 3, False),  # one that diverged has lost
        ([0.0, 0.3, 0.2], [True, False, False], [True, False, False], False),
        (
            [5.0, 0.3, 0.2],
            [True, False, False],
            [True, False, False],
            False,
        ),  # of unlike starts, which is told
        ([0.05, 0.3, 0.2], [True, False, False], [False] * 3, False),  # by less than matters
    ],
)
def test_an_advantage_of_a_run_that_diverged_makes_the_audit_invalid(difference, treatment, baseline, fails):
    diverged = {"sign_sync": np.array(treatment), "bp": np.array(baseline)}
    bench = SimpleNamespace(claim=CLAIM, specs=lambda arm: arm.rule, diverged=diverged.get)
    checks = _divergence(bench, np.array(difference))
    assert [(check.name, check.failed) for check in checks] == [("divergence", True)] * fails
    assert all("on 1 of 3 seeds a run that diverged" in check.detail for check in checks)
