"""Does random feedback learn XOR, and what does that mean when the readout alone solves some of it?

A network 2-10-10-1 of ReLUs without biases starts from standard normal weights and sees 5,000 single samples, drawn at random;
its loss is |output − target|, so that its error is a sign. Errors travel back through W, through fixed random weights, through
random weights drawn anew at every step, or not at all: then the hidden layers stay as they were drawn and the readout learns.
A run is right where all four outputs are on the right side of 0.5. It has found XOR where it was ever right at an evaluation
(every 50 steps), and solved it where it is right at the end.

    alignlab study xor
"""

import alignlab as al
from alignlab.audit.outcomes import final, steps_to
from alignlab.audit.shares import mcnemar_p, share_of

SEEDS = range(200)
SETUP = {
    "task": "xor_bits", "hidden": (10, 10), "bias": False, "weight_init": "gaussian", "loss": "absolute", "lr": 0.01,
    "batch_size": 1, "sampling": "replacement", "steps": 5000, "evaluations": 101, "splits": ("train",), "record_every": 0,
}  # fmt: skip
ARMS = {
    "symmetric": {"rule": "bp"},
    "fixed random": {"rule": "fa", "rule_args": {"init": "gaussian"}},  # B as the weights were drawn
    "random anew": {"rule": "rerandomised", "rule_args": {"init": "gaussian"}},
    "readout only": {"rule": "bp", "frozen": ("1.*", "3.*")},
}


def arms(full):
    return {label: [al.RunSpec(**SETUP, **own, seed=seed) for seed in SEEDS] for label, own in ARMS.items()}


def figures(runs):
    return {"xor": al.figures.reaching(runs, "train_accuracy", 1.0, what="all four outputs right")}


def table(runs):
    first, solved = steps_to(runs, "train_accuracy", 1.0), final(runs, "train_accuracy") == 1
    alone = solved["readout only"]
    return [
        {
            "arm": arm,
            "solved [95 %]": share_of(solved[arm]),
            "ever found": share_of(first[arm] < float("inf")).hits,
            "median step": first[arm].median(),
            "seeds more/fewer than readout only": f"{sum(solved[arm] & ~alone)}/{sum(alone & ~solved[arm])}",
            "p (McNemar)": mcnemar_p(solved[arm], alone),
        }
        for arm in ARMS
    ]


STUDY = al.Study(
    question="Does random feedback learn XOR, or does the readout?",
    source="demonstrations of feedback alignment on XOR, such as github.com/nmfisher/feedback_alignment_demo",
    arms=arms,
    figures=figures,
    table=table,
)
