"""Random feedback in convolutional nets: eight questions that a public experiment answered from single runs.

The net is two strided convolutions and two dense layers on MNIST (questions 1 and 2: dense layers of 64 units), B drawn as the
weights are, weight decay 0.001, 100 batches of 32, three learning rates (untied: two), three seeds; each arm is judged at the
rate that its other seeds favour on validation. What counts as "poor" (2 points of test error more), "unstable" (10) or
"ruined" (20) is this module's choice.

Holds: random feedback stays behind backprop (by 8 points), and B that takes the weights' own steps closes the gap (from 22
points to none). Does not hold: clipping ruins nothing at rates that suit it, and at 0.3 it rescues; at 0.1 a norm of 0.1 alone
looks ruinous. "Untied with random feedback is ruined" holds at 0.03 and not at 0.1. Random feedback in the dense layers alone
is poorer (65 % error) than in all layers (33 %) on this grid, and the grid is why: it falls between two limits of stability.
In runs beside the study (100 steps; 8 seeds at 0.1, else 4) dense layers only err on 36 % at 0.05 and 86 % at 0.1, all layers
on 41 % and 33 %. What differs is how conv1 learns: with conv1 frozen both err on 34 % at 0.1, seed by seed alike. Sent through
W, its steps appear to add up with conv2's along an error that is no loss's gradient, until training runs away; feedback in
conv2 that has W's signs or learns W does the same (76 to 83 %), and clipping at norm 1 ends it (24 %; all layers 26 %). The
best rate lies on the grid's edge for 4 layers, dense layers only, untied nets, and clipping at 0.1. A start of 100 steps
cannot show over-fitting (no image is seen twice), nor with three seeds whether depth costs fa more than bp. ``--full`` can.

    alignlab study asymmetric_conv
"""

import alignlab as al
from alignlab.audit import paired
from alignlab.audit.crossfit import tuned
from alignlab.audit.outcomes import final
from alignlab.training.tasks import load

B = {"init": "like_forward"}  # B is drawn as W is
SETUP = {"weight_decay": 1e-3, "batch_size": 32, "evaluations": 2, "record_every": 0}
LOW, HIGH = (0.03, 0.1, 0.3), (0.1, 0.3, 1.0)
CONV, UNTIED, FA = {"model": "convnet"}, {"model": "untied"}, {"rule": "fa", "rule_args": B}
ARMS = {  # label: rates, spec
    "1 layer, bp": (LOW, {"hidden": (64,)}),
    "1 layer, fa": (LOW, {"hidden": (64,), **FA}),
    "4 layers, bp": (LOW, {"hidden": (64,) * 4}),
    "4 layers, fa": (LOW, {"hidden": (64,) * 4, **FA}),
    "conv, bp": (LOW, CONV),
    "conv, fa": (LOW, {**CONV, **FA}),
    "conv, fa in dense layers": (LOW, {**CONV, "rule": {"[57]": {"rule": "fa", **B}, "*": "bp"}}),
    "conv, fa, B learns": (LOW, {**CONV, "rule": "kolen_pollack", "rule_args": B}),
    "conv, fa, clip 1": (HIGH, {**CONV, **FA, "clip": 1.0}),
    "conv, fa, clip 0.1": (HIGH, {**CONV, **FA, "clip": 0.1}),
    "untied, bp": (LOW[:2], UNTIED),
    "untied, fa": (LOW[:2], {**UNTIED, **FA}),
}  # fmt: skip
BP_FA = {"conv, bp": "bp", "conv, fa": "fa in all layers"}
CLIPPED = {"conv, fa, clip 1": "fa, clip 1", "conv, fa, clip 0.1": "fa, clip 0.1"}
QUESTIONS = (  # question, their answer, arms with their names in the panel, (outcome, more, less), margin of "holds"
    ("beside backprop", "never beats it", {"1 layer, bp": "bp", "1 layer, fa": "fa"},
     ("test_error", ["1 layer, fa"], ["1 layer, bp"]), 0),
    ("deeper", "more vulnerable",
     {"4 layers, bp": "bp, 4 layers", "4 layers, fa": "fa, 4 layers", "1 layer, fa": "fa, 1 layer"},
     ("test_error", ["4 layers, fa", "1 layer, bp"], ["4 layers, bp", "1 layer, fa"]), 0),
    ("conv, many layers", "very unstable", BP_FA, ("test_error", ["conv, fa"], ["conv, bp"]), 10),
    ("dense layers only", "possible but poor", {**BP_FA, "conv, fa in dense layers": "fa in dense layers"},
     ("test_error", ["conv, fa in dense layers"], ["conv, bp"]), 2),
    ("untied, bp", "severe over-fitting", {"conv, bp": "tied, bp", "untied, bp": "untied, bp"},
     ("gap", ["untied, bp"], ["conv, bp"]), 2),
    ("untied, fa", "ruins training", {"untied, bp": "untied, bp", "untied, fa": "untied, fa"},
     ("test_error", ["untied, fa"], ["untied, bp"]), 20),
    ("clipping", "ruins training", {"conv, fa": "fa", **CLIPPED}, ("test_error", ["best clipped"], ["conv, fa"]), 20),
    ("B learns as W does", "helps", {**BP_FA, "conv, fa, B learns": "fa, B learns"},
     ("test_error", ["conv, fa"], ["conv, fa, B learns"]), 0),
)  # fmt: skip
SMALL = {"task": "mnist_small", "steps": 100}
FULL = {"task": "mnist", "steps": 8000}


def arms(full):
    size, seeds = (FULL, range(5)) if full else (SMALL, range(3))
    return {
        arm: [al.RunSpec(**SETUP, **size, **own, lr=lr, seed=seed) for lr in rates for seed in seeds]
        for arm, (rates, own) in ARMS.items()
    }


def measured(runs):
    """With errors and the gap between those on test and training images, in percent."""
    test, train = (100 * (1 - runs[f"{split}_accuracy"]) for split in ("test", "train"))
    return runs.assign(test_error=test, gap=test - train)


def ends(runs, outcome):
    """The final outcome, seed × arm; of the two that clip, also the better one."""
    found = final(runs, outcome)
    if set(CLIPPED) <= set(found):
        found["best clipped"] = found[list(CLIPPED)].min(axis=1)
    return found


def difference(table, more, less):
    """Percentage points by which the arms ``more`` exceed ``less``, seed by seed."""
    return paired(sum(table[arm] for arm in more) - sum(table[arm] for arm in less))


def answers(runs):
    """Of each question the difference at best rates, and at each rate that all its arms have; with the verdict."""
    runs, found = measured(runs), []
    best = tuned(runs, "validation_accuracy", ("arm",))
    for _, _, _, (outcome, more, less), margin in QUESTIONS:
        own = difference(ends(best, outcome), more, less)
        needed = {arm for part in more + less for arm in (CLIPPED if part == "best clipped" else [part])}
        rates = set.intersection(
            *(
                {s for s, a in zip(runs["lr"].values, runs["arm"].values, strict=True) if a == arm}
                for arm in needed
            )
        )
        at = {
            lr: difference(ends(runs.isel(run=(runs["lr"].values == lr)), outcome), more, less)
            for lr in sorted(rates)
        }
        unseen = outcome == "gap" and epochs(runs) <= 1
        found.append((own, at, "cannot show: no image seen twice" if unseen else verdict(own, at, margin)))
    return found


def epochs(runs):
    """How often training has seen each image."""
    return int(runs["last_step"].max()) * SETUP["batch_size"] / len(load(runs["task"].values[0]).train)


def verdict(own, at, margin):
    """Holds where the interval at best rates is above the margin, does not where it is below."""
    if own.low > margin:
        return "holds"
    only = ", ".join(f"{lr:g}" for lr, one in at.items() if one.low > margin)
    word = "does not hold" if own.high <= margin else "undecided"
    return f"{word}; holds at lr {only}" if only else word


def figures(runs):
    asked = [
        al.figures.Question(f"{i}  {question}: “{theirs}”\n{said}", named)
        for i, ((question, theirs, named, *_), (*_, said)) in enumerate(
            zip(QUESTIONS, answers(runs), strict=True), 1
        )
    ]
    note = "Under each claim: whether it holds, each arm at its best rate (table: differences and margins). Line: chance."
    return {
        "asymmetric_conv": al.figures.questions(
            measured(runs), asked, "test_error", words="test error [%]", chance=90.0, note=note
        )
    }


def table(runs):
    rows = []
    for (question, theirs, _, (outcome, more, less), margin), (own, at, said) in zip(
        QUESTIONS, answers(runs), strict=True
    ):
        rows.append({
            "question": question, "their answer": theirs, "ours [points]": f"{' + '.join(more)} − {' − '.join(less)}"
            + (" (test − train error)" if outcome == "gap" else ""),
            "at best rates [95 %]": f"{own.estimate:+.1f} [{own.low:+.1f}, {own.high:+.1f}]",
            "at one rate": ", ".join(f"{lr:g}: {one.estimate:+.1f}" for lr, one in at.items()),
            "holds if above": margin, "verdict": said,
        })  # fmt: skip
    return rows


STUDY = al.Study(
    question="What becomes of random feedback in deep, convolutional and untied nets, and what helps it?",
    source="github.com/feng-yufei/Asymmetric-Backpropagation (README: single runs), after Liao 2016, Nøkland 2016, Amit 2019",
    arms=arms,
    figures=figures,
    table=table,
)
