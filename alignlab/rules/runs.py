"""Several runs in one tensor, (K, …), as rules meet them: a seed for each run, and sums over what is each run's own.

A rule that takes every number by itself need not know of runs. One that draws numbers, or adds up a batch or a weight, does
it here run by run, so that each run gets what it would get by itself.
"""

from __future__ import annotations

from torch import Tensor


class Seeds(tuple[int, ...]):
    """A seed for each run, to which a clock can be added."""

    def __add__(self, clock: int) -> Seeds:  # type: ignore[override]
        return Seeds(seed + clock for seed in self)

    def __mod__(self, limit: int) -> Seeds:
        return Seeds(seed % limit for seed in self)


def each_run(x: Tensor, runs: int | None) -> Tensor:
    """``x`` with a row a run, (K, all else); of one run, which leads with no dimension of its own, one row."""
    return x.reshape(1 if runs is None else runs, -1)
