"""Shares: how many of n runs did something, and whether two arms differ in it seed by seed (Wilson 1927, McNemar 1947)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignlab.audit.multiplicity import check_level

__all__ = ["Share", "mcnemar_p", "share_of", "unseen_share", "wilson"]


class Share(NamedTuple):
    """``hits`` of ``n`` runs, as a share with Wilson's interval."""

    estimate: float
    low: float
    high: float
    hits: int
    n: int

    def __str__(self) -> str:
        return f"{self.hits}/{self.n} = {self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share_of(hits: Sequence[bool] | NDArray[Any], alpha: float = 0.05) -> Share:
    """The share of (n,) runs that did it, with its interval at 1 − alpha.

    >>> print(share_of([True] * 8 + [False] * 2))
    8/10 = 0.800 [0.490, 0.943]
    """
    did = np.asarray(hits, bool)
    if did.ndim != 1 or not len(did):
        raise ValueError(f"a share needs one truth a run, shape (n,), not {did.shape}")
    p = float(did.mean())
    return Share(p, *wilson(p, len(did), alpha), int(did.sum()), len(did))


def wilson(p: float, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """Wilson's score interval of a share ``p`` of ``n``: it stays within 0…1 and has a width at 0 and 1.

    Its coverage is 1 − alpha on average over shares, not for each: of shares from .05 to .95, nominal .95 is at worst .83 for
    3 runs, .89 for 5 and 10, and .92 for 20 and more; nearer to 0 or 1, about 0.18/n from it, it is down to .83 or .84
    for 5 runs and for any more.
    """
    from scipy import special

    z2 = float(special.ndtri(1 - check_level(alpha) / 2)) ** 2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def unseen_share(n: int, alpha: float = 0.05) -> float:
    """The largest share of all seeds that n of them miss altogether with a probability of alpha: 1 − alpha^(1/n).

    >>> round(unseen_share(10), 2)
    0.26
    """
    return float(1 - check_level(alpha) ** (1 / n))


def mcnemar_p(treatment: Sequence[bool] | NDArray[Any], baseline: Sequence[bool] | NDArray[Any]) -> float:
    """Two-sided exact p-value that both arms do it equally often, runs (n,) paired by seed.

    Only the seeds count in which one arm did it and the other did not; by chance these go either way like coins.

    >>> mcnemar_p([True, True, True, True, True, False], [False, False, False, False, False, False])
    0.0625
    """
    from scipy import special

    a, b = np.asarray(treatment, bool), np.asarray(baseline, bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"treatment {a.shape} and baseline {b.shape} must hold one truth a seed each, (n,)")
    more, less = int((a & ~b).sum()), int((b & ~a).sum())
    return min(1.0, 2 * float(special.bdtr(min(more, less), more + less, 0.5)))
