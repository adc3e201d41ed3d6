"""What controls share that compare two arms by a 2×2 exchange: {direction} × {size} of each.

With outcomes y(direction, size), T for treatment and B for baseline: total = y(T,T) − y(B,B) = direction effect + size effect,
where direction = ½[(y(T,T) − y(B,T)) + (y(T,B) − y(B,B))] and size likewise; the interaction is
y(T,T) − y(T,B) − y(B,T) + y(B,B).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from alignlab.audit.bench import Bench
from alignlab.audit.claim import Arm, Claim
from alignlab.audit.controls.control import Contrast
from alignlab.audit.controls.recorded import table
from alignlab.rules.choosing import make_rules
from alignlab.training.errors import SpecError


def effects(tt: Any, bb: Any, tb: Any, bt: Any, labels: tuple[str, str, str]) -> list[Contrast]:
    """The direction effect, the size effect and the interaction, under these ``labels``; outcomes (n,), one a seed."""
    found = (((tt - bt) + (tb - bb)) / 2, ((tt - tb) + (bt - bb)) / 2, tt - tb - bt + bb)
    return [
        Contrast(label, "decomposition", tuple(values), compares=label != labels[2])
        for label, values in zip(labels, found, strict=True)
    ]


def rule_arm(claim: Claim, control: str) -> tuple[Arm, bool]:
    """The arm that is not backprop, and whether it is the treatment. ``control``: who asks."""
    rules = (claim.treatment.rule, claim.baseline.rule)
    if rules.count("bp") != 1:
        raise SpecError(
            f"control {control!r} compares a rule with backprop; the arms are {rules[0]!r} and {rules[1]!r}. "
            "Leave the control out, or let bp be the rule of one arm and not of the other"
        )
    return (claim.treatment, True) if rules[1] == "bp" else (claim.baseline, False)


def common_rate(claim: Claim, control: str) -> float:
    """The learning rate of both arms."""
    rates = {claim.spec(arm, claim.seeds[0]).lr for arm in (claim.treatment, claim.baseline)}
    if len(rates) > 1:
        raise SpecError(
            f"control {control!r} needs one learning rate for both arms, the claim has {sorted(rates)}"
        )
    return rates.pop()


def bias_caveats(claim: Claim, control: str) -> list[str]:
    """A caveat for each arm whose rule fills gradients itself, and so may treat a bias otherwise than its weight."""
    return [
        f"{control} sizes steps by the weights, and a bias takes its weight's factor: what {arm.label} does to biases alone "
        "counts as direction"
        for arm in (claim.treatment, claim.baseline)
        if claim.spec(arm, claim.seeds[0]).bias
        and any(rule.explicit or rule.closure for rule in make_rules(arm.rule, **arm.rule_args).values())
    ]


def idle_caveats(control: str, sizes: str, share: float, tolerance: float) -> list[str]:
    """A caveat where more than the tolerated ``share`` of a layer's ``sizes``, in one run, could make no step."""
    if share <= tolerance:
        return []
    return [
        f"{control}: up to {100 * share:.0f} % of the {sizes} sizes (of a layer, in one run) met a gradient of zero and made "
        "no step: there the arm had nothing that could be given a size"
    ]


def unrecorded(bench: Bench, arms: tuple[Arm, ...], quantity: str) -> list[str]:
    """The runs of these arms, as claimed, that recorded no finite value of a quantity that is to be replayed."""
    return [
        f"{arm.label}, seed {spec.seed}"
        for arm in arms
        for spec in bench.specs(arm)
        if not np.isfinite(table(bench.dataset(spec), quantity)).any()
    ]
