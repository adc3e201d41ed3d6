"""An audit that misses a planted artifact is no audit: louder backprop must be explained by its loudness.

Backprop with k times its weight gradients is backprop at another learning rate, and nothing else. Whatever it does to the
outcome, the audit's own intervention on step sizes has to explain, with the claim's task, seeds and smallest effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignlab.audit.bench import Bench
from alignlab.audit.claim import Arm, Claim
from alignlab.audit.controls.control import Contrast, Control, Finding
from alignlab.audit.controls.exchange import rule_arm
from alignlab.audit.controls.magnitude import TOLERANCE, Magnitude
from alignlab.audit.controls.recorded import medians, table
from alignlab.audit.evidence import Check
from alignlab.audit.gathering import ControlSamples, gather
from alignlab.audit.statistics import paired
from alignlab.audit.verdict import decide
from alignlab.checks import is_number
from alignlab.training.errors import SpecError
from alignlab.training.spec import RunSpec


class SpikeIn(Control):
    """Plants "backprop with ``gain`` times its weight gradients beats backprop" (or the reverse, whichever is true), and
    audits it by :class:`Magnitude`: at equal step sizes nothing may be left of the difference.

    The check fails where more than m is, and where the probes read another gain. It is not applicable where so much louder
    backprop does as well as backprop, which leaves nothing to explain, and where rounding has grown to noise that hides what
    is left; then a caveat says so.
    """

    name = "spike_in"
    explains = False

    def __init__(self, gain: float = 10.0) -> None:
        if not is_number(gain) or gain <= 0 or gain == 1:
            raise ValueError(
                f"gain is {gain!r}, expected a factor > 0 other than 1, by which to make backprop louder"
            )
        self.gain = float(gain)

    def check(self, claim: Claim) -> None:
        """As for Magnitude: one arm is backprop, and steps are gradients times one rate, recorded."""
        try:
            Magnitude().check(self._planted(claim))
        except SpecError as error:
            raise SpecError(f"control 'spike_in' is checked by 'magnitude', and {error}") from None

    def foreseen(self, bench: Bench) -> list[RunSpec]:
        with bench.about(self._planted(bench.claim)):
            return [*bench.specs(bench.claim.treatment), *Magnitude().foreseen(bench)]

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        planted = self._planted(bench.claim)
        backprop = treatment if bench.claim.treatment == planted.baseline else baseline
        with bench.about(planted, kind="check"):
            louder = bench.outcomes(planted.treatment.label, planted.treatment)
            runs = bench.groups[planted.treatment.label].specs
            sides = [louder, backprop]
            if np.mean(louder) < np.mean(backprop):
                bench.claim, sides = _turned(planted), sides[::-1]
            found = Magnitude().apply(bench, *sides)
            seen = self._recorded(bench, runs)
        assert found.samples is not None
        total = tuple(sides[0] - sides[1])
        check = self._checked(total, found.samples, planted, bench.continuous)
        return Finding(
            checks=[check, seen, *(Check(f"spike-in, {c.name}", c.passed, c.detail) for c in found.checks)],
            contrasts=[
                Contrast("spike-in: as planted", "validity", total, compares=False),
                Contrast(
                    "spike-in: without its magnitude",
                    "validity",
                    tuple(found.samples.necessity),
                    compares=False,
                ),
            ],
            caveats=[f"the spike-in could show nothing here: {check.detail}"] if check.passed is None else [],
        )

    def _planted(self, claim: Claim) -> Claim:
        _, rule_is_treatment = rule_arm(claim, Magnitude.name)
        bp = claim.baseline if rule_is_treatment else claim.treatment
        loud = {"cosine": 1.0, "gain": self.gain}
        arm = Arm(rule="noisy_backprop", rule_args=loud, lr=bp.lr, name=f"{bp.label} × {self.gain:g}")
        return claim.model_copy(update={"treatment": arm, "baseline": bp})

    def _checked(
        self, total: Sequence[float], samples: ControlSamples, claim: Claim, continuous: bool
    ) -> Check:
        """What the audit makes of the planted claim. At equal step sizes the two are one, so that no seed may differ by more
        than m; where rounding grew to noise, the intervals decide."""
        evidence = gather(total, [samples], claim.smallest_effect, alpha=claim.alpha, continuous=continuous)
        verdict = decide(evidence)
        what = f"backprop {self.gain:g} times as loud differs from backprop by {evidence.total:+.3g}"
        if verdict.kind == "not_reproduced":
            why = "too little" if evidence.equivalent else "not told from 0, so that there is nothing"
            return Check("spike-in", None, f"{what}: {why} to ask for its reasons")
        assert samples.sufficiency is not None
        left = float(np.abs([*samples.necessity, *samples.sufficiency]).max())
        detail = f"{what}, at equal step sizes by {left:.2g} at most on any seed"
        if left <= claim.smallest_effect or verdict.kind == "explained_by":
            return Check("spike-in", True, detail)
        level = claim.alpha / 2  # of two intervals, either of which may miss 0 by chance
        found = [paired(d, level) for d in (samples.necessity, samples.sufficiency)]
        if any(i.low > 0 or i.high < 0 for i in found):
            return Check("spike-in", False, detail)
        why = "rounding has grown too large to tell whether anything is left: take fewer steps, a smaller gain or a larger m"
        return Check("spike-in", None, f"{detail}; {why}")

    def _recorded(self, bench: Bench, runs: Sequence[RunSpec]) -> Check:
        """Whether the probes read the gain that was planted."""
        read = [gain for spec in runs for gain in medians(table(bench.dataset(spec), "feedback_gain"))]
        worst = max(read, key=lambda g: abs(g / self.gain - 1), default=math.nan)
        detail = f"a gain of {worst:.4g} was read (median of the worst layer of the worst run), {self.gain:g} was planted"
        return Check("spike-in, gain", abs(worst / self.gain - 1) <= TOLERANCE, detail)


def _turned(claim: Claim) -> Claim:
    return claim.model_copy(update={"treatment": claim.baseline, "baseline": claim.treatment})
