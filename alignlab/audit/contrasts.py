"""Contrasts of arms: seed-paired differences with their intervals, in groups, as figures.forest draws them.

An audit's contrasts come from its controls; a study, which has none, names the pairs that it compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignlab.audit.outcomes import final, sense
from alignlab.audit.statistics import Interval, paired

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Compared", "as_dataset", "compared"]


class Compared(NamedTuple):
    """A pair of arms: its ``label``, the ``group`` that it belongs to, and the difference, > 0 where the first is better."""

    label: str
    group: str
    interval: Interval


def compared(
    runs: xr.Dataset, outcome: str, pairs: Mapping[str, Sequence[tuple[str, str]]], alpha: float = 0.05
) -> list[Compared]:
    """By how much the treatment's final ``outcome`` is better than the baseline's, seed by seed, in its units.

    ``pairs``: by group, pairs of arms (treatment, baseline). The difference is baseline − treatment for a loss, an error or an
    angle, treatment − baseline for anything else. Raises ``ValueError`` for an arm without runs, where an arm has a seed twice,
    and for a seed that one of both lacks.
    """
    table, found = final(runs, outcome), []
    for group, (treatment, baseline) in ((group, pair) for group, own in pairs.items() for pair in own):
        if missing := [arm for arm in (treatment, baseline) if arm not in table]:
            raise ValueError(f"no arm {missing[0]!r} to compare: there are {', '.join(map(str, table))}")
        better = sense(outcome) * (table[treatment] - table[baseline]).to_numpy()
        found.append(Compared(f"{treatment} / {baseline}", group, paired(better, alpha)))
    return found


def as_dataset(
    rows: Sequence[tuple[str, str, Interval | Mapping[str, Any]]], words: str, units: str = "", **about: Any
) -> xr.Dataset:
    """Rows (label, group, interval) on the dim ``contrast``, for :func:`alignlab.figures.forest`.

    Coordinates label and group; variables estimate, low, high, n and alpha, also where an interval is a mapping that has these.
    ``words`` and ``units`` name the axis; ``about`` are attributes of the dataset.
    """
    import xarray as xr

    numbers = [vars(one) if isinstance(one, Interval) else one for *_, one in rows]
    names = ("estimate", "low", "high", "n", "alpha")
    columns = {name: ("contrast", np.array([float(own[name]) for own in numbers])) for name in names}
    coords = {
        name: ("contrast", np.array([row[i] for row in rows])) for i, name in enumerate(("label", "group"))
    }
    dataset = xr.Dataset(columns, {"contrast": np.arange(len(rows)), **coords}, about)
    dataset["estimate"].attrs |= {"long_name": words, "units": units}
    return dataset
