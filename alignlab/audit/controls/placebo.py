"""An audit that sees effects where there are none is no audit: the baseline against itself on another data order."""

from __future__ import annotations

from typing import Any

from alignlab.audit.bench import Bench
from alignlab.audit.controls.control import Contrast, Control, Finding
from alignlab.audit.evidence import Check
from alignlab.audit.statistics import paired, tost
from alignlab.training.spec import RunSpec

ORDER = 1  # another than the claim's own, 0


class Placebo(Control):
    """The check fails where the placebo's interval excludes 0 and it is not equivalent to 0 within ±m."""

    name = "placebo"

    def foreseen(self, bench: Bench) -> list[RunSpec]:
        return bench.specs(bench.claim.baseline, order=ORDER)

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        claim = bench.claim
        again = bench.outcomes(f"{claim.baseline.label}, other data order", claim.baseline, order=ORDER)
        difference = tuple(again - baseline)
        interval = paired(difference, claim.alpha)
        nothing = interval.low <= 0 <= interval.high
        negligible = tost(difference, claim.smallest_effect, claim.alpha).equivalent
        detail = f"{interval.estimate:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"
        check = Check(
            "placebo", nothing or negligible, f"the baseline on another data order differs by {detail}"
        )
        return Finding(checks=[check], contrasts=[Contrast("placebo", "validity", difference)])
