"""What seed-paired differences say without a normal distribution: sign flips and the bootstrap of whole runs.

Under "the treatment changes nothing" the two runs of a pair could be swapped, so every difference could as
well have the other sign: counting the 2^n sign patterns gives an exact p-value (Fisher 1935). The bootstrap
is the studentised one (Efron and Tibshirani 1993, ch. 12), because with twenty or more runs it is the one
that keeps its word: at n = 20 nominal 95 % intervals cover .95 of normal and .92 of lognormal means;
percentile ones .94 and .85, BCa .93 and .87. Both are seeded, do not depend on the order of the pairs, and
mirror when treatment and baseline swap places.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXACT_FLIPS", "bootstrap_interval", "sign_flip_p"]

Floats = NDArray[np.float64]

EXACT_FLIPS = 19
"""Up to this many pairs all sign patterns are counted (2^18 sums, one array of 2 MB)."""

_RESAMPLES = 10_000
_CHUNK = 2_000_000  # numbers held at once


def sign_flip_p(differences: Floats, seed: int = 0) -> float:
    """Two-sided p-value of the sum of paired differences (n,) under random sign flips.

    p = share of sign patterns s with |Σ sᵢ dᵢ| ≥ |Σ dᵢ|: exact for n ≤ 19, where the smallest value that can
    be reached is 2^(1−n) (0.0625 for five pairs); above that from 10,000 seeded patterns and (1 + hits) / (1
    + patterns).

    >>> sign_flip_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    0.0625
    """
    sizes = np.sort(np.abs(differences))
    threshold = abs(math.fsum(differences)) - 1e-12 * float(sizes.sum())  # equal sums may differ by rounding
    if len(sizes) <= EXACT_FLIPS:
        return float(np.mean(np.abs(_all_flipped_sums(sizes)) >= threshold))
    rng = np.random.default_rng(seed)
    hits = 0
    for rows in _chunks(_RESAMPLES, len(sizes)):
        signs = 2.0 * rng.integers(2, size=(rows, len(sizes))) - 1.0
        hits += int(np.count_nonzero(np.abs(signs @ sizes) >= threshold))
    return (1 + hits) / (1 + _RESAMPLES)


def bootstrap_interval(differences: Floats, alpha: float, seed: int = 0) -> tuple[float, float] | None:
    """Studentised bootstrap interval of the mean of (n,) paired differences at 1 − alpha.

    With t* = (x̄* − x̄) / se* over 10,000 resamples of whole pairs: [x̄ − t*₁₋ₐ/₂ se, x̄ − t*ₐ/₂ se]. Every
    resample comes with its reflection (the i-th smallest difference replaced by the i-th largest), so that
    the interval of −d is the mirror image of that of d. None where so many differences tie that constant
    resamples reach the quantiles.
    """
    ordered = np.sort(differences)
    mean, se = float(ordered.mean()), float(ordered.std(ddof=1)) / math.sqrt(len(ordered))
    t_star = _studentised(ordered, mean, seed)
    left = float(np.quantile(t_star, alpha / 2, method="lower"))
    right = float(np.quantile(t_star, 1 - alpha / 2, method="higher"))
    if not (math.isfinite(left) and math.isfinite(right)):
        return None
    return mean - right * se, mean - left * se


def _studentised(ordered: Floats, mean: float, seed: int) -> Floats:
    """t* of every resample and its reflection; a constant resample gives ±inf, or 0 without offset."""
    rng = np.random.default_rng(seed)
    n = len(ordered)
    parts = []
    for rows in _chunks(_RESAMPLES // 2, 2 * n):
        index = rng.integers(n, size=(rows, n))
        for picked in (ordered[index], ordered[n - 1 - index]):
            offset, spread = picked.mean(axis=1) - mean, picked.std(axis=1, ddof=1) / math.sqrt(n)
            spread[np.ptp(picked, axis=1) == 0] = 0.0  # rounding leaves a constant resample a spread of 1e-17
            with np.errstate(divide="ignore", invalid="ignore"):
                parts.append(np.nan_to_num(offset / spread, nan=0.0, posinf=np.inf, neginf=-np.inf))
    return np.concatenate(parts)


def _all_flipped_sums(sizes: Floats) -> Floats:
    """Σ sᵢ dᵢ over all patterns with s₀ = +1; the other half only mirrors them."""
    sums = sizes[:1]
    for size in sizes[1:]:
        sums = np.concatenate([sums + size, sums - size])
    return sums


def _chunks(total: int, width: int) -> list[int]:
    rows = max(1, _CHUNK // width)
    return [min(rows, total - start) for start in range(0, total, rows)]
