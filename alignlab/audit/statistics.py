"""Seed-paired statistics of a contrast: one number a seed, treatment against baseline, and how far to trust
their mean.

Pairing by seed takes out what both arms share (initial weights, data order). Below 20 seeds the interval is
Student's: percentile bootstraps of five runs cover .835 where .95 was promised, and an exact sign-flip
p-value stands beside it for whoever distrusts the normal distribution. From 20 on it is the studentised
bootstrap of whole runs. "No difference" is never concluded from a large p, only from equivalence tests
(Schuirmann 1987). The probability of improvement follows Agarwal et al. 2021, but paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.audit.multiplicity import check_level, holm, holm_levels
from alignlab.audit.power import seeds_needed
from alignlab.audit.resampling import EXACT_FLIPS, bootstrap_interval, sign_flip_p
from alignlab.audit.shares import wilson

__all__ = [
    "Equivalence",
    "Interval",
    "holm",
    "holm_levels",
    "paired",
    "probability_of_improvement",
    "seeds_needed",
    "share",
    "tost",
]

_SHARE_NEEDS = 4.0  # standard errors by which a total must differ from 0 before a share of it means anything


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval at 1 − alpha, from n seeds.

    `p_value` tests "no effect" in the way that `method` says: "t", "degenerate" (all differences equal) or
    "wilson" have a p-value that belongs to the interval's own distribution; "bootstrap-t" has the sign-flip
    one. `p_sign_flip` assumes nothing but symmetry, and cannot fall below 2^(1−n).
    """

    estimate: float
    low: float
    high: float
    se: float
    n: int
    p_value: float
    method: str
    alpha: float
    p_sign_flip: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no comparison could read: a NaN would silently answer every question with no."""
        check_level(self.alpha)
        if not all(map(math.isfinite, (self.estimate, self.low, self.high, self.se, self.p_value))):
            raise ValueError(
                f"not a finite interval: {asdict(self)}; check the outcomes that it was made from"
            )
        if self.low > self.high:
            raise ValueError(f"an interval from {self.low} to {self.high} is upside down: low must be ≤ high")

    def __format__(self, spec: str) -> str:
        """Estimate and ends in the format of numbers that ``spec`` is: ``+0.25 [+0.11, +0.39]`` for ``+.2f``."""
        if not spec:
            return str(self)
        return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Interval:
        """The inverse of `to_dict`."""
        return cls(**data)


@dataclass(frozen=True)
class Equivalence:
    """Outcome of a test that an effect lies within ±margin; `equivalent` where p_value ≤ the test's alpha."""

    p_value: float
    equivalent: bool
    margin: float


def paired(differences: Sequence[float] | NDArray[Any], alpha: float = 0.05) -> Interval:
    """Mean of seed-paired differences (n,) with its interval at 1 − alpha.

    n < 20: x̄ ± t₍ₙ₋₁₎ s/√n, `p_value` of the t-test (so p ≤ alpha iff the interval excludes 0), with the
    exact sign-flip p-value as `p_sign_flip`. n ≥ 20: studentised bootstrap of whole runs, `p_value` from sign
    flips; if the differences tie too much for a bootstrap, the t interval. All differences equal: low = high
    = estimate, method "degenerate", p_value 0 or 1; `p_sign_flip` then tells how little n seeds can show.

    Errors: ValueError for fewer than 2 differences, or for one that is not finite (the pair is named).

    >>> interval = paired([0.2, 0.3, 0.1, 0.4, 0.25])
    >>> f"{interval:.3f} p={interval.p_value:.4f}"
    '0.250 [0.111, 0.389] p=0.0075'
    >>> interval.p_sign_flip
    0.0625
    """
    d = _differences(differences)
    flip = sign_flip_p(d)
    mean, se = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d))
    if np.ptp(d) == 0:
        value, p = float(d[0]), float(d[0] == 0)
        return Interval(value, value, value, 0.0, len(d), p, "degenerate", check_level(alpha), flip)
    bounds = bootstrap_interval(d, check_level(alpha)) if len(d) > EXACT_FLIPS else None
    if bounds is not None:
        return Interval(mean, *bounds, se, len(d), flip, "bootstrap-t", alpha, flip)
    from scipy import special

    half = float(special.stdtrit(len(d) - 1, 1 - alpha / 2)) * se
    p = 2 * float(special.stdtr(len(d) - 1, -abs(mean) / se))
    return Interval(mean, mean - half, mean + half, se, len(d), p, "t", alpha, flip)


def tost(differences: Sequence[float] | NDArray[Any], margin: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided t-tests that the mean of (n,) paired differences lies within ±margin (Schuirmann 1987).

    p = max(P(mean ≤ −margin), P(mean ≥ +margin)); equivalent iff p ≤ alpha, that is iff the t interval at 1 −
    2 alpha lies within ±margin. Failing is no proof of a difference. Units: those of the differences.

    >>> tost([0.01, -0.02, 0.0, 0.015, -0.01], margin=0.1).equivalent
    True
    """
    from scipy import special

    check_level(alpha)
    if not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"the equivalence margin is {margin}: it must be a positive number")
    d = _differences(differences)
    room = margin - abs(float(d.mean()))
    if np.ptp(d) == 0:
        p = float(room <= 0)
    else:
        p = float(special.stdtr(len(d) - 1, -room / (float(d.std(ddof=1)) / math.sqrt(len(d)))))
    return Equivalence(p_value=p, equivalent=p <= alpha, margin=float(margin))


def probability_of_improvement(
    treatment: Sequence[float] | NDArray[Any],
    baseline: Sequence[float] | NDArray[Any],
    alpha: float = 0.05,
    *,
    maximize: bool = False,
) -> Interval:
    """P(the treatment's run beats the baseline's run of the same seed), ties counting half, with Wilson's
    interval.

    Outcomes (n,) each, paired; the smaller wins unless `maximize`. Infinite outcomes (diverged runs) are
    allowed, as only the order counts. The null is ½; `p_value` is the exact sign test without the ties.
    Source: Agarwal et al. 2021 (there unpaired), Wilson 1927.

    >>> probability_of_improvement([1.0, 2.0, 3.0, 9.0], [2.0, 3.0, 3.0, 8.0]).estimate
    0.625
    """
    from scipy import special

    better, worse, n = _wins(np.asarray(treatment, float), np.asarray(baseline, float), maximize)
    p = (better + (n - better - worse) / 2) / n
    low, high = wilson(p, n, alpha)
    sign_test = min(1.0, 2 * float(special.bdtr(min(better, worse), better + worse, 0.5)))
    se = math.sqrt(p * (1 - p) / n)
    return Interval(p, low, high, se, n, sign_test, "wilson", alpha)


def share(part: Interval, total: Interval) -> float | None:
    """part / total as a fraction, or None unless the total is more than 4 of its standard errors from 0.

    A ratio to a total that may be 0 has no finite variance; absolute effects come first. May fall outside
    0…1.
    """
    if abs(total.estimate) <= _SHARE_NEEDS * total.se:
        return None
    return part.estimate / total.estimate


def _differences(values: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
    d = np.asarray(values, dtype=np.float64)
    if d.ndim != 1:
        raise ValueError(f"differences have shape {d.shape}: expected one number a seed, shape (n,)")
    if len(d) < 2:
        raise ValueError(
            f"{len(d)} paired seed(s) have no spread: an interval needs at least 2, better 5 or more"
        )
    bad = np.flatnonzero(~np.isfinite(d))
    if len(bad):
        raise ValueError(
            f"the difference of pair {bad[0]} (of 0…{len(d) - 1}) is {d[bad[0]]}: a run diverged or was not "
            "measured; fix beforehand what such a run counts as, or use probability_of_improvement"
        )
    return d


def _wins(
    treatment: NDArray[np.float64], baseline: NDArray[np.float64], maximize: bool
) -> tuple[int, int, int]:
    if treatment.shape != baseline.shape or treatment.ndim != 1 or not len(treatment):
        raise ValueError(
            f"treatment {treatment.shape} and baseline {baseline.shape} must hold one outcome a seed each, "
            "the seeds in the same order"
        )
    bad = np.flatnonzero(np.isnan(treatment) | np.isnan(baseline))
    if len(bad):
        raise ValueError(
            f"pair {bad[0]} holds a NaN: give a diverged run an infinite outcome, or repeat the run"
        )
    higher, lower = int(np.sum(treatment > baseline)), int(np.sum(treatment < baseline))
    return (higher, lower, len(treatment)) if maximize else (lower, higher, len(treatment))
