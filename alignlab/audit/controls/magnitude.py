"""Is it the direction of the updates, or merely their size? The 2×2 graft {direction} × {step norm}, layer by layer.

The graft is Agarwal et al. 2020's, between a rule and backprop on the same state; what is made of the four outcomes:
:mod:`alignlab.audit.controls.exchange`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from alignlab.audit.bench import Bench
from alignlab.audit.claim import Claim
from alignlab.audit.controls.control import GIVEN, WITHOUT, Control, Finding
from alignlab.audit.controls.exchange import bias_caveats, common_rate, effects, idle_caveats, rule_arm
from alignlab.audit.controls.recorded import learning, table
from alignlab.audit.evidence import Check
from alignlab.training.errors import SpecError
from alignlab.training.spec import Graft, RunSpec

if TYPE_CHECKING:
    import xarray as xr

TOLERANCE = 0.01  # relative: the applied step is a difference of float32 weights
ROUNDING = 2.0**-23  # of the weights' norm: a smaller step may be lost in them altogether


class Magnitude(Control):
    """Give each arm the other's step norms: N = the treatment's direction with the baseline's norms, S = the reverse.

    Norms are those of the weights' gradients; a bias takes its weight's factor.
    """

    name = "magnitude"
    without, given = "without its magnitudes", "against a baseline given its magnitudes"
    scope: ClassVar = "layer"
    labels: ClassVar = ("direction", "magnitude", "interaction")

    def check(self, claim: Claim) -> None:
        """One arm is backprop, both have one rate, and steps are gradients times that rate, recorded."""
        arm, _ = rule_arm(claim, self.name)
        lr = common_rate(claim, self.name)
        graft = {"direction": "rule", "magnitude": "bp"}
        try:
            spec = claim.spec(arm, claim.seeds[0], lr=lr, graft=graft)
        except SpecError as error:
            raise SpecError(f"control {self.name!r}: {error}, or leave the control out") from None
        if spec.momentum or spec.weight_decay or spec.clip or not spec.record_every:
            raise SpecError(
                f"control {self.name!r} checks each step's size against the gradient's: set momentum and weight_decay "
                "to 0, record_every above 0 and no clip, or leave the control out"
            )

    def foreseen(self, bench: Bench) -> list[RunSpec]:
        arm, _ = rule_arm(bench.claim, self.name)
        return [spec for grafted in self._grafted(bench.claim) for spec in bench.specs(arm, **grafted)]

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        claim = bench.claim
        arm, _ = rule_arm(claim, self.name)
        t, b = claim.treatment.label, claim.baseline.label
        whole = ", as a whole" if self.scope == "global" else ""
        kept, given = f"{t} direction, {b} magnitude{whole}", f"{b} direction, {t} magnitude{whole}"
        without, with_it = self._grafted(claim)
        y_tb, y_bt = bench.outcomes(kept, arm, **without), bench.outcomes(given, arm, **with_it)
        samples = self.samples(y_tb - baseline, treatment - y_bt)
        decomposed = effects(treatment, baseline, y_tb, y_bt, self.labels)
        runs = [*bench.groups[kept].specs, *bench.groups[given].specs]
        worst, idle = _worst(bench, runs)
        checks = [_check(worst, idle, self.name)]
        caveats = idle_caveats(self.name, "exchanged", idle, TOLERANCE)
        caveats += bias_caveats(claim, self.name)
        return Finding(samples, checks, decomposed, caveats, curves={kept: WITHOUT, given: GIVEN})

    def _grafted(self, claim: Claim) -> tuple[dict[str, Any], dict[str, Any]]:
        """What changes in the arm that is no backprop: treatment's direction with baseline's size, and the reverse."""
        _, rule_is_treatment = rule_arm(claim, self.name)
        own, other = ("rule", "bp") if rule_is_treatment else ("bp", "rule")
        lr = common_rate(claim, self.name)
        return (
            {"lr": lr, "graft": {"direction": own, "magnitude": other, "scope": self.scope}},
            {"lr": lr, "graft": {"direction": other, "magnitude": own, "scope": self.scope}},
        )


def manipulation_check(bench: Bench, specs: list[RunSpec], name: str = Magnitude.name) -> Check:
    """Whether the steps that the optimizer really took had the size that the graft meant them to have.

    ‖ΔW‖ / lr, recorded by the probes from the weights, must be ‖G_bp‖ where backprop's size was grafted and ‖G_rule‖ where the
    rule's was; of a graft of the whole network, with the norms of all layers that learn together. Recorded steps count by
    their size, and what rounding makes of float32 weights is no difference: they do not take the steps that are left once a run
    has converged, or those of an error that has cancelled out. A step without a direction, whose gradient is zero, takes no
    size, and does not count; the detail says how much that was.
    """
    return _check(*_worst(bench, specs), name)


def _check(worst: float, idle: float, name: str) -> Check:
    detail = (
        f"steps differ from the grafted size by {worst:.2g} beyond rounding (mean over the steps by their size, in the worst "
        f"layer of the worst run; tolerance {TOLERANCE:g})"
    )
    if idle > TOLERANCE:
        detail += f"; up to {100 * idle:.0f} % of a layer's sizes met a gradient of zero, and were not taken"
    return Check(f"manipulation: {name}", worst <= TOLERANCE, detail)


def _worst(bench: Bench, specs: list[RunSpec]) -> tuple[float, float]:
    """What :func:`_off` tells, of the worst run."""
    each = [_off(bench.dataset(spec), spec) for spec in specs]
    return max(off for off, _ in each), max(idle for _, idle in each)


def _off(run: xr.Dataset, spec: RunSpec) -> tuple[float, float]:
    """By how much a run's steps differ from those that its graft meant, relatively, and what share of these met a gradient of
    zero; each in the worst layer. The first is inf where nothing is known."""
    run = run.sel(layer=learning(run, spec))
    graft = spec.graft or Graft(direction="rule", magnitude="rule")
    rate = run["learning_rate"].values[:, None]
    norms = {
        whose: table(run, name) / over
        for whose, name, over in (
            ("rule", "gradient_norm", 1.0),
            ("bp", "gradient_norm_bp", 1.0),
            ("taken", "update_norm", rate),
            ("lost", "weight_norm", rate / ROUNDING),
        )
    }
    if graft.scope == "global":
        norms = {whose: _together(values) for whose, values in norms.items()}
    size, taken, lost = norms[graft.magnitude], norms["taken"], np.nan_to_num(norms["lost"])
    there = np.isfinite(taken) & np.isfinite(size)
    known = there & (norms[graft.direction] != 0)
    seen = known & (np.maximum(taken, size) > lost)
    off = np.where(seen, rate * np.maximum(np.abs(taken - size) - lost, 0.0), 0.0).sum(0)
    total, sized = (np.where(which, rate * size, 0.0).sum(0) for which in (known, seen))
    whole = np.where(there, rate * size, 0.0).sum(0)
    idle = 1 - total[whole > 0] / whole[whole > 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(off > 0, off / sized, 0.0)
    worst = float(each.max()) if (sized > 0).any() else np.inf
    return worst, float(idle.max(initial=0.0))


def _together(norms: Any) -> Any:
    """The norm of all layers at each step, (steps, 1), of those that have one; NaN where none has."""
    found = np.sqrt(np.nansum(np.square(norms), axis=1, keepdims=True))
    return np.where(np.isnan(norms).all(axis=1, keepdims=True), np.nan, found)
