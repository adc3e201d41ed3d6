"""The expected best of a tuning budget: what k trials would have found, from the n ≥ k trials that were run.

Best-against-best depends on how many trials each arm had; a curve over budgets shows it. The estimator is the
unbiased one, a U-statistic over all subsets of size k (Tang et al. 2020), not the plug-in of Dodge et al.
2019, which draws with replacement and is biased towards a worse best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["budget_curve", "expected_best"]


def expected_best(values: Sequence[float] | NDArray[Any], k: int, maximize: bool = False) -> float:
    """Mean over all C(n, k) subsets of k of the n trials' values (n,) of the subset's best (its smallest)
    value.

    Σᵢ x₍ᵢ₎ C(n − i, k − 1) / C(n, k) over the sorted values. A diverged trial is +inf (−inf with `maximize`):
    the result is infinite as long as k trials can all have diverged. Units: those of the values. Source: Tang
    et al. 2020.

    >>> expected_best([3.0, 1.0, 2.0], k=2)   # of {3,1}, {3,2}, {1,2}: (1 + 2 + 1) / 3
    1.3333333333333333
    """
    ordered = _sorted_from_best(values, maximize)
    if not 1 <= k <= len(ordered):
        raise ValueError(
            f"a budget of k={k} cannot be drawn from {len(ordered)} trials: wanted 1 ≤ k ≤ {len(ordered)}"
        )
    best = _mean_of_best(ordered, k)
    return -best if maximize else best


def budget_curve(values: Sequence[float] | NDArray[Any], maximize: bool = False) -> NDArray[np.float64]:
    """`expected_best` for every budget k = 1…n; entry k − 1 belongs to k trials. Starts at the mean, ends at
    the best.

    >>> budget_curve([3.0, 1.0, 2.0]).round(3).tolist()
    [2.0, 1.333, 1.0]
    """
    ordered = _sorted_from_best(values, maximize)
    curve = np.array([_mean_of_best(ordered, k) for k in range(1, len(ordered) + 1)])
    return -curve if maximize else curve


def _mean_of_best(ordered: NDArray[np.float64], k: int) -> float:
    """Weights by their ratio, w₁ = k/n, wᵢ₊₁/wᵢ = (n − i − k + 1)/(n − i): no factorial to overflow."""
    n = len(ordered)
    if np.isinf(ordered[n - k]):  # the k worst may have been drawn, and all of them diverged
        return float(np.inf)
    i = np.arange(1, n - k + 1)
    weights = k / n * np.cumprod(np.concatenate([[1.0], (n - i - k + 1) / (n - i)]))
    return float(weights @ ordered[: n - k + 1])


def _sorted_from_best(values: Sequence[float] | NDArray[Any], maximize: bool) -> NDArray[np.float64]:
    """Ascending with the best first (negated if maximising)."""
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or not len(v):
        raise ValueError(f"trial values have shape {v.shape}: expected one number a trial, shape (n,), n ≥ 1")
    v = -v if maximize else v
    bad = np.flatnonzero(np.isnan(v) | (v == -np.inf))
    if len(bad):
        worst = "-inf" if maximize else "+inf"
        raise ValueError(
            f"trial {bad[0]} has the value {values[bad[0]]}: all must be finite, a diverged one {worst}"
        )
    return np.sort(v)
