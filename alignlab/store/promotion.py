"""Attributes in which runs differ become coordinates on `run`, and back; none is dropped.

A dataset of several runs has room for one value of each attribute. What all runs share stays there. What they do not
share (a torch version, the method of a spectrum) becomes a coordinate of texts on `run`, named as the attribute, or
``<variable>_<attribute>`` where a variable has it. The record's notes keep the values with their types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignlab.store.record import Field, Record
from alignlab.store.schema import DIMS

Attrs = dict[str, Any]


def promote(record: Record, told: Sequence[Sequence[Record]]) -> None:
    """Give `record` the attributes of the runs joined in it; `told` are each run's records, the last word last."""
    record.attrs, differing = _compare([[r.attrs for r in records] for records in told])
    promoted = [("", key, values) for key, values in differing]
    for name, field in record.fields.items():
        words = [[r.fields[name].attrs for r in records if name in r.fields] for records in told]
        shared, differing = _compare(words)
        promoted += [(name, key, values) for key, values in differing]
        record.fields[name] = Field(field.dims, field.data, shared)
    record.notes["promoted"] = {}
    for owner, key, values in promoted:
        name = _free_name(f"{owner}_{key}" if owner else key, record)
        text = np.array([_text(*value) for value in values], dtype=str)
        record.fields[name] = Field(("run",), text, {})
        record.coords.add(name)
        record.notes["promoted"][name] = {"owner": owner, "key": key, "values": values}


def demote(rows: Sequence[Record], notes: dict[str, Any], numbers: Sequence[int]) -> None:
    """Undo `promote` in the records of single runs: those of these `numbers` in the record whose `notes` are given."""
    for name, attribute in notes.get("promoted", {}).items():
        owner, key, values = attribute["owner"], attribute["key"], attribute["values"]
        for row, value in zip(rows, [values[i] for i in numbers], strict=True):
            del row.fields[name]
            row.coords.discard(name)
            if not value:
                continue
            if owner:
                field = row.fields[owner]
                row.fields[owner] = Field(field.dims, field.data, field.attrs | {key: value[0]})
            else:
                row.attrs[key] = value[0]


def _compare(told: Sequence[Sequence[Attrs]]) -> tuple[Attrs, list[tuple[str, list[list[Any]]]]]:
    """The attributes that the runs share, and the others as (key, [value] or [] for each run).

    `told` are each run's attributes, once for each of its segments; a run without any has no such variable.
    """
    merged = [words[0] if len(words) == 1 else _merged(words) for words in told]
    voters = [attrs for attrs, words in zip(merged, told, strict=True) if words]
    distinct = {id(attrs): attrs for attrs in voters}.values()  # many runs hold the same ones
    if (
        len({repr(attrs) for attrs in distinct}) == 1
    ):  # as text, for there NaN equals itself and True is not 1
        return dict(voters[0]), []
    shared, differing = {}, []
    for key in dict.fromkeys(key for attrs in voters for key in attrs):
        if len({repr([attrs[key]] if key in attrs else []) for attrs in voters}) == 1:
            shared[key] = voters[0][key]
        else:
            differing.append((key, [[attrs[key]] if key in attrs else [] for attrs in merged]))
    return shared, differing


def _merged(words: Sequence[Attrs]) -> Attrs:
    return {key: value for attrs in words for key, value in attrs.items()}


def _free_name(name: str, record: Record) -> str:
    name = re.sub(r"[\s/\0]", "_", name)  # an attribute may be called what a variable may not
    while name in record.fields or name in DIMS:
        name = f"attr_{name}"
    return name


def _text(value: Any = "") -> str:
    return value if isinstance(value, str) else json.dumps(value)
