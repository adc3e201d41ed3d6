"""What a search on seeds of its own prefers: the cell of a grid with the best mean, told with the edges that it lies on.

A study whose compared runs were chosen beforehand runs its search again beside them: a reader sees whether the choice was
the search's, and whether the grid was wide enough for there to be one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alignlab.audit.crossfit import scores_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Preferred", "preferred", "told"]


class Preferred(NamedTuple):
    """The ``values`` of the searched coordinates, in their order, and which of these are at an end of their grid."""

    values: tuple[float, ...]
    edges: tuple[str, ...]


def preferred(
    runs: xr.Dataset, outcome: str, *, by: str = "rule", over: Sequence[str] = ("lr", "weight_decay")
) -> dict[Hashable, Preferred]:
    """For each level of ``by`` the values of ``over`` (coordinates of numbers) that have the best mean over their runs.

    The last value of ``outcome`` decides: an accuracy should be high, anything else low. A cell with a run that diverged is
    worse than one without; of equals the first in order counts. On an edge: the least or the greatest of three values or more.
    """
    scores, levels = scores_of(runs, outcome), runs[by].values
    table = np.stack([runs[name].values.astype(np.float64) for name in over], 1)
    return {
        level: _best(scores[levels == level], table[levels == level], over)
        for level in dict.fromkeys(levels.tolist())
    }


def _best(scores: np.ndarray, table: np.ndarray, over: Sequence[str]) -> Preferred:
    """Of one level: ``scores`` (runs,), ``table`` (runs, coordinates)."""
    cells, of = np.unique(table, axis=0, return_inverse=True)
    means = [scores[of.ravel() == i].mean() for i in range(len(cells))]
    best = cells[int(np.argmin(means))]
    grids = [np.unique(column) for column in table.T]
    edges = [
        name
        for name, value, grid in zip(over, best, grids, strict=True)
        if len(grid) > 2 and value in grid[[0, -1]]
    ]
    return Preferred(tuple(best.tolist()), tuple(edges))


def told(found: Mapping[Hashable, Preferred], used: Mapping[str, Sequence[float]]) -> str:
    """In words, what each level prefers, whether it is what was ``used``, and whether it is on an edge of the grid.

    >>> told({"bp": Preferred((0.3, 0.01), ()), "fa": Preferred((0.9, 0.01), ("lr",))}, {"bp": (0.3, 0.01), "fa": (0.3, 0.01)})
    'bp 0.3/0.01, fa 0.9/0.01 (NOT the one used) (edge)'
    """
    return ", ".join(
        f"{level} {'/'.join(f'{value:g}' for value in own.values)}"
        f"{'' if own.values == tuple(used[str(level)]) else ' (NOT the one used)'}{' (edge)' if own.edges else ''}"
        for level, own in found.items()
    )
