"""Schedules: at which optimizer steps a recorder looks. Steps count from 0; a schedule is any callable step → bool."""

from __future__ import annotations

import bisect
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alignlab.checks import is_whole

Schedule = Callable[[int], bool]
NEVER = sys.maxsize


@dataclass(frozen=True)
class Every:
    """Steps 0, n, 2n, …"""

    n: int

    def __call__(self, step: int) -> bool:
        return step % self.n == 0

    def following(self, step: int) -> int:
        """The first scheduled step at or after ``step``."""
        return -(-step // self.n) * self.n


@dataclass(frozen=True)
class Listed:
    """The steps of a sorted tuple."""

    steps: tuple[int, ...]

    def __call__(self, step: int) -> bool:
        place = bisect.bisect_left(self.steps, step)
        return place < len(self.steps) and self.steps[place] == step

    def following(self, step: int) -> int | None:
        """The first scheduled step at or after ``step``; None after the last."""
        place = bisect.bisect_left(self.steps, step)
        return self.steps[place] if place < len(self.steps) else None


def every(n: int) -> Every:
    """Every ``n``-th optimizer step, the first included. Raises ``ValueError`` unless n is a whole number, at least 1.

    >>> [step for step in range(7) if every(3)(step)]
    [0, 3, 6]
    """
    if not is_whole(n):
        raise ValueError(f"every({n!r}): expected a whole number of steps, at least 1")
    return Every(n)


def log_spaced(total: int, n: int) -> Listed:
    """At most ``n`` steps out of ``total``, evenly spaced in log(1 + step), with the first and the last (n = 1: the first).

    Raises ``ValueError`` unless both are whole numbers, at least 1.

    >>> log_spaced(1000, 6).steps
    (0, 3, 15, 62, 250, 999)
    """
    if not (is_whole(total) and is_whole(n)):
        raise ValueError(
            f"log_spaced({total!r}, {n!r}): expected at least one step and one look, in whole numbers"
        )
    points = np.geomspace(1, total, n) - 1
    return Listed(tuple(sorted({round(float(p)) for p in points})))


@dataclass(frozen=True)
class Together:
    """The steps of any of several schedules that know what follows."""

    schedules: tuple[Every | Listed, ...]

    def __call__(self, step: int) -> bool:
        return any(schedule(step) for schedule in self.schedules)

    def following(self, step: int) -> int | None:
        """The first scheduled step at or after ``step``, None where none follows."""
        coming = [schedule.following(step) for schedule in self.schedules]
        return min((found for found in coming if found is not None), default=None)


def consult(schedule: Schedule, step: int) -> tuple[bool, int]:
    """Whether ``step`` is scheduled, and the next step at which to ask again. A plain callable is asked once at every step."""
    following: Callable[[int], int | None] | None = getattr(schedule, "following", None)
    if following is None:
        return bool(schedule(step)), step + 1
    coming = following(step)
    if coming is None:
        return False, NEVER
    return coming == step, step + 1 if coming == step else coming
