"""An audit that sees effects where there are none is no audit: the baseline against itself on another data order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignlab.audit.bench import Bench
from alignlab.audit.claim import Claim
from alignlab.audit.controls.control import Contrast, Control, Finding
from alignlab.audit.evidence import Check
from alignlab.audit.statistics import paired, tost
from alignlab.training import tasks
from alignlab.training.spec import RunSpec

ORDER = 1  # another than the claim's own, 0


class Placebo(Control):
    """The baseline against itself on another order of the data, in which nothing may be found.

    The check fails where the placebo's interval excludes 0 and it is not equivalent to 0 within ±m: by chance alone in
    alpha of all sound audits, unless the spread is small beside m.

    It cannot pass where it could not have failed: where another order changes nothing, because each batch is the
    whole data set or because every run ended exactly as it did before. Then it is not applicable, and a caveat says so.
    """

    name = "placebo"
    explains = False

    def foreseen(self, bench: Bench) -> list[RunSpec]:
        return bench.specs(bench.claim.baseline, order=ORDER)

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        claim = bench.claim
        group = f"{claim.baseline.label}, other data order"
        again = bench.outcomes(group, claim.baseline, kind="check", order=ORDER)
        difference = tuple(again - baseline)
        interval = paired(difference, claim.alpha, continuous=bench.continuous)
        nothing = interval.low <= 0 <= interval.high
        negligible = tost(difference, claim.smallest_effect, claim.alpha).equivalent
        detail = f"the baseline on another data order differs by {interval:+.3g}"
        if negligible and not nothing:
            detail += f", which is not 0 but less than m = {claim.smallest_effect:g}"
        why = _powerless(claim, difference) if nothing or negligible else ""
        passed = None if why else nothing or negligible
        return Finding(
            checks=[Check("placebo", passed, f"not applicable, {why}; {detail}" if why else detail)],
            contrasts=[Contrast("placebo", "validity", difference, compares=False)],
            caveats=[f"the placebo could show nothing here: {why}"] if why else [],
        )


def _powerless(claim: Claim, difference: Sequence[float]) -> str:
    """Why another data order could make no difference; empty where it could."""
    spec = claim.spec(claim.baseline, claim.seeds[0])
    if spec.sampling == "epochs" and spec.batch_size >= len(tasks.load(spec.task).train):
        return "each batch is the whole data set"
    return "" if any(difference) else "every run ended as it did on the other data order"
