"""Is it the rule, or a clip threshold that holds one arm back, or saves it?

Clipping scales the gradient of all parameters together down to a largest norm (Pascanu et al. 2013). A rule that speaks
louder than backprop is clipped at steps at which backprop is not, so that one threshold is not one treatment: how often each
arm was clipped stands beside what it came to. Both arms run at every threshold, and unclipped; each takes what suits it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from alignlab.audit.bench import Bench, Group
from alignlab.audit.claim import Arm, Claim
from alignlab.audit.controls.choosing import Crossed, crossed_name, own_value
from alignlab.audit.controls.control import Contrast, Finding
from alignlab.audit.controls.magnitude import ROUNDING
from alignlab.audit.controls.recorded import table
from alignlab.audit.evidence import Check
from alignlab.audit.search import Grid, Value, in_order, several, told
from alignlab.audit.studies import Searches
from alignlab.training.spec import RunSpec

THRESHOLDS = (0.0316, 0.1, 0.316, 1.0, 3.16, 10.0, 31.6)
HALF_DECADE = 3.16
VARIED = 0.1  # share of steps that the lowest threshold clips at least, if clipping was varied at all
MOSTLY = 0.5
CROSSED = "clip thresholds (share of steps clipped)"  # of both arms, which stand in its rows
TOLERANCE = 0.01  # relative, beside what rounding adds

Shares = dict[str, dict[Value, float]]  # by arm and threshold


class GradientClipping(Crossed):
    """N = each arm at the clip threshold that suits it, none included; S = the treatment as claimed against the baseline at
    its best threshold.

    ``thresholds``: largest norms of the whole gradient, three or more; none and the claim's own ``clip`` are added. They are
    chosen as :class:`Tuning` chooses rates: on validation and tuning seeds, in the claim's ``tuning_studies``, with equal
    budgets. An optimum at the lowest threshold extends the grid by half decades; none is no edge. Of equals the larger is
    taken. Besides, contrasts "clip at c": treatment − baseline, both at threshold c, on the claim's seeds and at its alpha
    (not corrected for their number), with the share of steps that were clipped of both (treatment / baseline). In the
    details, under ``clipped_steps``, stand the shares of the tuning runs.

    A threshold below nearly every norm normalises the gradient: each step is lr × threshold long, and what that threshold
    gains or costs is a learning rate's. Adaptive optimizers (adam, rmsprop) divide the size of gradients out again; under
    them a threshold changes only how steps compare with each other. The norm is that of all parameters together, feedback
    that learns included.

    The manipulation check fails where an arm was clipped in fewer than a tenth of its steps at the lowest threshold, so that
    clipping was hardly varied, and, under plain sgd with recorded steps, where weights moved further in a step than lr ×
    threshold. Raises ``ValueError`` for thresholds that make no grid.
    """

    name = "gradient_clipping"
    without, given = (
        "with each arm at its best clip threshold",
        "against the baseline at its best clip threshold",
    )
    chosen = "at its best clip threshold"

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS) -> None:
        self.thresholds = several("thresholds", thresholds, "; no clipping is among the choices anyway")

    def grid(self, claim: Claim) -> Grid:
        own = claim.spec(claim.treatment, claim.seeds[0]).clip
        values = in_order([*{*self.thresholds, None, own}])
        return Grid("clip", tuple(values[::-1]), "clip threshold", "clip", ratio=HALF_DECADE, upwards=False)

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        searches, finding = self.searched(bench, treatment, baseline)
        crossed = self.crossed(bench, treatment, baseline)
        claim = bench.claim
        on_claim = {
            arm.label: {c: _mean_share(bench, self._specs(bench, arm, c)) for c in crossed}
            for arm in (claim.treatment, claim.baseline)
        }
        for c, (t, b) in crossed.items():
            finding.contrasts.append(Contrast(_label(c, on_claim), CROSSED, tuple(t - b)))
        tried = _tried(bench, searches)
        for label, shares in tried.items():
            finding.details[label]["clipped_steps"] = {told(c): share for c, share in shares.items()}
        finding.checks.append(self._took(bench, tried, [*crossed]))
        finding.caveats += _hole(searches, tried)
        return finding

    def _specs(self, bench: Bench, arm: Arm, threshold: Value) -> Sequence[RunSpec]:
        """The runs of an arm at a common threshold, on the claim's seeds."""
        grid = self.grid(bench.claim)
        if threshold == own_value(bench.claim, grid):
            return bench.specs(arm)
        return bench.groups[crossed_name(arm, grid, threshold)].specs

    def _took(self, bench: Bench, shares: Shares, crossed: Sequence[Value]) -> Check:
        """Whether thresholds were such that clipping varied, and steps no longer than these allow."""
        lowest = {label: (*own.items(),)[0] for label, own in shares.items()}
        label, (threshold, share) = min(lowest.items(), key=lambda one: one[1][1])
        claim = bench.claim
        plain = [
            (bench, spec)
            for arm in (claim.treatment, claim.baseline)
            for c in crossed
            for spec in self._specs(bench, arm, c)
            if c is not None and _steps_are_gradients(spec)
        ]
        longest = max((_longest(*one) for one in plain), default=math.nan)
        detail = f"at threshold {told(threshold)} {label} was clipped in {100 * share:.3g} % of its steps; "
        detail += (
            f"the longest step is {longest:.3g} of what its threshold allows"
            if plain
            else "lengths of steps are checked under plain sgd with recorded steps alone"
        )
        if share < VARIED:
            detail += f"; clipping was hardly varied (below {100 * VARIED:g} %): pass lower thresholds"
        return Check(
            "manipulation: gradient_clipping", share >= VARIED and not longest > 1 + TOLERANCE, detail
        )


def clipped_share(bench: Bench, spec: RunSpec) -> float:
    """The share of a run's steps that were clipped; NaN where none was evaluated after the first."""
    if spec.clip is None:
        return 0.0
    found = bench.dataset(spec)["clip_fraction"]
    known = np.isfinite(found.values)
    steps = np.diff([0, *found["step"].values[known]])
    return float(np.average(found.values[known], weights=steps)) if known.any() else math.nan


def _mean_share(bench: Bench, specs: Iterable[RunSpec]) -> float:
    shares = [clipped_share(bench, spec) for spec in specs]
    known = [share for share in shares if not math.isnan(share)]
    return float(np.mean(known)) if known else 0.0


def _tried(bench: Bench, searches: Searches) -> Shares:
    """The shares of all tuning runs, by arm and threshold, from the lowest."""
    groups: dict[str, dict[Value, list[Group]]] = defaultdict(lambda: defaultdict(list))
    for search in searches.every:
        for threshold, name in search.groups.items():
            groups[search.arm.label][threshold].append(bench.groups[name])
    return {
        label: {
            c: _mean_share(bench, [spec for group in own[c] for spec in group.specs])
            for c in in_order([*own])
        }
        for label, own in groups.items()
    }


def _label(threshold: Value, shares: Shares) -> str:
    if threshold is None:
        return "clip at none"
    told_shares = " / ".join(f"{100 * own[threshold]:.0f}" for own in shares.values())
    return f"clip at {told(threshold)} ({told_shares} %)"


def _hole(searches: Searches, shares: Shares) -> list[str]:
    """A caveat where an arm's choice is next to the gap between the largest threshold and none, and much lies in there."""
    found = []
    for label, own in shares.items():
        largest = [c for c in own if c is not None][-1]
        beside = any(s.best in (largest, None) for s in searches.every if s.arm.label == label)
        if beside and own[largest] > MOSTLY:
            found.append(
                f"between the clip threshold {told(largest)} and none, of which {label} took one, nothing was tried, and at "
                f"{told(largest)} {100 * own[largest]:.0f} % of its steps were clipped: pass larger thresholds"
            )
    return found


def _steps_are_gradients(spec: RunSpec) -> bool:
    plain = spec.optimizer == "sgd" and not spec.momentum and not spec.weight_decay
    return plain and bool(spec.record_every)


def _longest(bench: Bench, spec: RunSpec) -> float:
    """The longest recorded step, of all layers together, over what its threshold allows; inf where none is known."""
    run = bench.dataset(spec)
    steps, weights = (table(run, name) for name in ("update_norm", "weight_norm"))
    known = np.isfinite(steps).any(axis=1)
    length, size = (np.sqrt(np.nansum(norms[known] ** 2, axis=1)) for norms in (steps, weights))
    length = np.maximum(length - ROUNDING * size, 0.0)
    allowed = run["learning_rate"].values[known] * (spec.clip or math.inf)
    return float((length / allowed).max()) if known.any() else math.inf
