"""How do random feedback and learned weights come to agree, and how much agreement does learning need?

An error e descends where eᵀ W Bᵀ e > 0 (Lillicrap et al. 2016). That this holds for *every* e takes a positive definite
symmetric part of W Bᵀ; that it holds for the errors which occur takes far less. A tanh net 784-64-64-10 by feedback
alignment from small weights (PyTorch's times 0.1, so that alignment can be seen; lr 0.2, one rate: rules are not compared
here). Six seeds. *Aligned*: where 99 % of a batch's errors first descend in every layer. *Memorising*: from the lowest
validation loss on.

The answer: after 3 steps, the median, all errors descend in every layer (in four seeds of six; in two the last layer takes 4
and 6), when the loss has hardly moved (2.30 to 2.23 at step 3) and 46 % of the eigenvalues of layer 3 still lie on the left.
What moves right are 9 of 64 modes, as many as the errors of ten classes have dimensions; the rest stay in the disc of chance,
at the end 29 % of all on the left, and the smallest eigenvalue of the symmetric part never becomes positive: it falls from
-0.13 to -1.4. Its weights end at 69 degrees to B, gradients of the second layer at 20. While the net memorises (loss 0.08 to
0.004) the first layer's gradient turns away again, by 7 degrees [2, 13], and its loss falls none the less.

    alignlab study eigen_alignment
"""

import alignlab as al
from alignlab.audit import feedback, outcomes, paired, tables
from alignlab.study import aligned

SETUP = {
    "task": "mnist_small", "hidden": (64, 64), "activation": "tanh", "weight_scale": 0.1, "lr": 0.2, "batch_size": 128,
    "steps": 3000, "evaluations": 31, "record_every": 0, "record_log": 80, "spectra_every": 2,
}  # fmt: skip
FULL = {"task": "mnist", "hidden": (256, 256, 256), "steps": 20000, "evaluations": 41}
RULES = {"random feedback": "fa", "backprop": "bp"}


def arms(full):
    base = al.RunSpec(**(SETUP | FULL if full else SETUP))
    return {label: al.grid(base.changed(rule=rule), seed=range(6)) for label, rule in RULES.items()}


def moments(mine):
    """The median steps from which on every layer's errors descend, and of the lowest validation loss."""
    descending, best = feedback.aligned_at(mine), outcomes.best_step(mine, "validation_loss")
    found = {"aligned (≥ 99 % of errors descend)": descending, "memorising (lowest validation loss)": best}
    return {moment: float(steps["random feedback"].median()) for moment, steps in found.items()}


def figures(runs):
    mine, bp = (outcomes.of_arms(runs, label) for label in RULES)
    second = str(runs["layer"].values[1])
    return {"eigen_alignment": al.figures.aligning(mine, cloud=second, control=bp, marks=moments(mine))}


def table(runs):
    mine, bp = (outcomes.of_arms(runs, label) for label in RULES)
    (first, second), (descending, best) = runs["layer"].values.tolist()[:2], moments(mine).values()
    at = {"start": 0, "aligned": descending, "memorising": best, "end": int(runs["step"].max())}
    columns = {
        f"errors downhill ({second})": (mine, "descent_fraction", second),
        "Re λ > 0": (mine, "spectrum_positive_fraction", second),
        "λ beyond chance": (mine.assign(outside=feedback.beyond_chance(mine)), "outside", second),
        "λ_min (symmetric)": (mine, "symmetric_min", second),
        f"gradient angle ({first})": (mine, "gradient_angle", first),
        "loss": (mine, "loss", None),
        "loss of bp": (bp, "loss", None),
    }
    angles = {when: outcomes.around(mine, "gradient_angle", at[when], layer=first, over=7) for when in at}
    rise = (angles["end"] - angles["memorising"])["random feedback"]
    worst = bp[["spectrum_positive_fraction", "descent_fraction", "symmetric_min"]].min()
    return aligned(
        tables.at_steps(at, columns),
        f"Gradient angle of layer {first}, end - memorising (7 looks each): {paired(rise):+.1f} degrees, "
        f"up in {sum(rise > 0)} of {len(rise)}.",
        f"Control, B = W, the worst of all seeds, layers and steps: Re λ > 0 {worst.spectrum_positive_fraction:.3g}, "
        f"errors downhill {worst.descent_fraction:.3g}, λ_min {worst.symmetric_min:.1g}, angle {bp.gradient_angle.max():.1g}.",
    )


QUESTION = "How do W and B come to agree under random feedback, and how much agreement does learning need?"
SOURCE = "Lillicrap et al. 2016: eᵀ W B e > 0; Refinetti et al. 2021: align, then memorise"
STUDY = al.Study(QUESTION, SOURCE, arms, figures, table)
