"""Does backprop beat feedback alignment? A claim that should survive its audit, in the main.

With random fixed feedback a network of 784-128-64-10 learns, but its errors point away from the gradient by tens of degrees
(Lillicrap et al. 2016). Giving it backprop's step sizes, or its own best learning rate, does not turn them round.

    alignlab audit bp_beats_fa
"""

import alignlab as al

CLAIM = al.Claim(
    statement="backprop beats feedback alignment",
    source="Bartunov et al. 2018, Moskovitz et al. 2018: the gap on deeper networks",
    treatment=al.Arm(rule="bp"),
    baseline=al.Arm(rule="fa", rule_args={"init": "like_forward"}),
    task="mnist_small",
    outcome="train_loss",
    direction="lower",
    smallest_effect=0.02,
    setup={"hidden": (128, 64), "lr": 0.01, "batch_size": 64, "steps": 500},
    seeds=tuple(range(10)),
    controls=("tuning", "magnitude", "placebo", "spike_in"),
)

if __name__ == "__main__":
    result = al.audit(CLAIM)
    print(result.table(), result.verdict, sep="\n\n")
