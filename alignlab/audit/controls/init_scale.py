"""Is it the rule, or the size of the initial weights, which suits one arm and not the other?

How large weights are when learning begins decides how fast they learn, and whether features change at all (Chizat et al.
2019), and not for every rule alike: feedback that was drawn on its own keeps its size, so that scaling W changes how it
compares with W. Both arms run at every factor times the claim's own ``weight_scale``; each takes the scale that suits it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignlab.audit.bench import Bench
from alignlab.audit.claim import Arm, Claim
from alignlab.audit.controls.choosing import Crossed, crossed_name, own_value
from alignlab.audit.controls.control import Contrast, Finding
from alignlab.audit.controls.recorded import table
from alignlab.audit.evidence import Check
from alignlab.audit.search import Grid, Value, several
from alignlab.training.errors import SpecError
from alignlab.training.spec import RunSpec

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
TOLERANCE = 1e-3  # relative: recorded norms are float32


class InitScale(Crossed):
    """N = each arm at the initial scale that suits it; S = the treatment as claimed against the baseline at its best scale.

    The scale is chosen as :class:`Tuning` chooses rates: on validation and tuning seeds, in the claim's ``tuning_studies``,
    with equal budgets; an optimum on the grid's edge extends the grid, and invalidates the audit if it stays there. Besides,
    contrasts "init scale × f": treatment − baseline, both at f times the claim's scale, on the claim's seeds and at its alpha,
    which is not corrected for their number.

    Scaled are the initial weights of all layers, frozen ones too; biases and feedback that is drawn from an init of its own
    are not. The learning rate stays the claim's: that another scale asks for another rate is part of what this shows, so that
    an advantage of a single scale may still be one of a learning rate. ``factors``: three or more, 1 among them.

    The manipulation check compares each layer's recorded ``weight_norm`` before the first step with that of the run as
    claimed, which must be f times as large. Raises :class:`SpecError` for claims whose weights start from zero (nothing to
    scale) and for those that record nothing (nothing to check by), ``ValueError`` for factors that make no grid.
    """

    name = "init_scale"
    without, given = (
        "with each arm at its best initial scale",
        "against the baseline at its best initial scale",
    )
    chosen = "at its best init scale"

    def __init__(self, factors: Sequence[float] = FACTORS) -> None:
        self.factors = tuple(sorted(several("factors", factors, ", and 1 among them")))
        if 1 not in factors:
            raise ValueError(f"factors is {factors!r}, expected 1 among them: the claim's own scale")

    def grid(self, claim: Claim) -> Grid:
        own = claim.spec(claim.treatment, claim.seeds[0]).weight_scale
        return Grid("weight_scale", tuple(f * own for f in self.factors), "init scale", "init scale")

    def check(self, claim: Claim) -> None:
        """There is something to scale, and recorded norms to see that it was."""
        spec = claim.spec(claim.treatment, claim.seeds[0])
        for name, value, zero in (
            ("weight_scale", spec.weight_scale, 0),
            ("weight_init", spec.weight_init, "nokland"),
        ):
            if value == zero:
                raise SpecError(
                    f"control 'init_scale' scales the initial weights, and {name} is {value!r}, which starts them from zero: "
                    "take another, or leave the control out"
                )
        if not spec.record_every:
            raise SpecError(
                "control 'init_scale' checks the recorded norms of the initial weights, and record_every is 0: set it above "
                "0, or leave the control out"
            )
        super().check(claim)

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        _, finding = self.searched(bench, treatment, baseline)
        for scale, (t, b) in self.crossed(bench, treatment, baseline).items():
            label = f"init scale × {_fraction(self._factor(bench.claim, scale))}"
            finding.contrasts.append(Contrast(label, "init scales, crossed", tuple(t - b)))
        finding.checks.append(self._scaled(bench))
        return finding

    def _factor(self, claim: Claim, scale: Value) -> float:
        own = own_value(claim, self.grid(claim))
        assert scale is not None
        assert own is not None
        return scale / own

    def _scaled(self, bench: Bench) -> Check:
        """Whether the runs really began with weights of the scale that they were to have."""
        claim, grid = bench.claim, self.grid(bench.claim)
        off = [
            _off(_first_norms(bench, spec), _first_norms(bench, as_claimed), self._factor(claim, scale))
            for arm in (claim.treatment, claim.baseline)
            for scale in grid.values
            if scale != own_value(claim, grid)
            for spec, as_claimed in zip(_runs(bench, arm, grid, scale), bench.specs(arm), strict=True)
        ]
        worst = max(off, default=math.inf)
        detail = (
            f"initial norms differ from the factor times those as claimed by {worst:.1e} (relatively, in the worst layer "
            f"of the worst run; tolerance {TOLERANCE:g})"
        )
        return Check("manipulation: init_scale", worst <= TOLERANCE, detail)


def _runs(bench: Bench, arm: Arm, grid: Grid, scale: Value) -> tuple[RunSpec, ...]:
    return bench.groups[crossed_name(arm, grid, scale)].specs


def _first_norms(bench: Bench, spec: RunSpec) -> Any:
    """Each layer's norm before the first step."""
    return table(bench.dataset(spec), "weight_norm")[0]


def _off(norms: Any, as_claimed: Any, factor: float) -> float:
    """By how much the norms differ, relatively, from what they should be; inf where none is known."""
    known = np.isfinite(norms) & (as_claimed > 0)
    return float(np.abs(norms[known] / (factor * as_claimed[known]) - 1).max()) if known.any() else math.inf


def _fraction(factor: float) -> str:
    return f"1/{1 / factor:g}" if factor < 1 and (1 / factor).is_integer() else f"{factor:g}"
