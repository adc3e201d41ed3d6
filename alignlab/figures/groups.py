"""Which runs of a dataset belong to one line and which panels they need.

Runs are averaged only over replicates (seeds). Where the runs behind one line differ in a condition (task, rule, arm,
control, learning rate, a setting of their specs, a coordinate that the user gave them) that neither hue nor col tells
apart, the figure gets a panel for each value, so that no line ever mixes conditions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alignlab.figures.style import broken, level_text, level_texts, plain
from alignlab.store.shaping import CONDITIONS

if TYPE_CHECKING:
    import xarray as xr

MOST_PANELS = 40
_SELF_EVIDENT = ("task", "rule")  # levels that can be read without the name of their coordinate
_NOTHING = ("", "none")


class Panel(NamedTuple):
    """One axes' share of a dataset: a title, and the runs (and layers) shown there."""

    title: str
    data: xr.Dataset


def conditions(data: xr.Dataset) -> list[str]:
    """The coordinates of the runs in which replicates agree."""
    return [key for key in (*CONDITIONS, *data.attrs.get("differing", ())) if key in data.coords]


def levels(data: xr.Dataset, key: str) -> list[Hashable]:
    """The values of a coordinate: layers in network order, others sorted, backprop (the control) first."""
    if key not in data.coords or (key != "layer" and data[key].dims != ("run",)):
        known = sorted(
            str(name) for name, coord in data.coords.items() if coord.dims == ("run",) or name == "layer"
        )
        raise ValueError(
            f"cannot split by {key!r}: choose one of these runs' coordinates, {', '.join(known)}"
        )
    found = list(dict.fromkeys(np.atleast_1d(data[key].values).tolist()))
    known = [level for level in found if level == level]
    missing = [math.nan] if len(known) < len(found) else []  # one object, which dicts and sets find again
    return [*(known if key == "layer" else sorted(known, key=_place)), *missing]


def _place(level: Hashable) -> tuple[bool, list[str | float]]:
    """Where a level stands among others: numbers, within names too, by their size, ``[4]`` before ``[16]``; backprop first."""
    if isinstance(level, int | float):
        return True, ["", float(level)]
    parts = re.split(r"((?:^-)?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)", str(level))
    return level != "bp", [float(part) if i % 2 else part for i, part in enumerate(parts)]


def select(data: xr.Dataset, key: str, level: Hashable) -> xr.Dataset:
    """The part of the dataset where the coordinate `key` has this value."""
    if key == "layer":
        return data.sel(layer=[level]) if "layer" in data.dims else data
    return data.isel(run=np.flatnonzero(having(data, key, level)))


def having(data: xr.Dataset, key: str, level: Hashable) -> np.ndarray:
    """Whether each run's coordinate `key` has this value (run,); NaN is a value like any other."""
    found = data[key].values
    return np.asarray(found == level if level == level else found != found)


def with_layers(data: xr.Dataset, name: str, hue: str) -> xr.Dataset:
    """Without the layers in which no run has a value of this variable, whose panels would be empty; with them all as hue, so
    that a layer looks the same in every figure."""
    if hue == "layer" or "layer" not in data[name].dims:
        return data
    finite: xr.DataArray = abs(data[name]) < np.inf
    there = finite.any([dim for dim in finite.dims if dim != "layer"])
    return data.isel(layer=np.flatnonzero(there.values))


def direct(data: xr.Dataset) -> np.ndarray:
    """Whether each run's rule sends the output's error straight to the layers, by a B of another shape than W's (run,)."""
    from alignlab.rules import RULES

    rules = (
        np.atleast_1d(data["rule"].values).tolist()
        if "rule" in data.coords
        else [""] * data.sizes.get("run", 1)
    )
    return np.array(
        [any(name in RULES and RULES[name].direct for name in str(rule).split("+")) for rule in rules], bool
    )


def one_seed_each(data: xr.Dataset, *names: str) -> None:
    """Raise where runs that agree in these coordinates have a seed twice: another condition would be averaged over."""
    points = list(zip(*(data[name].values.tolist() for name in names), strict=True))
    seeds = data["seed"].values.tolist() if "seed" in data.coords else list(range(len(points)))
    for (point, seed), n in Counter(zip(points, seeds, strict=True)).items():
        if n > 1:
            where = ", ".join(f"{name} {level}" for name, level in zip(names, point, strict=True))
            raise ValueError(f"{n} runs of {where} have seed {seed}: select one of each seed first")


def replicates(data: xr.Dataset, mine: np.ndarray, *told: Hashable) -> None:
    """Raise where of several seeds one is there twice among the runs ``mine`` (run,) of a mean, which ``told`` names.

    Something that is not known parts these runs. Those that all have one seed tell nothing by it.
    """
    seeds = data["seed"].values[mine].tolist() if "seed" in data.coords else []
    if 1 < len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise ValueError(
            f"{seeds.count(twice)} of the {len(seeds)} runs of {', '.join(map(level_text, told))} have seed {twice}: they are "
            "one run, or differ in what no coordinate says, and are no replicates; select one of each seed, or tell them "
            "apart, dataset.assign_coords(width=('run', [...]))"
        )


def panels(
    data: xr.Dataset, hue: str | None, col: str | None, layered: bool, on_axis: tuple[str, ...] = ()
) -> list[Panel]:
    """Split into panels by `col`, and by every condition that would otherwise be mixed within one line.

    `on_axis` names the conditions that the figure itself tells apart (the learning rate along its x axis).
    """
    if not layered and "layer" in (hue, col):
        raise ValueError(
            "this outcome belongs to a run, not to its layers: take a hue and col other than 'layer'"
        )
    keys = [] if col is None else [col]
    known = [key for key in (hue, col, *on_axis) if key not in (None, "layer")]
    for key in (*known, "layer") if layered else known:
        levels(data, str(key))
    for condition in conditions(data):
        if condition not in known and _varies(data, condition, known):
            keys.append(condition)
            known.append(condition)
    if layered and "layer" not in (hue, col):
        keys.append("layer")
    found = list(_split(data, keys))
    if len(found) > MOST_PANELS:
        raise ValueError(
            f"these runs need {len(found)} panels, one for each {' × '.join(keys)}; select fewer of them first, "
            f"for example dataset.isel(run=dataset['rule'].values == 'bp') or dataset.sel(layer=['...'])"
        )
    return found


def _varies(data: xr.Dataset, condition: str, known: list[str]) -> bool:
    """Whether runs that agree in all the `known` coordinates differ in this one."""
    rows = set(zip(*(data[key].values.tolist() for key in (*known, condition)), strict=True))
    return len(rows) > len({row[:-1] for row in rows})


def _split(data: xr.Dataset, keys: list[str]) -> Iterator[Panel]:
    """A panel for each combination of levels that some run has; titles leave out what all panels share.

    Names that differ only in the middle, which a short form leaves out, stand in full.
    """
    parts: list[tuple[xr.Dataset, list[str]]] = [(data, [])]
    # one by one: an audit's settings have 100,000s of combinations, of which hardly any has a run
    for key in keys:
        several = levels(data, key)
        texts = level_texts(several)
        told = {level: [named(key, level, texts[level])] if len(several) > 1 else [] for level in several}
        parts = [
            (select(part, key, level), words + told[level])
            for part, words in parts
            for level in several
            if key == "layer" or having(part, key, level).any()
        ]
    for part, words in parts:
        yield Panel(broken(" · ".join(words)), part)


def named(key: str, level: Hashable, text: str = "") -> str:
    """A level as a title says it; ``text``: how it is written, where not by its own short form."""
    return plain(level) if key in _SELF_EVIDENT else f"{key.replace('_', ' ')} {text or level_text(level)}"


def context(data: xr.Dataset, *shown: str | None) -> str:
    """What all the runs have in common and nothing else in the figure says: task, rule, learning rate, layer, seeds."""
    keys = [key for key in (*conditions(data), "layer", "seed") if key in data.coords and key not in shown]
    if "arm" in keys and "rule" in data.coords and (data["arm"].values == data["rule"].values).all():
        keys.remove("arm")  # an arm that is named by its rule says nothing more
    alike = {key: found[0] for key in keys if len(found := levels(data, key)) == 1}
    parts = [named(key, level) for key, level in alike.items() if level not in _NOTHING and level == level]
    if "seed" in keys and "seed" not in alike:
        parts.append(f"{len(levels(data, 'seed'))} seeds")
    return " · ".join(parts)
