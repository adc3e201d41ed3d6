"""Seed-paired statistics of a contrast: one number a seed, treatment against baseline, and how far to trust
their mean.

Pairing by seed takes out what both arms share (initial weights, data order). Below 20 seeds the interval is
Student's: percentile bootstraps of five runs cover .835 where .95 was promised, and an exact sign-flip
p-value stands beside it for whoever distrusts the normal distribution. From 20 on each of its ends is the
further one of Student's and of the studentised bootstrap of whole runs, since each of these knows what the
other misses: where 5 % were promised, the bootstrap of 20 to 80 differences of two lognormals (σ = 1) missed
7 to 10 %, Student's and both together 4 to 5; where 2.5 % were promised on the side of a long tail, Student's
of 20 lognormal differences missed 13 %, the bootstrap and both together 7 (of exponential ones 8, and 4). Of
normal ones both together are 1 to 4 % wider. Below 20 seeds nothing helps against a long tail: of exponential
differences 11 % miss at 5 seeds and 8 % at 19, of lognormal ones 18 and 13 %; of what one seed in ten does,
59 % of the intervals from five seeds know nothing.
Differences that are all equal have no spread to go by: of them sign flips alone can tell, and too few of
them tell nothing; but for those of losses that are all 0, of runs that computed the same. "No difference" is
never concluded from a large p, only from equivalence tests (Schuirmann 1987).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.audit.multiplicity import check_level, holm, holm_levels
from alignlab.audit.power import seeds_needed
from alignlab.audit.resampling import (
    EXACT_FLIPS,
    all_equal,
    bootstrap_pivots,
    pivot_interval,
    pivot_p,
    sign_flip_p,
)

__all__ = [
    "SHARE_NEEDS",
    "Equivalence",
    "Interval",
    "holm",
    "holm_levels",
    "paired",
    "plain",
    "seeds_needed",
    "share",
    "tost",
]

SHARE_NEEDS = 4.0  # standard errors by which a total must differ from 0 before a share of it means anything


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval at 1 − alpha, from n seeds.

    `p_value` tests "no effect" by the `method` of the interval: "t", "bootstrap-t" (with t), "degenerate" (all
    differences equal) or "wilson"; but for the last, p ≤ alpha iff the interval excludes 0. Both ends are
    infinite where so few seeds exclude nothing. `p_sign_flip` assumes nothing but symmetry, and cannot fall
    below 2^(1−n).
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
        ends = () if self.unbounded else (self.low, self.high)
        if not all(map(math.isfinite, (self.estimate, *ends, self.se, self.p_value))):
            raise ValueError(
                f"not a finite interval: {asdict(self)}; check the outcomes that it was made from"
            )
        if self.low > self.high:
            raise ValueError(f"an interval from {self.low} to {self.high} is upside down: low must be ≤ high")

    @property
    def unbounded(self) -> bool:
        """Whether it excludes nothing: from minus to plus infinity."""
        return (self.low, self.high) == (-math.inf, math.inf)

    @property
    def tied(self) -> bool:
        """Whether all differences behind it are equal."""
        return self.method == "degenerate"

    def within(self, margin: float) -> bool:
        """Whether it lies wholly inside ±margin, ends included."""
        return -margin <= self.low and self.high <= margin

    def __format__(self, spec: str) -> str:
        """Estimate and ends in the format of numbers that ``spec`` is: ``+0.25 [+0.11, +0.39]`` for ``+.2f``.

        An end that is not 0 is not written as 0: then with one digit that is none, ``[+0.003, +0.39]``.
        """
        if not spec:
            return str(self)
        low, high = (_written(end, spec) for end in (self.low, self.high))
        return f"{self.estimate:{spec}} [{low}, {high}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, fit for JSON, which has no infinity: an open end is None."""
        return asdict(self, dict_factory=plain)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Interval:
        """The inverse of `to_dict`."""
        ends: dict[str, Any] = {"low": -math.inf, "high": math.inf}
        return cls(**{key: ends[key] if key in ends and v is None else v for key, v in data.items()})


def _written(end: float, spec: str) -> str:
    text = format(end, spec)
    hidden = math.isfinite(end) and end != 0 and not set(text) & set("123456789")
    return format(end, f"{'+' * spec.startswith('+')}.1g") if hidden else text


def plain(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict factory for `dataclasses.asdict` that makes infinite numbers None."""
    return {key: None if isinstance(v, float) and math.isinf(v) else v for key, v in fields}


@dataclass(frozen=True)
class Equivalence:
    """Outcome of a test that an effect lies within ±margin; `equivalent` where p_value ≤ the test's alpha.

    `interval`: that at 1 − 2 alpha, which lies within ±margin iff the test says so.
    """

    p_value: float
    equivalent: bool
    margin: float
    interval: Interval


def paired(
    differences: Sequence[float] | NDArray[Any], alpha: float = 0.05, *, continuous: bool = False
) -> Interval:
    """Mean of seed-paired differences (n,) with its interval at 1 − alpha.

    n < 20: x̄ ± t₍ₙ₋₁₎ s/√n, `p_value` of the t-test, with the exact sign-flip p-value as `p_sign_flip`.
    n ≥ 20: from the lower to the upper end of that and of the studentised bootstrap of whole runs, `p_value`
    the larger of both; if the differences tie too much for a bootstrap, the t interval. p ≤ alpha iff the
    interval excludes 0, whichever it is.

    All differences equal to v (but for rounding): method "degenerate", by exact sign flips, which reject every
    mean but v at p = 2^(1−n). The interval is [v, v] where that is at most alpha, else unbounded: two equal
    differences tell nothing. `p_value` is 2^(1−n), or 1 where v = 0: nothing speaks for an effect then, and
    against one speak only as many seeds as give the interval ends. If outcomes are `continuous`, as losses
    are, arms that end alike to the last bit computed the same, which rounding on another processor sets apart
    by 1e-7: where v = 0 the interval is then [0, 0], what Student's comes to, of however few. Losses of untrained
    runs, or at a bound that all seeds reach, are not `continuous`.

    Errors: ValueError for fewer than 2 differences, or for one that is not finite (the pair is named), another shape, or
    an alpha outside (0, 1).

    >>> interval = paired([0.2, 0.3, 0.1, 0.4, 0.25])
    >>> f"{interval:.3f} p={interval.p_value:.4f}"
    '0.250 [0.111, 0.389] p=0.0075'
    >>> interval.p_sign_flip
    0.0625
    """
    d = _differences(differences)
    check_level(alpha)
    if all_equal(d):
        return _by_flips(float(d[0]), len(d), alpha, continuous)
    pivots = bootstrap_pivots(d) if len(d) > EXACT_FLIPS else None
    return _by_t(d, alpha) if pivots is None else _by_both(d, pivots, alpha)


def tost(differences: Sequence[float] | NDArray[Any], margin: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided tests that the mean of (n,) paired differences lies within ±margin (Schuirmann 1987).

    p = max(P(mean ≤ −margin), P(mean ≥ +margin)) by the method of `paired`, below 20 seeds the t-test;
    equivalent iff the interval of `paired` at 1 − 2 alpha lies within ±margin, that is iff p ≤ alpha. Failing
    is no proof of a difference. Of a true mean on the margin "equivalent" is said in 5 % of normal samples; where a
    long tail leads out of ±margin, in 23 % of 5 lognormal differences (σ = 1) and 17 % of 19 (of exponential ones 16
    and 11). Differences that are all equal, all 0 too, have p = 2^(−n) inside ±margin: four
    of them show no equivalence at 0.05, five do. Units: those of the differences. Errors: ValueError for a
    margin that is not positive, and for alpha ≥ ½.

    >>> tost([0.01, -0.02, 0.0, 0.015, -0.01], margin=0.1).equivalent
    True
    """
    if not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"the equivalence margin is {margin}: it must be a positive number")
    d, interval = _differences(differences), paired(differences, 2 * check_level(alpha))
    p = max(_not_above_zero(d + margin), _not_above_zero(margin - d))
    return Equivalence(p, interval.within(margin), float(margin), interval)


def _by_flips(value: float, n: int, alpha: float, continuous: bool) -> Interval:
    """Of n differences that all are `value`."""
    least = 2.0 ** (1 - n)
    known = least <= alpha or (continuous and value == 0)
    low, high = (value, value) if known else (-math.inf, math.inf)
    p = least if value else 1.0
    return Interval(value, low, high, 0.0, n, p, "degenerate", alpha, p)


def _by_t(d: NDArray[np.float64], alpha: float) -> Interval:
    from scipy import special

    n, mean, se = len(d), float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d))
    half = float(special.stdtrit(n - 1, 1 - alpha / 2)) * se
    p = 2 * float(special.stdtr(n - 1, -abs(mean) / se))
    return Interval(mean, mean - half, mean + half, se, n, p, "t", alpha, sign_flip_p(d))


def _by_both(d: NDArray[np.float64], pivots: NDArray[np.float64], alpha: float) -> Interval:
    """Student's and the bootstrap's together."""
    t, (low, high) = _by_t(d, alpha), pivot_interval(pivots, alpha)
    p = max(t.p_value, pivot_p(pivots))
    return replace(t, low=min(low, t.low), high=max(high, t.high), p_value=p, method="bootstrap-t")


def _not_above_zero(d: NDArray[np.float64]) -> float:
    """One-sided p-value of the hypothesis that the mean is not above 0."""
    found = paired(d)
    return found.p_value / 2 if found.estimate > 0 else 1 - found.p_value / 2


def share(part: Interval, total: Interval) -> float | None:
    """part / total as a fraction, or None unless the total is more than 4 of its standard errors from 0.

    A ratio to a total that may be 0 has no finite variance; absolute effects come first. May fall outside
    0…1.
    """
    if abs(total.estimate) <= SHARE_NEEDS * total.se:
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
