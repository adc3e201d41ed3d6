"""How probable it is that the treatment's run beats the baseline's: after Agarwal et al. 2021, but paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.audit.shares import wilson
from alignlab.audit.statistics import Interval


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
    allowed, as only the order counts. The null is ½; `p_value` is the exact sign test without the ties, which may say less
    than the interval: five wins of five exclude ½, at p = 0.0625. Where runs tie the interval is too wide.
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
