"""What an effect is made of: the absolute effects of a decomposition first, then their shares of the total, where it has any.

A share is a ratio of two means over the same seeds. Where the total may be next to nothing such a ratio has no bounds, so
that there is none unless the total is more than 4 of its standard errors from 0. Its interval is Fieller's (1954): the shares
θ for which the differences part − θ · total pass Student's test against 0; of few seeds it has ends only further from 0 still.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.audit.controls import Contrast
from alignlab.audit.multiplicity import coverage
from alignlab.audit.statistics import SHARE_NEEDS, Interval, paired, share

__all__ = ["GROUP", "Part", "fieller", "parts_of", "told"]

GROUP = "decomposition"  # of the contrasts


@dataclass(frozen=True)
class Part:
    """An absolute ``effect`` and, where the rule admits one, its ``share`` of the total with its ``ends``, as fractions.

    The parts of one exchange, its direction and its size, add up to the total; an interaction is none, and has no share.
    """

    label: str
    effect: Interval
    share: float | None = None
    ends: tuple[float, float] | None = None

    def __str__(self) -> str:
        """The share in percent, with two digits of its interval's half width; empty where there is none."""
        if self.share is None or self.ends is None:
            return ""
        middle, low, high = (100 * part for part in (self.share, *self.ends))
        digits = min(6, max(0, 1 - math.floor(math.log10((high - low) / 2)))) if high > low else 1
        return f"{middle:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"


def parts_of(
    contrasts: Sequence[Contrast], total: Sequence[float], alpha: float = 0.05, *, continuous: bool = False
) -> list[Part]:
    """The contrasts that decompose ``total`` (n,), one difference a seed, with intervals at 1 − alpha.

    ``continuous``: see :func:`alignlab.audit.statistics.paired`.
    """
    whole, found = paired(total, alpha), []
    for contrast in (contrast for contrast in contrasts if contrast.group == GROUP):
        effect = paired(contrast.differences, alpha, continuous=continuous)
        rest = paired(_beside(contrast.differences, total), alpha, continuous=continuous)
        known = contrast.compares and not (effect.unbounded or whole.unbounded or rest.unbounded)
        estimate = share(effect, whole) if known else None
        ends = None if estimate is None else fieller(contrast.differences, total, alpha)
        found.append(Part(contrast.label, effect, None if ends is None else estimate, ends))
    return found


def _beside(part: Sequence[float], total: Sequence[float]) -> NDArray[np.float64]:
    """What else than the part makes the total, seed by seed: 0 where that is rounding alone. A part is known no better."""
    x, y = np.asarray(part, np.float64), np.asarray(total, np.float64)
    return np.where(np.abs(y - x) <= 1e-9 * np.abs(y).max(), 0.0, y - x)


def fieller(
    part: Sequence[float] | NDArray[Any], total: Sequence[float] | NDArray[Any], alpha: float = 0.05
) -> tuple[float, float] | None:
    """The interval at 1 − alpha of mean(part) / mean(total), pairs (n,), by Fieller's theorem; None where it has no ends.

    >>> low, high = fieller([0.9, 1.0, 1.1, 1.0], [2.0, 2.1, 1.9, 2.0])
    >>> round(low, 2), round(high, 2)
    (0.42, 0.59)
    """
    x, y = np.asarray(part, np.float64), np.asarray(total, np.float64)
    (xx, xy), (_, yy) = np.cov(x, y) * _critical(len(x), alpha) ** 2 / len(x)
    a, b, c = y.mean() ** 2 - yy, x.mean() * y.mean() - xy, x.mean() ** 2 - xx
    if a <= 0:
        return None
    half = math.sqrt(max(0.0, b**2 - a * c))
    return float((b - half) / a), float((b + half) / a)


def told(parts: Sequence[Part], total: Interval) -> str:
    """What the shares are of and which intervals these are, or why there are none."""
    spread = f"Intervals at {coverage(total.alpha)}, each for itself."
    if any(part.share is not None for part in parts):
        return (
            f"Shares are of the total effect as claimed, {total:+.3g}; those of a direction and its size add up to 100 %, one "
            f"of them negative where they pull apart; an interaction is no part of the sum. {spread}"
        )
    needs = max(SHARE_NEEDS, _critical(total.n, total.alpha))
    beyond = abs(total.estimate) / total.se if total.se else (math.inf if total.estimate else 0.0)
    if beyond > needs:
        why = "its differences or those of its parts are equal on all seeds, and so few cannot tell of others"
    else:
        found = math.floor(100 * beyond) / 100
        why = (
            f"it is {found:g} of its standard errors from 0, and what may be next to nothing has no shares (told from "
            f"{needs:.3g} on)"
        )
    return f"No shares of the total effect as claimed, {total:+.3g}: {why}. {spread}"


def _critical(n: int, alpha: float) -> float:
    from scipy import special

    return float(special.stdtrit(n - 1, 1 - alpha / 2))
