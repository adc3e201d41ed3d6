"""Audits from end to end on a task of seconds: real runs, real verdicts, nothing run twice."""

import dataclasses
import json
import pickle
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

import alignlab as al
from alignlab.audit import running
from alignlab.audit.bench import Bench
from alignlab.audit.decomposition import told
from alignlab.audit.evidence import Check
from alignlab.audit.gathering import gather
from alignlab.audit.result import _drawn, levels
from alignlab.audit.running import _unlike
from alignlab.store import StoreError
from alignlab.training import SpecError

CLAIM = al.Claim(
    statement="unscaled sign feedback beats backprop on XOR",
    treatment=al.Arm(rule="sign_sync", rule_args={"period": 10}),
    baseline=al.Arm(rule="bp"),
    task="xor",
    smallest_effect=0.02,
    seeds=range(6),
    setup={"hidden": (10, 10), "lr": 0.03, "batch_size": 4, "steps": 40, "record_every": 10},
    learning_rates=(0.01, 0.1, 1.0),
    tuning_seeds=1,
)
CONTROLS = [al.controls.Magnitude(), al.controls.Placebo()]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("audit") / "store"


@pytest.fixture(scope="module")
def result(store):
    return al.audit(CLAIM, CONTROLS, store=store)


def test_the_total_effect_is_the_difference_of_the_arms_seed_by_seed(result):
    difference = np.subtract(result.outcomes["baseline"], result.outcomes["treatment"])
    assert result.evidence.total.estimate == pytest.approx(difference.mean())
    assert result.evidence.total.n == len(CLAIM.seeds)
    assert result.evidence.controls[0].name == "magnitude"


def test_a_second_audit_computes_nothing_and_finds_the_same(result, store):
    again = al.audit(CLAIM, CONTROLS, store=store)
    assert result.computed > 0
    assert again.computed == 0
    assert again.to_dict() == result.to_dict()


def test_an_extended_audit_reuses_every_run(result, store):
    more = al.audit(CLAIM.model_copy(update={"seeds": tuple(range(7))}), CONTROLS, store=store)
    assert more.computed == 5  # one new seed: treatment, baseline, two grafts, placebo


def test_every_run_under_the_verdict_can_be_opened(result):
    ids = set(result.all_runs["run_id"].values.tolist())
    assert {name for names in result.runs.values() for name in names} <= ids
    arm = result.select("treatment")
    assert arm.sizes["run"] == len(CLAIM.seeds)
    assert set(arm["rule"].values.tolist()) == {"sign_sync"}


def test_an_audit_keeps_to_its_store_wherever_the_script_goes(tmp_path, monkeypatch):
    @contextmanager
    def phase(what, total):
        monkeypatch.chdir(tmp_path / "elsewhere")
        yield lambda n: None

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    claim = CLAIM.model_copy(update={"seeds": (0, 1)})
    first = al.audit(claim, CONTROLS, store="runs", phase=phase)
    assert not any((tmp_path / "elsewhere").iterdir())
    assert first.all_runs.sizes["run"] == len(first.run_names)
    monkeypatch.chdir(tmp_path)
    again = al.audit(claim, CONTROLS, store="runs")
    assert again.computed == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    for one in (again, dataclasses.replace(again, computed=1), pickle.loads(pickle.dumps(again))):
        assert one.all_runs.sizes["run"] == len(again.run_names)
    assert "runs in runs" in repr(again)


def test_the_tree_has_the_groups_of_the_data_contract(result):
    groups = {"runs", "tuning", "contrasts", "controls", "decomposition", "verdict", "provenance"}
    assert set(result.tree.children) == groups
    assert result.tree["verdict"].attrs["verdict"] == str(result.verdict)
    assert set(result.tree["decomposition"]["label"].values) == {"direction", "magnitude", "interaction"}
    contrasts = result.tree["contrasts"]
    assert set(contrasts["group"].values) == {"total", "magnitude", "validity"}
    roles = dict(zip(contrasts["label"].values, contrasts["role"].values, strict=True))
    parts = {"magnitude: what it accounts for", "placebo"}
    assert {label for label, role in roles.items() if role == "part"} == parts


def test_json_and_tree_lead_from_a_contrast_to_the_runs_behind_it(result):
    held = json.loads(json.dumps(result.to_dict()))
    linked = {name: json.loads(text) for name, text in result.tree["controls"].attrs.items()}
    losses = result.all_runs["train_loss"].swap_dims(run="run_id")
    for found in (held, linked):
        behind = {words: group for group, words in found["curves"]["magnitude"].items()}
        runs = found["runs"][behind["treatment without it"]]
        ended = [float(losses.sel(run_id=run).dropna("step")[-1]) for run in runs]
        necessity = (np.array(held["outcomes"]["baseline"]) - ended).mean()
        assert necessity == pytest.approx(held["evidence"]["controls"][0]["necessity"]["estimate"], abs=1e-6)
    caveats = json.loads(result.tree["verdict"].attrs["caveats"])
    assert caveats
    assert caveats == held["verdict"]["caveats"]


def test_the_table_tells_absolute_effects_then_their_shares_of_the_total(result):
    parts, lines = result.decomposition(), result.table().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("the total is made of")) + 1
    assert [part.label for part in parts] == ["direction", "magnitude", "interaction"]
    for part, line in zip(parts, lines[first:], strict=False):
        effect = part.effect
        shown = f"{effect.estimate:+.3g}  [{effect.low:+.3g}, {effect.high:+.3g}]"
        assert line.split() == [part.label, *shown.split(), str(effect.n), *str(part).split()]
    assert lines[first + 3] == told(parts, result.evidence.total)
    assert parts[0].effect.estimate + parts[1].effect.estimate == pytest.approx(
        result.evidence.total.estimate
    )
    drawn = result.tree["decomposition"]
    shares = [np.nan if part.share is None else part.share for part in parts]
    assert np.array_equal(drawn["share"], shares, equal_nan=True)
    assert np.isfinite(drawn["share_low"].values).tolist() == [part.ends is not None for part in parts]


def test_a_result_shows_itself_in_a_line(result, store):
    """The last line of a notebook's cell: it showed every seed's outcome and the name of every run."""
    runs = {name for names in result.runs.values() for name in names}
    shown = (
        f"<AuditResult of {CLAIM.statement!r}: {result.verdict}; {len(runs)} runs in {store}; see .table()>"
    )
    assert repr(result) == shown


def test_an_audit_that_decomposes_nothing_says_nothing_of_shares(store):
    alone = al.audit(CLAIM, [al.controls.Placebo()], store=store)
    assert alone.decomposition() == []
    assert "share" not in alone.table()
    assert alone.tree["decomposition"]["share"].size == 0


def test_runs_whose_outcome_is_not_finite_even_before_training_are_told_with_the_reason(tmp_path):
    """They ended in an IndexError, after all runs."""
    claim = CLAIM.changed(seeds=range(2), setup={**CLAIM.setup, "weight_scale": 1e20})
    with pytest.raises(SpecError, match=r"train_loss is not finite even before training \(sign_sync.*1e\+20"):
        al.audit(claim, [al.controls.Placebo()], store=tmp_path)


def test_table_and_json_carry_the_evidence(result):
    table = result.table()
    assert "as claimed" in table
    assert "intervals at: as claimed 95 %, magnitude 95 % (Holm's step-down" in table
    assert "– placebo: not applicable, each batch is the whole data set" in table
    assert json.loads(json.dumps(result.to_dict()))["claim_hash"] == CLAIM.digest()


def test_a_level_that_all_controls_share_is_told_once():
    def told(**alphas):
        rows = [{"name": name, "contrast": "without", "alpha": a} for name, a in alphas.items()]
        total = {"name": "total", "contrast": "total", "alpha": 0.05}
        return levels([row | {"study_size": None} for row in (total, *rows)])

    assert told(a=0.025, b=0.025).startswith("as claimed 95 %, each control 97.5 % (Holm")
    assert told(a=0.025, b=0.05).startswith("as claimed 95 %, a 97.5 %, b 95 % (Holm")
    assert told(a=0.0003, b=0.0003).startswith("as claimed 95 %, each control 99.97 % (Holm")  # not 100 %


def test_only_a_control_that_changed_nothing_is_drawn_without_the_ends_it_has_not():
    open_ends = {"contrast": "removed", "estimate": 0.0, "low": -np.inf, "high": np.inf}
    assert np.isnan([_drawn(open_ends)[end] for end in ("low", "high")]).all()
    for other in ({"contrast": "without"}, {"estimate": 0.1}, {"low": 0.0, "high": 0.0}):
        assert _drawn(open_ends | other) == open_ends | other


def test_caveats_name_the_controls_left_out(result):
    assert any("tuning" in caveat for caveat in result.verdict.caveats)


def test_a_caveat_tells_what_so_few_seeds_may_have_missed(result):
    """Six seeds miss what 39.3 % of all seeds do in 0.607^6 = 5 % of audits."""
    assert any("what happens in 39 % of seeds or fewer may be missing" in c for c in result.verdict.caveats)


def test_a_placebo_that_could_not_fail_is_no_passed_check(result):
    (placebo,) = [check for check in result.evidence.checks if check.name == "placebo"]
    assert placebo.passed is None
    assert "the placebo could show nothing here: each batch is the whole data set" in result.verdict.caveats


def test_a_claim_of_nothing_is_not_reproduced(tmp_path):
    claim = CLAIM.model_copy(update={"treatment": al.Arm(rule="bp", name="backprop again")})
    verdict = al.audit(claim, [al.controls.Placebo()], store=tmp_path / "store").verdict
    assert verdict.kind == "not_reproduced"


@pytest.mark.parametrize(
    "wrong",
    [["placebo"], "placebo", [al.controls.Placebo], al.controls.Placebo()],
    ids=["names", "a name", "classes", "an instance"],
)
def test_controls_are_a_list_of_instances(result, store, wrong):
    with pytest.raises(al.training.SpecError, match=r"controls has .*expected a list of instances"):
        al.audit(result.claim, controls=wrong, store=store)


def test_two_controls_of_one_name_are_refused_before_anything_runs(result, tmp_path):
    twice = [al.controls.GradientClipping(), al.controls.GradientClipping((0.01, 0.1, 1.0))]
    with pytest.raises(al.training.SpecError, match=r"controls has 'gradient_clipping' twice"):
        al.audit(result.claim, controls=twice, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_what_is_no_claim_is_refused(store):
    with pytest.raises(al.training.SpecError, match="expected a Claim, not dict"):
        al.audit({"statement": "fa beats bp"}, store=store)


class OtherStart(al.rules.Rule):
    """Backprop from weights twice as large."""

    name = "other_start"
    uses_feedback = False

    def start(self, layer):
        layer.weight.data.mul_(2.0)


def test_a_rule_that_sets_other_initial_weights_is_told(result, tmp_path, monkeypatch):
    monkeypatch.setitem(al.rules.RULES, "other_start", OtherStart)
    claim = CLAIM.changed(
        treatment=al.Arm(rule="other_start"), seeds=range(2), setup=CLAIM.setup | {"steps": 2}
    )
    caveats = al.audit(claim, [al.controls.Placebo()], store=tmp_path / "store").verdict.caveats
    assert caveats[0].startswith(
        "other_start and bp do not begin alike: before the first step their losses differ by"
    )
    assert not any("begin alike" in caveat for caveat in result.verdict.caveats)


def test_what_other_initial_weights_do_is_told_to_count_half_as_direction_and_half_as_size(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(al.rules.RULES, "other_start", OtherStart)
    claim = CLAIM.changed(treatment=al.Arm(rule="other_start"), seeds=range(2))
    result = al.audit(claim, [al.controls.Magnitude()], store=tmp_path / "store")
    direction, size, _ = (part.effect.estimate for part in result.decomposition())
    assert direction == pytest.approx(size, rel=1e-3)
    assert direction + size == pytest.approx(result.evidence.total.estimate)
    assert "magnitude, global_magnitude and feedback_scale count half as dir" in result.verdict.caveats[0]


class OtherShares(al.rules.Rule):
    """Backprop from the same function, its first layer four times as loud and its last a quarter."""

    name = "other_shares"
    uses_feedback = False

    def start(self, layer):
        if layer.in_features == 2:
            layer.weight.data.mul_(4.0)
            layer.bias.data.mul_(4.0)
        elif layer.out_features == 2:
            layer.weight.data.div_(4.0)


@pytest.mark.parametrize("recorded", [True, False])
def test_other_initial_weights_of_the_same_function_are_told_where_norms_were_recorded(
    recorded, tmp_path, monkeypatch
):
    monkeypatch.setitem(al.rules.RULES, "other_shares", OtherShares)
    setup = CLAIM.setup | {"steps": 4, "hidden": (10,), "record_every": 1 if recorded else 0}
    claim = CLAIM.changed(treatment=al.Arm(rule="other_shares"), seeds=range(2), setup=setup)
    result = al.audit(claim, [al.controls.Placebo()], store=tmp_path / "store")
    told = [caveat for caveat in result.verdict.caveats if "begin alike" in caveat]
    assert [
        "losses agree, but the norms of a layer's weights differ by up to a factor of 4." in c for c in told
    ] == ([True] if recorded else [])


def test_one_seed_that_begins_at_other_weights_is_enough_to_be_told(monkeypatch, tmp_path):
    begun = iter([np.array([2.0, 2.0]), np.array([2.0, 2.5])])
    monkeypatch.setattr(Bench, "begun", lambda bench, specs: next(begun))
    (caveat,) = _unlike(Bench(CLAIM, tmp_path))
    assert "differ by up to 0.5 on one seed" in caveat


@pytest.mark.parametrize("same", [False, True])
def test_what_bench_and_controls_found_reaches_evidence_and_verdict(same, result, store, monkeypatch):
    apply, failed, read = al.controls.Placebo.apply, Check("of a control", False), []

    def found(control, *args):
        return replace(apply(control, *args), checks=(failed,), caveats=("of a control",))

    def gathered(*args, continuous, **how):
        read.append(continuous)
        return gather(*args, continuous=continuous, **how)

    monkeypatch.setattr(al.controls.Placebo, "apply", found)
    monkeypatch.setattr(running, "gather", gathered)
    monkeypatch.setattr(Bench, "continuous", same)
    again = al.audit(CLAIM, CONTROLS, store=store)
    assert failed in again.evidence.checks
    assert "of a control" in again.verdict.caveats
    assert again.continuous is same
    assert read == [same]


@pytest.mark.parametrize(("other", "told"), [(1000.1, False), (1002.0, True), (1e-4, True)])
def test_starts_are_unlike_by_more_than_rounding_whatever_the_size_of_the_loss(
    other, told, monkeypatch, tmp_path
):
    first = 2e-4 if other < 1 else 1000.0
    begun = iter([np.array([first]), np.array([other])])
    monkeypatch.setattr(Bench, "begun", lambda bench, specs: next(begun))
    monkeypatch.setattr(Bench, "first_norms", lambda bench, specs: np.ones((1, 2)))
    assert bool(_unlike(Bench(CLAIM, tmp_path))) is told


def test_a_run_that_lies_under_the_name_of_another_is_not_read_as_that(tmp_path):
    claim = CLAIM.changed(seeds=range(2), setup=CLAIM.setup | {"steps": 2})
    bench = Bench(claim, tmp_path)
    own, other = bench.specs(claim.baseline)
    bench.run("runs", [own, other])
    (tmp_path / f"{bench.name(own)}.nc").write_bytes((tmp_path / f"{bench.name(other)}.nc").read_bytes())
    with pytest.raises(StoreError, match="holds a run of another spec"):
        bench.values([own])


class Unnamed(al.controls.Control):
    def apply(self, bench, treatment, baseline):
        return al.controls.Finding(self.samples(treatment - baseline))


class Idle(al.controls.Control):
    name = "idle"


class Silent(Unnamed):
    name = "silent"

    def apply(self, bench, treatment, baseline):
        super().apply(bench, treatment, baseline)


class Empty(Unnamed):
    name = " "


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (Unnamed, r"the control Unnamed has no name.*name = 'my_control'"),
        (Empty, r"the control Empty has no name"),
        (Idle, r"the control Idle has no apply\(bench, treatment, baseline\)"),
    ],
)
def test_what_a_control_of_ones_own_lacks_is_told_before_anything_runs(result, tmp_path, own, told):
    with pytest.raises(al.training.SpecError, match=told):
        al.audit(result.claim, [own()], store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_control_that_returns_no_finding_is_told(result, store):
    with pytest.raises(TypeError, match=r"Silent\.apply returned None, expected a Finding"):
        al.audit(result.claim, [Silent()], store=store)


def test_a_control_of_ones_own_may_tell_of_necessity_alone_and_never_explains_then(result, store):
    class Nothing(Unnamed):
        name = "nothing"

        def apply(self, bench, treatment, baseline):
            return al.controls.Finding(self.samples(0 * (treatment - baseline)))

    found = al.audit(result.claim, [Nothing()], store=store)
    (evidence,) = found.evidence.controls
    assert evidence.sufficiency is None
    assert found.verdict.kind != "explained_by"
    assert "  N" not in found.verdict.text
