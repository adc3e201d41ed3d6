"""How much longer than backprop does feedback alignment take to reach a training loss?

"About twice as long" was read off one pair of loss curves at one learning rate. Here is that ratio at every level of the
training loss and at five learning rates, for a network 784-100-10 of ReLUs and plain SGD. B is drawn either as W is, from
U(±1/√fan_in), or from Lillicrap's U(±0.5), which is five times as large here. At one rate for both the ratio is whatever the
size of B makes it: 1.5 to 2.3 for B as W (rates up to 0.1), 0.5 to 0.85 for the larger B (rates up to 0.03), so that
feedback alignment is the *faster* one; at 0.3, which suits backprop best, it is 20 to 55 for B as W at losses of 0.7 to 0.4
(at 0.4, where rounding decides whether each seed arrives, perhaps more), and else it comes too late to tell. Each at its own
best rate, the size of B matters little: not at all down to a loss of 0.4, and from there the larger B takes longer, seed by
seed by 9 % [2, 16] to 0.3 and 16 % [11, 21] to 0.15. The ratio to backprop is 3 at a loss of 0.7, 2 at 0.5, its least, rises
to 4 to 5 at 0.2, and is seen to grow no further: 4 at 0.15 and 0.1 for B as W, while the larger B does not always get to 0.1.
At best rates "about twice" is the least.

    alignlab study mnist_fa
"""

import alignlab as al
from alignlab.audit import outcomes
from alignlab.audit.durations import duration_ratios

LEVELS = (0.7, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07)
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
PUBLISHED = {"published: about 2\n(one run, one rate)": 2.0}
SETUP = {"hidden": (100,), "batch_size": 64, "spacing": "geometric", "record_every": 0, "splits": ("train",)}
SMALL = {"task": "mnist_small", "steps": 1500, "evaluations": 32}
FULL = {"task": "mnist", "steps": 15000, "evaluations": 45}
ARMS = {
    "bp": {"rule": "bp"},
    "fa, B as W": {"rule": "fa", "rule_args": {"init": "like_forward"}},
    "fa, B from U(±0.5)": {"rule": "fa", "rule_args": {"init": "lillicrap"}},
}


def arms(full):
    size, seeds = (FULL, range(10)) if full else (SMALL, range(5))
    return {
        label: [al.RunSpec(**SETUP, **size, **own, lr=lr, seed=seed) for lr in RATES for seed in seeds]
        for label, own in ARMS.items()
    }


def figures(runs):
    return {"mnist_fa": al.figures.durations(runs, LEVELS, published=PUBLISHED)}


def table(runs):
    """A row for each arm and learning rate: the ratio [95 % interval] at each level; ? where neither always arrived. The last:
    both sizes of B, each at its best."""
    rows, own, other = {}, *list(ARMS)[1:]
    found = duration_ratios(runs, "train_loss", LEVELS)
    sizes = duration_ratios(outcomes.of_arms(runs, own, other), "train_loss", LEVELS, baseline=own)
    found += [one._replace(arm=f"{other} / {own}") for one in sizes if one.lr is None]
    for one in found:
        rate = "best of each" if one.lr is None else f"{one.lr:g}"
        row = rows.setdefault((one.arm, rate), {"arm": one.arm, "lr": rate})
        row[f"to {one.level:g}"] = one.ratio
    return list(rows.values())


STUDY = al.Study(
    question="How much longer than backprop does feedback alignment take to reach a training loss?",
    source="tali.link/projects/science/soap (2019): about twice as long, from one run at one learning rate",
    arms=arms,
    figures=figures,
    table=table,
)
