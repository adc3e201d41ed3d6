"""Is it how large the steps became, rather than where they pointed? Each arm takes the sizes of the other one's steps.

A graft sizes each step by the two gradients at the same weights; here the sizes are those of another run altogether, the other
arm's with the same seed, as the probes recorded them. Where an arm owes its sizes to where its own directions led it, the two
differ. Neither arm need be backprop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from alignlab.audit.bench import Bench, Kind
from alignlab.audit.claim import Arm, Claim
from alignlab.audit.controls.control import GIVEN, WITHOUT, Control, Finding
from alignlab.audit.controls.exchange import bias_caveats, effects, idle_caveats, unrecorded
from alignlab.audit.controls.magnitude import ROUNDING
from alignlab.audit.evidence import Check
from alignlab.audit.statistics import paired
from alignlab.training.errors import SpecError
from alignlab.training.replaying import replayed_sizes
from alignlab.training.spec import RunSpec

if TYPE_CHECKING:
    import xarray as xr

TOLERANCE = 0.01  # relative: the recorded step is a difference of float32 weights


class ReplayedMagnitude(Control):
    """Give each arm the ‖ΔW‖ of the other's run, layer by layer: N = the treatment with the baseline's, S = the reverse.

    Sizes are those of the recorded steps, in straight lines between them: ``record_every: 1`` in the claim's setup replays
    every step. Where a run diverged, the last size that it recorded holds. Biases take the factor of their weight. A zero
    gradient takes no size; where a layer missed more than a hundredth of its sizes so, a caveat tells. Needs plain SGD in both
    arms, and raises :class:`SpecError` for momentum, weight decay, clipping, grafts and runs that record nothing.

    ``itself``: also replay each arm on its own sizes, two more runs a seed. It must stay what it was, by all seeds or by its
    interval at the claim's alpha within ±m, or the audit is invalid: what straight lines make of the sizes is then no less
    than what is asked for.
    """

    name = "replayed_magnitude"
    without, given = (
        "with the baseline's recorded step sizes",
        "against a baseline with the treatment's recorded step sizes",
    )
    relative: ClassVar = False
    quantity: ClassVar = "update_norm"
    labels: ClassVar = ("direction, sizes replayed", "replayed magnitude", "interaction, sizes replayed")

    def __init__(self, itself: bool = False) -> None:
        self.itself = itself

    def check(self, claim: Claim) -> None:
        """Both arms can be given step sizes, and record theirs."""
        for arm in (claim.treatment, claim.baseline):
            try:
                spec = claim.spec(arm, claim.seeds[0], step_sizes={"sizes": 1.0})
            except SpecError as error:
                raise SpecError(
                    f"control {self.name!r} sets how long steps are: {error}, or leave the control out"
                ) from None
            if not spec.record_every:
                raise SpecError(f"control {self.name!r} replays recorded steps: set record_every above 0")

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        claim = bench.claim
        if mute := unrecorded(bench, (claim.treatment, claim.baseline), self.quantity):
            detail = f"no step size was recorded of {', '.join(mute)}"
            return Finding(checks=[Check(f"manipulation: {self.name}", False, detail)])
        y_tb = self._given(bench, claim.treatment, claim.baseline)
        y_bt = self._given(bench, claim.baseline, claim.treatment)
        groups = (
            self._group(claim.treatment, claim.baseline),
            self._group(claim.baseline, claim.treatment),
        )
        given = [spec for name in groups for spec in bench.groups[name].specs]
        compared = [self._compared(bench.dataset(spec), spec) for spec in given]
        found = Finding(
            self.samples(y_tb - baseline, treatment - y_bt),
            [self._manipulation(max(off for off, _ in compared))],
            effects(treatment, baseline, y_tb, y_bt, self.labels),
            [
                self._caveat(claim),
                *idle_caveats(self.name, "replayed", max(idle for _, idle in compared), TOLERANCE),
                *bias_caveats(claim, self.name),
            ],
            curves=dict(zip(groups, (WITHOUT, GIVEN), strict=True)),
        )
        if self.itself:
            found.checks += [
                self._stays(bench, arm, outcome)
                for arm, outcome in ((claim.treatment, treatment), (claim.baseline, baseline))
            ]
        return found

    def _group(self, arm: Arm, other: Arm) -> str:
        whose = "its own" if arm == other else f"{other.label}'s"
        kind = "relative sizes" if self.relative else "sizes"
        return f"{arm.label} with {whose} recorded {kind}"

    def _given(self, bench: Bench, arm: Arm, other: Arm, kind: Kind = "compared") -> Any:
        """The outcomes of an arm whose runs take the sizes of the other one's with the same seed."""
        specs = [
            own.changed(step_sizes=replayed_sizes(bench.dataset(twin), relative=self.relative))
            for own, twin in zip(bench.specs(arm), bench.specs(other), strict=True)
        ]
        return bench.outcomes_of(self._group(arm, other), arm, specs, kind=kind)

    def _stays(self, bench: Bench, arm: Arm, outcome: Any) -> Check:
        """Whether an arm that is given its own sizes ends as it did."""
        m, difference = bench.claim.smallest_effect, self._given(bench, arm, arm, kind="check") - outcome
        interval = paired(difference, bench.claim.alpha, continuous=bench.continuous)
        same = bool((np.abs(difference) <= m).all()) or interval.within(m)
        detail = f"{self._group(arm, arm)} differs by {interval:+.3g} from {arm.label} as claimed, m is {m:g}"
        if not same and bench.claim.spec(arm, bench.claim.seeds[0]).record_every > 1:
            detail += "; record_every: 1 in the setup replays every step"
        return Check(f"replayed on itself: {self.name}, {arm.label}", same, detail)

    def _manipulation(self, worst: float) -> Check:
        """Whether the steps that were taken had the sizes that the specs set."""
        detail = (
            f"recorded step sizes differ from those replayed by {worst:.2g} beyond rounding (mean over the steps by their "
            f"size, in the worst layer of the worst run; tolerance {TOLERANCE:g})"
        )
        return Check(f"manipulation: {self.name}", worst <= TOLERANCE, detail)

    def _compared(self, run: xr.Dataset, spec: RunSpec) -> tuple[float, float]:
        """By how much a run's steps differ from those that were set, relatively and beyond rounding, and what share of these
        met a gradient of zero, which has no direction; each in the worst layer. The first is inf where nothing is known."""
        assert spec.step_sizes is not None
        assert isinstance(spec.step_sizes.sizes, dict)
        off, idle = [], []
        for layer, sizes in spec.step_sizes.sizes.items():
            own = run.sel(layer=layer)
            taken = own[self.quantity].values.astype(np.float64)
            meant = np.interp(run["step"].values, spec.step_sizes.steps, sizes)
            lost = ROUNDING * (1.0 if self.relative else np.nan_to_num(own["weight_norm"].values))
            missed = np.maximum(np.abs(taken - meant) - lost, 0.0)
            there = np.isfinite(taken)
            known = there & (own["gradient_norm"].values != 0)
            seen = known & (np.maximum(taken, meant) > lost)
            if meant[seen].sum() > 0:
                off.append(missed[seen].sum() / meant[seen].sum())
            if meant[there].sum() > 0:
                idle.append(1 - meant[known].sum() / meant[there].sum())
        return float(max(off, default=np.inf)), float(max(idle, default=0.0))

    def _caveat(self, claim: Claim) -> str:
        every = claim.spec(claim.treatment, claim.seeds[0]).record_every
        if every == 1:
            between = ""
        else:
            between = (
                f", of one step in {every}, in straight lines between; what sizes do between these counts as direction "
                "(record_every: 1 in the setup replays every step)"
            )
        return f"{self.name} replays the sizes that the other arm's run of the same seed recorded{between}"
