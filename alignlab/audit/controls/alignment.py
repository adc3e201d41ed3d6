"""Is a direction more than its angle? Backprop is turned by noise to the rule's own angle, layer by layer and step by step.

Two rules may be as far from the gradient, and yet one's error may point the same way step after step, or into directions that
do no harm. The noise is drawn anew at each step, has the rule's recorded angle and nothing else of the rule (Lillicrap et al.
2016 ask how far within 90° a gradient must lie).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.audit.bench import Bench
from alignlab.audit.claim import Arm, Claim
from alignlab.audit.controls.control import Contrast, Control, Finding
from alignlab.audit.controls.exchange import common_rate, rule_arm, unrecorded
from alignlab.audit.controls.magnitude import Magnitude, manipulation_check
from alignlab.audit.controls.recorded import learning, medians, table
from alignlab.audit.evidence import Check
from alignlab.training.errors import SpecError
from alignlab.training.replaying import replayed_noise
from alignlab.training.spec import RunSpec

if TYPE_CHECKING:
    import xarray as xr

TURNED = 0.5  # degrees: angles near 0 and 180 are known to about that, in float32
LOUDER = 0.01


class Alignment(Control):
    """Exchange the angle to the true gradient and nothing else, and ask what a direction is worth beyond its angle.

    R is the arm that is no backprop; its recorded angles, and gains, are replayed by noise. Two contrasts: backprop
    against noise at R's angle with backprop's step sizes, and R against noise that has both R's angle and R's gain.

    Where R is the treatment, its angle is a rival explanation (noise can help): what noise at that angle does is taken from R,
    and given to backprop. At R's step sizes it is the noise against backprop's direction, and N = R − backprop less that; at
    backprop's it is the noise against backprop, and S = R against this noise. So a direction that does more than its angle is
    no less for it. Where backprop is the treatment there are no N and S: that its angle is 0 is what is claimed for it.

    The noise is isotropic in weight space and new at each step; between recorded angles the last one holds. Weights alone are
    turned, biases learn by backprop. Needs what :class:`Magnitude` needs, and raises as it does.
    """

    name = "alignment"
    without, given = "without what its angle alone does", "against a baseline given its angle to the gradient"

    def check(self, claim: Claim) -> None:
        """One arm is backprop, both have one rate, and steps are gradients times that rate, recorded."""
        rule_arm(claim, self.name)
        try:
            Magnitude().check(claim)
        except SpecError as error:
            raise SpecError(f"control {self.name!r} takes what 'magnitude' takes, and {error}") from None

    def foreseen(self, bench: Bench) -> list[RunSpec]:
        arm, is_treatment = rule_arm(bench.claim, self.name)
        return bench.specs(arm, **_straight(bench.claim)) if is_treatment else []

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        claim = bench.claim
        arm, is_treatment = rule_arm(claim, self.name)
        bp = claim.baseline if is_treatment else claim.treatment
        y_rule, y_bp = (treatment, baseline) if is_treatment else (baseline, treatment)
        own = bench.specs(arm)
        if mute := unrecorded(bench, (arm,), "gradient_angle"):
            detail = f"no angle was recorded of {', '.join(mute)}"
            return Finding(checks=[Check(f"manipulation: {self.name}", False, detail)])
        groups = (
            f"noise at {arm.label}'s angle, {bp.label} magnitude",
            f"noise at {arm.label}'s angle and gain",
        )
        turned, both = (
            self._noise(bench, group, bp, own, gain)
            for group, gain in zip(groups, (False, True), strict=True)
        )
        found = Finding(caveats=[_caveat(claim, arm)])
        found.curves = dict(zip(groups, ("noise at its angle", "noise at its angle and gain"), strict=True))
        found.checks = [self._turned(bench, [s for group in groups for s in bench.groups[group].specs], own)]
        found.contrasts = [
            Contrast(label, "alignment", tuple(differences), compares=False)
            for label, differences in (
                ("what the angle costs backprop", y_bp - turned),
                ("worth beyond angle and size", y_rule - both),
            )
        ]
        if is_treatment:
            straight = f"{bp.label} direction, {arm.label} magnitude"
            y_straight = bench.outcomes(straight, arm, **_straight(claim))
            found.samples = self.samples(y_rule - y_bp - (both - y_straight), y_rule - turned)
            found.checks.append(manipulation_check(bench, list(bench.groups[straight].specs), self.name))
            found.curves[straight] = f"{bp.label}'s direction, its size"
        return found

    def _noise(self, bench: Bench, group: str, bp: Arm, own: Sequence[RunSpec], gain: bool) -> Any:
        """The outcomes of backprop turned to the angles of the rule's ``own`` runs, at their ``gain`` or at its own size."""
        specs = [
            spec.changed(rule="noisy_backprop", rule_args=replayed_noise(bench.dataset(spec), gain=gain))
            for spec in own
        ]
        return bench.outcomes_of(group, bp, specs)

    def _turned(self, bench: Bench, noise: Sequence[RunSpec], own: Sequence[RunSpec]) -> Check:
        """Whether the noisy runs recorded the angles and gains that were replayed, in layers that learn."""
        twins = {spec.seed: bench.dataset(spec) for spec in own}
        angles, gains = [], []
        for spec in noise:
            layers = learning(twins[spec.seed], spec)
            run, twin = (x.sel(layer=layers) for x in (bench.dataset(spec), twins[spec.seed]))
            angles.append(_off(run, twin, "gradient_angle"))
            gains.append(_off(run, twin, "feedback_gain") if "gain" in spec.rule_args else _off_one(run))
        detail = (
            f"recorded angles differ from those replayed by {max(angles):.2g}° and gains by {max(gains):.1e} (median over the "
            f"steps, in the worst layer of the worst run; tolerance {TURNED:g}° and {LOUDER:g})"
        )
        return Check(
            f"manipulation: {self.name}, noise", max(angles) <= TURNED and max(gains) <= LOUDER, detail
        )


def _straight(claim: Claim) -> dict[str, Any]:
    """What changes in the rule's arm to give it backprop's direction at its own step size."""
    lr = common_rate(claim, Alignment.name)
    return {"lr": lr, "graft": {"direction": "bp", "magnitude": "rule"}}


def _off(run: xr.Dataset, twin: xr.Dataset, name: str) -> float:
    """By how much two runs' records differ where both have one, in the worst layer; gains relatively. Infinite where none."""
    steps = np.intersect1d(run["step"], twin["step"])
    a, b = (table(x[[name]].sel(step=steps), name) for x in (run, twin))
    with np.errstate(divide="ignore", invalid="ignore"):
        return _worst(np.abs(a / b - 1) if name == "feedback_gain" else np.abs(a - b))


def _off_one(run: xr.Dataset) -> float:
    """By how much a run's gains differ from 1, in the worst layer."""
    return _worst(np.abs(table(run, "feedback_gain") - 1))


def _worst(off: Any) -> float:
    """The median over steps in the worst layer."""
    return max(medians(off), default=float("inf"))


def _caveat(claim: Claim, arm: Arm) -> str:
    every = claim.spec(arm, claim.seeds[0]).record_every
    held = "" if every == 1 else f" of one step in {every}, each held up to the next"
    return f"alignment replays the recorded angles{held}, by noise that is isotropic in weight space and new at each step"
