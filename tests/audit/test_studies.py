"""Independent studies of a search: each chooses on seeds of its own, and what is compared are the means of studies."""

import dataclasses
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from known_bench import CLAIM, KnownBench

import alignlab as al
from alignlab.audit.controls import Tuning
from alignlab.audit.evidence import Evidence
from alignlab.audit.gathering import ControlSamples, gather
from alignlab.audit.result import levels
from alignlab.audit.search import FIRST_TUNING_SEED
from alignlab.audit.statistics import paired, seeds_needed
from alignlab.audit.studies import Searches
from alignlab.audit.verdict import decide
from alignlab.training.errors import SpecError

STUDIES = CLAIM.model_copy(update={"seeds": (5, 3, 8, 1, 9, 2), "tuning_studies": 3})
TURNED = STUDIES.model_copy(update={"treatment": STUDIES.baseline, "baseline": STUDIES.treatment})


def study_of(spec):
    """By the seeds that choose: two a study."""
    return (spec.seed - FIRST_TUNING_SEED) // 2


def value(spec):
    """What chooses favours 0.01, 0.1, 1 for sign_sync, by study, and 0.1 for bp; the outcome is 3 and 1 times log lr."""
    if spec.seed >= FIRST_TUNING_SEED:
        best = (0.01, 0.1, 1.0)[study_of(spec)] if spec.rule == "sign_sync" else 0.1
        return -abs(np.log10(spec.lr / best))
    return (3 if spec.rule == "sign_sync" else 1) * np.log10(spec.lr) + 0.01 * spec.seed * (spec.rule == "bp")


def found_on(claim, value=value):
    bench = KnownBench(claim, value)
    sides = [bench.outcomes("t", claim.treatment), bench.outcomes("b", claim.baseline)]
    return Tuning().apply(bench, *sides), bench, sides


@pytest.mark.parametrize(("claim", "sign"), [(STUDIES, 1), (TURNED, -1)])
def test_differences_are_means_over_the_seeds_of_each_study_at_its_own_choice(claim, sign):
    """Studies of seeds (5, 3), (8, 1), (9, 2); sign_sync has 3 log lr − (1 log 0.1 + seed / 100)."""
    found, _, (t, b) = found_on(claim)
    noise = np.array([0.04, 0.045, 0.055])
    n = sign * (3 * np.array([-2, -1, 0]) + 1 - noise)
    given = -2 - noise if sign > 0 else [-1 + noise[i] - 3 * log for i, log in enumerate((-2, -1, 0))]
    assert found.samples.necessity == pytest.approx(tuple(n))
    assert found.samples.sufficiency == pytest.approx(tuple(given))
    assert found.samples.study_size == 2
    removed = (t - b).reshape(3, 2).mean(1) - n
    assert found.samples.removed == pytest.approx(tuple(removed))
    table = gather(tuple(t - b), [found.samples], 0.1)
    assert (table.total.n, table.controls[0].necessity.n, table.controls[0].removed.n) == (6, 3, 3)
    assert table.controls[0].removed.estimate == pytest.approx(np.mean(t - b) - np.mean(n))


def test_every_study_chooses_on_seeds_of_its_own_with_equal_budgets():
    _, bench, _ = found_on(STUDIES)
    searched = {name: group for name, group in bench.groups.items() if group.kind == "search"}
    seeds = {}
    for name, group in searched.items():
        study = name.rpartition(", ")[2]
        seeds.setdefault(study, set()).update(spec.seed for spec in group.specs)
        seeds.setdefault((study, group.arm), []).extend(spec.lr for spec in group.specs)
    own = [seeds[f"study {r}"] for r in (1, 2, 3)]
    assert [len(s) for s in own] == [2, 2, 2]
    assert len(set.union(*own)) == 6
    assert set.union(*own).isdisjoint(STUDIES.seeds)
    for r in (1, 2, 3):
        assert seeds[f"study {r}", "bp"] == seeds[f"study {r}", "sign_sync"]


def test_a_study_extends_its_grid_for_both_arms_and_for_no_other_study():
    found, _, _ = found_on(STUDIES)
    grids = {arm: [s["learning_rates"] for s in own["studies"]] for arm, own in found.details.items()}
    assert grids["bp"] == grids["sign_sync"]
    assert [(min(grid), max(grid)) for grid in grids["bp"]] == [(0.001, 1.0), (0.01, 1.0), (0.01, 10.0)]
    assert [s["best_lr"] for s in found.details["sign_sync"]["studies"]] == [0.01, 0.1, 1.0]
    assert [check.passed for check in found.checks] == [True, True, True]
    details = [check.detail for check in found.checks]
    assert details[0] == "best learning rates 0.01, 0.1, 1, inside the grid in all 3 studies"
    assert details[2] == "sign_sync: 22 tuning runs, bp: 22 tuning runs in 3 studies"


def test_an_edge_in_one_study_fails_the_arms_one_line_and_names_it():
    def on_edge(spec):
        edge = spec.seed >= FIRST_TUNING_SEED and spec.rule == "bp" and study_of(spec) == 1
        return np.log10(spec.lr) if edge else value(spec)

    found, _, _ = found_on(STUDIES, on_edge)
    assert [check.passed for check in found.checks] == [True, False, True]
    assert found.checks[1].name == "grid edge: bp"
    assert found.checks[1].detail == (
        "best learning rate 1000, on the edge of the grid from 0.01 to 1000 in study 2, on an edge in 1 of 3 studies"
    )


def test_unequal_budgets_in_one_study_fail_even_where_they_add_up():
    searches = Searches(KnownBench(STUDIES, value), Tuning().grid(STUDIES))
    searches.run()
    assert searches._budgets().passed
    for r, arm in ((0, 0), (2, 1)):
        searches.studies[r][arm].scores[77.0] = np.zeros(2)
    check = searches._budgets()
    assert check.failed
    assert check.detail == "sign_sync: 10 tuning runs, bp: 8 tuning runs in study 1"


def test_one_study_is_what_it_was():
    """Runs, differences, the caveat, and the store's name."""
    one = STUDIES.model_copy(update={"tuning_studies": 1})
    found, bench, _ = found_on(one)
    assert len(found.samples.necessity) == 6
    assert (found.samples.removed, found.samples.study_size) == (None, None)
    assert "learning rates were chosen once, on 2 tuning seeds" in found.caveats[0]
    assert {"sign_sync, lr 0.1", "bp, lr 0.1", "sign_sync, tuned", "bp, tuned"} <= bench.groups.keys()
    assert "best_lr" in found.details["bp"]
    assert {s.seed for s in bench.groups["bp, lr 0.1"].specs} == {1_000_003, 1_000_004}
    fields = one.model_dump(mode="json")
    del fields["tuning_studies"]
    text = json.dumps(fields, sort_keys=True)
    assert one.digest() == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert one.digest() != STUDIES.digest()


def overfitting(spec, metric):
    """bp is best by validation at 0.1, and by training at 1, by 2; sign_sync at 0.1 by both."""
    log = np.log10(spec.lr)
    return 2 * log if spec.rule == "bp" and metric is None else -abs(log + 1)


@pytest.mark.parametrize(
    ("change", "told"), [({}, True), ({"smallest_effect": 2.0}, False), ({"outcome": "test_loss"}, False)]
)
@pytest.mark.parametrize("studies", [1, 3])
def test_a_choice_by_validation_that_training_would_not_make_is_told_with_what_it_costs_there(
    studies, change, told
):
    class Bench(KnownBench):
        def values(self, specs, metric=None):
            return np.array([overfitting(spec, metric) for spec in specs])

    claim = STUDIES.model_copy(update={"tuning_studies": studies} | change)
    _, *caveats = Tuning().apply(Bench(claim, None), np.arange(6.0), np.zeros(6)).caveats
    assert len(caveats) == told
    assert all(
        "validation_loss chose the learning rate 0.1 for bp; train_loss would choose 1, where it is better by 2 ("
        in c
        for c in caveats
    )


def test_several_studies_say_what_they_still_leave_out():
    (caveat,) = found_on(STUDIES)[0].caveats
    assert "in 3 independent studies of 2 tuning seeds each" in caveat
    assert "on one grid and the same validation data" in caveat
    assert "chosen once" not in caveat


def test_further_studies_of_the_same_size_leave_the_others_as_they_were():
    more = STUDIES.model_copy(update={"seeds": (*STUDIES.seeds, 11, 12), "tuning_studies": 4})
    longer = {**dict(enumerate((0.01, 0.1, 1.0))), 3: 0.1}

    def known(spec):
        if spec.seed >= FIRST_TUNING_SEED and spec.rule == "sign_sync":
            return -abs(np.log10(spec.lr / longer[study_of(spec)]))
        return value(spec)

    few, many = found_on(STUDIES, known)[1], found_on(more, known)[1]
    for arm in ("sign_sync", "bp"):
        assert few.groups[f"{arm}, tuned"].specs == many.groups[f"{arm}, tuned"].specs[:6]


@pytest.mark.parametrize(
    ("n", "studies", "ways"),
    [(6, 4, "take 4 or 8 seeds, or as many studies as one of 1, 2, 3, 6"), (3, 5, "take 5 seeds")],
)
def test_seeds_that_cannot_be_split_evenly_are_refused_in_one_line(n, studies, ways, tmp_path):
    fields = {**CLAIM.model_dump(), "seeds": range(n), "tuning_studies": studies}
    with pytest.raises(
        SpecError, match=f"^tuning_studies is {studies}, among which {n} seeds cannot be .* {ways}"
    ):
        al.Claim(**fields)
    copied = CLAIM.model_copy(update={"seeds": tuple(range(n)), "tuning_studies": studies})
    with pytest.raises(SpecError, match="cannot be split evenly"):
        al.audit(copied, [Tuning()], store=tmp_path / "store")
    with pytest.raises(SpecError, match="tuning_studies is 0"):
        al.Claim(**{**fields, "tuning_studies": 0})


def test_seeds_that_any_study_chooses_on_are_refused():
    claim = STUDIES.model_copy(update={"seeds": (0, 1, 2, 3, 4, FIRST_TUNING_SEED + 5)})
    with pytest.raises(SpecError, match=r"seeds \[1000008\] are those that choose the learning rates"):
        Tuning().check(claim)
    Tuning().check(claim.model_copy(update={"tuning_studies": 2}))


# --- how many more seeds ------------------------------------------------------------------------------------------

WIDE = (1.0, -0.6, 0.4, 0.9)
M = 0.3


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_seeds_that_are_asked_for_are_those_of_whole_studies(size):
    samples = ControlSamples("tuning", WIDE, WIDE, WIDE, study_size=size)
    total = [1.0 + 0.01 * i for i in range(4 * size)]
    table = gather(total, [samples], M)
    needed = seeds_needed(WIDE, M, 0.05)
    assert table.seeds_needed == size * needed
    assert table.fewest_seeds() == 4 * size
    verdict = decide(table)
    assert verdict.more_seeds == size * (needed - 4)
    each = "one seed" if size == 1 else f"{size} seeds"
    assert f"in {needed - 4} more studies (tuning_studies) of {each} each" in verdict.text


def test_a_control_of_seeds_beside_one_of_studies_asks_for_whole_studies_too():
    narrow = ControlSamples("tuning", [0.1, 0.12], [0.1, 0.12], [0.9, 0.91], study_size=7)
    wide = ControlSamples("magnitude", WIDE, WIDE, WIDE)
    total = [1.0 + 0.01 * i for i in range(14)]
    assert seeds_needed(WIDE, M, 0.025) == 60
    assert gather(total, [narrow, wide], M).seeds_needed == 63
    assert gather(total, [narrow, wide], M, max_seeds=59).seeds_needed is None


def test_studies_of_several_sizes_ask_for_seeds_that_are_whole_studies_of_each():
    narrow = [[0.1, 0.12], [0.1, 0.12], [0.9, 0.91]]
    four, six = (ControlSamples(f"of {n}", *narrow, study_size=n) for n in (4, 6))
    wide = ControlSamples("magnitude", WIDE, WIDE, WIDE)
    assert seeds_needed(WIDE, M, 0.05 / 3) == 66
    assert gather([1.0 + 0.01 * i for i in range(6)], [four, six, wide], M).seeds_needed == 72


def test_the_limit_is_of_seeds_where_differences_are_of_studies_too():
    samples = ControlSamples("tuning", WIDE, WIDE, WIDE, study_size=2)
    total, needed = [1.0 + 0.01 * i for i in range(8)], 2 * seeds_needed(WIDE, M, 0.05)
    assert gather(total, [samples], M, max_seeds=needed).seeds_needed == needed
    assert gather(total, [samples], M, max_seeds=needed - 2).seeds_needed is None


def test_without_studies_the_sentence_is_as_it_was():
    table = gather([1.0, 1.1, 1.05, 0.95], [ControlSamples("magnitude", WIDE, WIDE)], M)
    assert "studies" not in decide(table).text


def test_the_table_says_what_n_counts():
    samples = ControlSamples("tuning", WIDE, WIDE, WIDE, study_size=2)
    other = ControlSamples("magnitude", [1.0] * 7 + [0.9], [1.0] * 7 + [0.9])
    table = gather([1.0] * 7 + [1.1], [other, samples], M)
    assert levels(table.rows()).endswith("; n of tuning counts studies of 2 seeds, whose means are compared")
    assert [row["n"] for row in table.rows()] == [8, 8, 8, 8, 4, 4, 4]
    assert Evidence.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    plain = dataclasses.replace(table, controls=table.controls[:1])
    assert "studies" not in levels(plain.rows())


# --- what studies are for -----------------------------------------------------------------------------------------


def coverage(studies, audits=120, n=8):
    """Of the 95 % intervals of N, where 3 rates are equally good to what chooses, and 0.5 apart in truth."""
    hits = 0
    for audit in range(audits):
        rng = np.random.default_rng(audit)
        drawn = {}

        def value(spec, rng=rng, drawn=drawn):
            key = spec.rule, spec.lr, spec.seed
            if key not in drawn:
                chooses = spec.seed >= FIRST_TUNING_SEED
                inside = 0.1 / 1.01 <= spec.lr <= 0.4
                known = -9.0 * (not inside) if chooses else 0.5 * np.log2(spec.lr / 0.1)
                drawn[key] = known + (0.1 if inside else 0.01) * rng.standard_normal()
            return drawn[key]

        claim = SPECS.model_copy(update={"seeds": tuple(range(n)), "tuning_studies": studies})
        found = Tuning().apply(Quick(claim, value), np.zeros(n), np.zeros(n))
        assert all(check.passed for check in found.checks)
        interval = paired(found.samples.necessity)
        hits += interval.low <= 0 <= interval.high  # equal arms: the truth is 0, over seeds and choices
    return hits / audits


SPECS = CLAIM.model_copy(update={"learning_rates": (0.05, 0.1, 0.2, 0.4, 0.8), "tuning_seeds": 1})


class Quick(KnownBench):
    """With specs of the few fields that count."""

    def __init__(self, claim, value):
        made = {}

        def spec(arm, seed, lr=0.1):
            return made.setdefault((arm.rule, seed, lr), SimpleNamespace(rule=arm.rule, seed=seed, lr=lr))

        super().__init__(SimpleNamespace(**claim.model_dump(exclude={"treatment", "baseline"}), treatment=claim.treatment,
                                         baseline=claim.baseline, spec=spec), value)  # fmt: skip


def test_a_study_for_every_seed_has_intervals_that_know_of_the_choice_and_one_study_has_not():
    assert coverage(8) >= 0.9
    assert coverage(1) <= 0.6


def test_a_real_audit_with_studies(tmp_path):
    setup = {"hidden": (4,), "batch_size": 2, "steps": 20, "lr": 0.1, "record_every": 10}
    claim = al.Claim(
        **{
            **CLAIM.model_dump(),
            "seeds": range(6),
            "setup": setup,
            "tuning_studies": 3,
            "tuning_seeds": 1,
        },
    )
    result = al.audit(claim, [Tuning()], store=tmp_path)
    row = result.evidence.controls[0]
    assert (result.evidence.total.n, row.necessity.n, row.study_size) == (6, 3, 2)
    by_seed = np.subtract(result.outcomes["bp, tuned"], result.outcomes["sign_sync, tuned"])
    assert row.necessity == paired(by_seed.reshape(3, 2).mean(1))
    assert "n of tuning counts studies of 2 seeds" in result.table()
    json.dumps(result.to_dict())
    figures = al.figures.audit_figures(result)
    drawn = figures["loss_against_lr"]
    assert "N of tuning counts studies of 2 seeds" in figures["forest"]._supxlabel.get_text()
    stars = {
        float(line.get_xdata()[0]) for ax in drawn.axes for line in ax.lines if line.get_label() == "_optimum"
    }
    assert stars == {s["best_lr"] for own in result.details["tuning"].values() for s in own["studies"]}
    assert len(stars) > 1
    assert (
        len(figures["learning_curves"].axes) == 1
    )  # an arm is one curve at whatever rates its studies chose
    assert al.audit(claim, [Tuning()], store=tmp_path).computed == 0
