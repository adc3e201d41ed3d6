"""Is it where the feedback B points, or merely how large it is beside W? The 2×2 exchange {direction of B} × {rms of B}.

An error that passes a B of c times the rms of W arrives about c times as loud, and c^k times after k layers: the lower layers
then learn faster or slower, wherever B points. As in the graft of :mod:`alignlab.audit.controls.magnitude` each is given the
other's size, but in feedback space: steps follow from the error that arrives. What is made of the four outcomes:
:mod:`alignlab.audit.controls.exchange`; the feedback itself: :mod:`alignlab.rules.rescaled`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.audit.bench import Bench
from alignlab.audit.claim import Claim
from alignlab.audit.controls.control import GIVEN, WITHOUT, Control, Finding
from alignlab.audit.controls.exchange import common_rate, effects, rule_arm
from alignlab.audit.controls.recorded import medians, table
from alignlab.audit.evidence import Check
from alignlab.training.errors import SpecError
from alignlab.training.spec import RunSpec

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray as xr

    Values = npt.NDArray[np.float64]

TOLERANCE = 1e-3  # relative in norms, radians in angles: of float32's 1e-7 much is left for large layers
QUIET, LOUD = 0.8, 1.25  # gains between which nobody need be told
LABELS = ("feedback direction", "feedback scale", "feedback interaction")


class FeedbackScale(Control):
    """Exchange the scale of B between a layerwise rule and backprop, whose B is W: N = the treatment's feedback at the rms of
    the baseline's against the baseline, S = the treatment against the baseline's feedback at the rms of the treatment's.

    ``B = D · rms(S) / rms(D)`` layer by layer, at every step, on the weights of the run itself; D is the rule's B or W, S the
    other. The rule's B is what the rule makes it in that run. :class:`Magnitude` sets the size of each layer's step; here it is
    set how loud the error is that travels down, which shifts the sizes of the steps between layers too, but as far as the
    feedback makes them, and no further: a B of W's rms hands down another norm than W where it treats errors that occur
    otherwise than W does. Where it hands down much louder or quieter errors than W a caveat tells the gain that was recorded.

    What comes out in the table is in units of the outcome, as the claim's effect is; errors are intervals over seeds.
    """

    name = "feedback_scale"
    without, given = "without its feedback's scale", "against a baseline given its feedback's scale"

    def check(self, claim: Claim) -> None:
        """One arm is backprop, the other a layerwise rule with a B that can be rescaled; one rate, and B recorded."""
        arm, _ = rule_arm(claim, self.name)
        common_rate(claim, self.name)
        try:
            spec = claim.spec(arm, claim.seeds[0], **_rescaled(claim, "rule", "weight"))
        except SpecError as error:
            raise SpecError(
                f"control {self.name!r} cannot rescale the feedback of {error}; or leave the control out"
            ) from None
        if not spec.record_every:
            raise SpecError(
                f"control {self.name!r} checks the feedback that was recorded: record_every is 0, set it above 0, or leave "
                "the control out"
            )

    def foreseen(self, bench: Bench) -> list[RunSpec]:
        arm, _ = rule_arm(bench.claim, self.name)
        return [spec for exchanged in _exchanged(bench.claim) for spec in bench.specs(arm, **exchanged)]

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        claim = bench.claim
        arm, rule_is_treatment = rule_arm(claim, self.name)
        t, b = claim.treatment.label, claim.baseline.label
        kept, given = f"{t}'s B at {b}'s scale", f"{b}'s B at {t}'s scale"
        without, with_it = _exchanged(claim)
        y_tb, y_bt = bench.outcomes(kept, arm, **without), bench.outcomes(given, arm, **with_it)
        own, runs = bench.specs(arm), [*bench.groups[kept].specs, *bench.groups[given].specs]
        at_weights = bench.groups[kept if rule_is_treatment else given].specs
        return Finding(
            self.samples(y_tb - baseline, treatment - y_bt),
            [manipulation_check(bench, runs, [*own, *own])],
            effects(treatment, baseline, y_tb, y_bt, LABELS),
            _gains_left(bench, arm.label, at_weights),
            curves={kept: WITHOUT, given: GIVEN},
        )


def manipulation_check(bench: Bench, specs: list[RunSpec], own: list[RunSpec]) -> Check:
    """Whether the recorded B had the scale and the direction that were meant; ``own``: the rule's runs as claimed, one for each
    of the ``specs``, of the same seed.

    The rule's direction at W's scale: ‖B‖ / ‖W‖ is 1 in every layer and recorded step, and at the first step, where the runs
    are still the same, the angle to W is the rule's. W's direction at the rule's scale: the angle to W is 0 throughout, and
    ‖B‖ is the rule's at the first step, at all of them where the rule's own stays the same. Layers whose B is not in use, and
    a W of zeros, do not count; a run that leaves nothing to compare fails.
    """
    pairs = zip(specs, own, strict=True)
    worst = max((_off(spec, bench.dataset(spec), bench.dataset(rule)) for spec, rule in pairs), default=0.0)
    detail = (
        f"feedback differs from what it was meant to be by {worst:.1e} (of its norm, or radians, in the worst step, layer and "
        f"run; tolerance {TOLERANCE:g})"
        if np.isfinite(worst)
        else "in a run no feedback was in use, or it was 0 where it should not be"
    )
    return Check("manipulation: feedback_scale", worst <= TOLERANCE, detail)


def _off(spec: RunSpec, run: xr.Dataset, rule: xr.Dataset) -> float:
    """By how much a run's feedback differs from that which was meant; inf where nothing is known."""
    B, W, angle = (table(run, name) for name in ("feedback_norm", "weight_norm", "weight_angle"))
    own, own_angle = (table(rule, name) for name in ("feedback_norm", "weight_angle"))
    with np.errstate(divide="ignore", invalid="ignore"):
        if spec.rule_args["direction"] == "rule":
            turned = np.full_like(B, np.nan)
            turned[0], size = np.abs(angle[0] - own_angle[0]), B / W
        else:
            meant = _meant(own, len(B))
            turned, size = np.where((B == 0) & (meant != 0), np.inf, angle), B / meant
        off = np.concatenate([np.radians(turned), np.abs(size - 1)])
    known = np.tile(np.isfinite(B) & np.isfinite(W) & (W > 0), (2, 1)) & ~np.isnan(off)
    return float(off[known].max(initial=0.0)) if known.any() else np.inf


def _meant(own: Values, steps: int) -> Values:
    """The norm of the rule's B at each step of another run, NaN where it depends on that run."""
    change = np.abs(own / own[:1] - 1)
    known = np.isfinite(change)
    stays = (known.sum(0) > 1) & (np.where(known, change, 0.0).max(0) <= TOLERANCE)
    meant = np.tile(np.where(stays, own[0], np.nan), (steps, 1))
    meant[0] = own[0]
    return meant


def _gains_left(bench: Bench, rule: str, specs: Sequence[RunSpec]) -> list[str]:
    """What is to be told of the gradients of the runs that have the rule's B at W's scale."""
    gains = [gain for spec in specs for gain in medians(table(bench.dataset(spec), "feedback_gain"))]
    low, high = min(gains, default=1.0), max(gains, default=1.0)
    if low >= QUIET and high <= LOUD:
        return []
    return [
        f"feedback_scale: at the scale of W the gradients of {rule} are still {low:.2g} to {high:.2g} times as large as "
        "backprop's (median of a layer's recorded steps, over layers and runs): the rms of B is not all that makes an error "
        "loud, and what is left of its size is here counted as direction"
    ]


def _exchanged(claim: Claim) -> tuple[dict[str, Any], dict[str, Any]]:
    """What changes in the arm that is no backprop: treatment's direction with baseline's scale, and the reverse."""
    _, rule_is_treatment = rule_arm(claim, FeedbackScale.name)
    own, other = ("rule", "weight") if rule_is_treatment else ("weight", "rule")
    return _rescaled(claim, own, other), _rescaled(claim, other, own)


def _rescaled(claim: Claim, direction: str, scale: str) -> dict[str, Any]:
    """The fields of a run of the arm that is no backprop, with its feedback's direction or scale."""
    arm, _ = rule_arm(claim, FeedbackScale.name)
    of = {"rule": arm.rule, **arm.rule_args}
    return {
        "lr": common_rate(claim, FeedbackScale.name),
        "rule": "rescaled",
        "rule_args": {"of": of, "direction": direction, "scale": scale},
    }
