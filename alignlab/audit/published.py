"""What others reported, from ``published.csv`` of the embedded data: marks to stand beside ours.

A value that was not checked in its source has to be asked for as such, so that whoever shows it knows to say so.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cache

from alignlab.training.embedded import embedded

__all__ = ["published"]


def published(source: str, metric: str, *, verified: bool = True, **where: str) -> dict[str, float]:
    """By rule what ``source`` reported of ``metric``: accuracies as shares of 1, as alignlab records them, errors in percent.

    ``verified``: read in the source named, or else known from memory alone. ``where``: values of further columns (task,
    network, locator). Empty where the source reported none of these. Raises ``ValueError`` for a column or a value that the
    file does not have, and where a rule has several.

    >>> published("akrout2019 reference code", "weight_angle")
    {'fa': 40.0, 'kolen_pollack': 3.6, 'weight_mirror': 3.8}
    """
    base = {"source": source, "metric": metric, "verified": "yes" if verified else "no"}
    for column, value in (base | where).items():
        if column not in _rows()[0]:
            raise ValueError(f"no column {column!r} in published.csv: there are {', '.join(_rows()[0])}")
        if value not in (known := sorted({row.get(column, "") for row in _rows()})):
            raise ValueError(f"no published {column} {value!r}: there are {', '.join(known)}")
    if not (reported := _matching(_rows(), base)):
        raise ValueError(f"{source} has no {metric} with verified={verified}: try the other")
    found: dict[str, float] = {}
    for row in _matching(reported, where):
        if row["rule"] in found:
            raise ValueError(
                f"{source} reported several {metric} of {row['rule']}: say of which task or network"
            )
        share = metric.endswith("accuracy") and row["unit"] == "percent"
        found[row["rule"]] = float(row["value"]) / (100 if share else 1)
    return found


def _matching(rows: Sequence[dict[str, str]], wanted: Mapping[str, str]) -> Sequence[dict[str, str]]:
    return [row for row in rows if all(row[column] == value for column, value in wanted.items())]


@cache
def _rows() -> tuple[dict[str, str], ...]:
    with embedded("published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
