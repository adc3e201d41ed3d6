"""Many controls, one claim: how often may an audit be wrong about any of them?

Holm (1979) tests K hypotheses at alpha / K, and each time one falls, the rest at alpha / (number still
standing). The family-wise error stays at alpha. What Holm protects are the *rejections*: intervals drawn at
his levels do not cover jointly, and may not be read for anything but the hypothesis that was stepped down on.
An audit reads its intervals for several things (no better than m? worse than −m? above 0?), so it steps down
on the first of these that the verdict asks, "this control explains the effect", through `stepdown_levels`. As
long as no control has explained anything, every interval stands at the Bonferroni level alpha / K, where any
reading is safe; and once one has, the verdict reads nothing further than this very question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import le

import numpy as np

__all__ = ["adjusted", "check_level", "coverage", "holm", "holm_levels", "stepdown_levels"]


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values: p̃₍ᵢ₎ = max_{j ≤ i} min(1, (K − j + 1) p₍ⱼ₎), in the order given.

    A hypothesis is rejected at family-wise level alpha iff its adjusted p ≤ alpha. Source: Holm 1979.

    >>> holm([0.01, 0.04, 0.03])
    (0.03, 0.06, 0.06)
    """
    p = np.array([_p_value(value) for value in p_values], dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, np.arange(len(p), 0, -1) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return tuple(adjusted.tolist())


def holm_levels(p_values: Sequence[float], alpha: float = 0.05) -> tuple[float, ...]:
    """The level at which Holm's procedure tests each hypothesis: p ≤ its level iff Holm rejects it.

    The levels lie between alpha / K and alpha and never fall as p rises. An interval at such a level excludes
    its null iff Holm rejects, and is valid for that statement alone (see the module's head).

    >>> holm_levels([0.001, 0.9], alpha=0.05)
    (0.025, 0.05)
    """
    return stepdown_levels([partial(le, _p_value(p)) for p in p_values], alpha)


def stepdown_levels(rejects: Sequence[Callable[[float], bool]], alpha: float = 0.05) -> tuple[float, ...]:
    """Holm's procedure where the K tests are functions level → rejected, for instance "the interval at this
    level …".

    All that stand are tested at alpha / (number standing); those rejected leave with the level that rejected
    them; it ends when none falls. Each test must be monotone: what is rejected at a level is rejected at
    every larger one.
    """
    check_level(alpha)
    levels = [alpha] * len(rejects)
    standing = set(range(len(rejects)))
    while standing:
        level = alpha / len(standing)
        for k in standing:
            levels[k] = level
        fallen = {k for k in standing if rejects[k](level)}
        if not fallen:
            break
        standing -= fallen
    return tuple(levels)


def adjusted(p: float, level: float, alpha: float = 0.05) -> float:
    """min(1, p · alpha / level): at most alpha iff p is at most the level that a step-down gave its test.

    So that a p value says the same as the interval at that level, whichever hypothesis was stepped down on.

    >>> adjusted(0.02, level=0.025, alpha=0.05)
    0.04
    """
    return min(1.0, p * alpha / level)


def coverage(alpha: float) -> str:
    """1 − alpha in percent, with three digits or as many as it takes not to be everything.

    >>> coverage(0.05), coverage(0.05 / 9), coverage(0.001 / 3)
    ('95 %', '99.4 %', '99.97 %')
    """
    texts = (f"{100 * (1 - alpha):.{digits}g}" for digits in range(3, 16))
    return f"{next((text for text in texts if float(text) < 100), '100')} %"


def check_level(alpha: float) -> float:
    """The level itself if it lies strictly between 0 and 1, else ValueError."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}: a level lies strictly between 0 and 1, e.g. 0.05")
    return alpha


def _p_value(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{value} is not a p-value: it must lie between 0 and 1")
    return float(value)
