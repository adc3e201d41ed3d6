"""Does sign-synchronised feedback alignment beat backprop, and if so, why?

Every T steps the feedback becomes the sign of the forward weights, B ← sign(W), unscaled. At one learning rate for both it
learns MNIST many times faster than backprop. The entries of B are ±1 where those of W are about 1/√fan_in: the rule hands
errors down that are larger by that factor, layer by layer. Is there anything else to it?

    alignlab audit sign_sync
"""

import alignlab as al

CLAIM = al.Claim(
    statement="sign-synchronised feedback alignment beats backprop",
    source="the experiment that alignlab began with: one learning rate for both, MNIST",
    treatment=al.Arm(rule="sign_sync", rule_args={"period": 100}),
    baseline=al.Arm(rule="bp"),
    task="mnist_small",
    outcome="train_loss",
    direction="lower",
    smallest_effect=0.02,
    setup={"hidden": (128, 64), "lr": 0.002, "batch_size": 64, "steps": 500},
    seeds=tuple(range(10)),
    controls=("magnitude", "tuning", "placebo"),
)

if __name__ == "__main__":
    result = al.audit(CLAIM)
    print(result.table(), result.verdict, sep="\n\n")
