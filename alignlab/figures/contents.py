"""What a dataset of runs holds, in the form that figures read: one error for what is missing, one shape for all runs."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_OF_LAYERS = ("layer", "kind", "fan_in", "fan_out")
DIMS = ("run", "step", "layer", "mode")
_EVALUATED = ("train_", "validation_", "test_")
_TABLED = ("rule_args", "step_sizes")  # which may hold tables of what was recorded, step by step
_REPLICATES = ("seed", "order")  # settings that make another replicate of a run, not another condition


def need(dataset: xr.Dataset, *names: str) -> None:
    """Raise one error that says which variable is missing or empty, what records it, and what the dataset holds."""
    check_dataset(dataset)
    for name in names:
        if name not in dataset:
            held = ", ".join(sorted(map(str, dataset.data_vars))) or "nothing"
            raise ValueError(f"the dataset has no {name!r}: {recorder_of(name)} records it. It holds {held}")
        if not np.isfinite(dataset[name].values).any():
            raise ValueError(f"{name!r} has no finite value in this dataset; {recorder_of(name)} records it")
        if strange := [str(dim) for dim in dataset[name].dims if dim not in DIMS]:
            raise ValueError(
                f"{name!r} has the dim {strange[0]!r}, expected some of {', '.join(DIMS)}: give it its name back by "
                f"dataset.rename({strange[0]}=...), or select one, dataset.isel({strange[0]}=0)"
            )


def check_dataset(given: Any) -> None:
    """Raise ``TypeError`` for anything but a dataset."""
    import xarray as xr

    if not isinstance(given, xr.Dataset):
        way_out = ": give the dataset that it is a variable of" if isinstance(given, xr.DataArray) else ""
        raise TypeError(f"expected runs as an xarray.Dataset, not {type(given).__name__}{way_out}")


def need_outcome(dataset: xr.Dataset, name: str) -> None:
    """`need`, for a variable that has one value a step and none of its own for each layer."""
    need(dataset, name)
    if surplus := set(dataset[name].dims) - {"run", "step"}:
        raise ValueError(
            f"{name!r} is no outcome of a run: it has a value for each {', '.join(map(str, surplus))}"
        )


def recorder_of(name: str) -> str:
    """Who records a variable, in words.

    >>> recorder_of("feedback_gain"), recorder_of("train_loss")
    ('the probe EffectiveLR', 'the evaluation of alignlab.training')
    """
    from alignlab import probes

    if name.startswith(_EVALUATED):
        return "the evaluation of alignlab.training"
    for probe in vars(probes).values():
        if isinstance(probe, type) and issubclass(probe, probes.Probe) and name in probe.quantities:
            return f"the probe {probe.__name__}"
    return "no probe of alignlab"


def as_runs(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with the dims `run` and `step`, and on `run` every coordinate that describes a run.

    Where runs were trained from specs that differ in a field which is no coordinate yet (hidden, rule_args, ...), that
    field becomes one; the attr `differing` lists them.
    """
    check_dataset(dataset)
    kept = (*_OF_LAYERS, "step", "mode")
    scalars = {str(name): c.item() for name, c in dataset.coords.items() if not c.ndim and name not in kept}
    runs = dataset.drop_vars(list(scalars))
    runs = runs if "run" in runs.dims else runs.expand_dims("run")
    runs = runs if "step" in runs.dims or "step" not in runs.coords else runs.expand_dims("step")
    scalars.pop("run", None)
    runs = runs.assign_coords({name: ("run", [value] * runs.sizes["run"]) for name, value in scalars.items()})
    fields = {name: column for name, column in _differing(runs).items() if name not in runs.variables}
    known = [
        name for name in runs.attrs.get("differing", ()) if name in runs.coords and _several(runs[name])
    ]  # of a dataset that was here before
    return runs.assign_coords(fields).assign_attrs(differing=[*known, *fields])


def _several(column: xr.DataArray) -> bool:
    return len(set(column.values.tolist())) > 1


def _differing(runs: xr.Dataset) -> dict[str, tuple[str, list[str]]]:
    """The fields in which the runs' specs (YAML texts, a coordinate where runs differ) are not all the same.

    A field that a spec of an earlier version does not know is as one that is null. What was replayed from another run's
    record is a run's own as its seed is, unless runs are told apart by nothing else or share it from seed to seed.
    """
    if "spec" not in runs.coords:
        return {}
    texts = runs["spec"].values.tolist()
    specs = [_fields(text) for text in texts]
    short = _without_own_tables(texts)
    if len({str(spec) for spec in short}) == len(set(texts)):
        specs = short
    names = dict.fromkeys(name for spec in specs for name in spec)
    columns = {name: [str(spec.get(name)) for spec in specs] for name in names}
    return {
        name: ("run", column)
        for name, column in columns.items()
        if name not in _REPLICATES and len(set(column)) > 1
    }


def _without_own_tables(texts: Sequence[str]) -> list[Mapping[str, Any]]:
    """The runs' specs without the tables that no run of another seed has: these alone were recorded by a run of that seed."""
    seeds = defaultdict[tuple[str, str], set[Any]](set)
    both = [(_fields(text), _without_tables(text)) for text in texts]
    tables = [
        {name: str(full[name]) for name in _TABLED if full.get(name) != cut.get(name)} for full, cut in both
    ]
    for (full, _), held in zip(both, tables, strict=True):
        for table in held.items():
            seeds[table].add(full.get("seed"))
    return [
        {**cut, **{name: full[name] for name, table in held.items() if len(seeds[name, table]) > 1}}
        for (full, cut), held in zip(both, tables, strict=True)
    ]


@functools.lru_cache(maxsize=4096)  # of some hundred runs, asked for by each figure
def _fields(text: str) -> Mapping[str, Any]:
    """A spec's fields; none where the text is no mapping."""
    import yaml

    found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found if isinstance(found, dict) else {}


@functools.lru_cache(maxsize=4096)
def _without_tables(text: str) -> Mapping[str, Any]:
    """A spec's fields with a word in the place of each list of numbers that another run recorded."""
    return {name: _short(value) if name in _TABLED else value for name, value in _fields(text).items()}


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _short(part) for name, part in value.items()}
    return "replayed" if isinstance(value, list) else value


def values(data: xr.Dataset, name: str, dims: tuple[str, ...]) -> xr.DataArray:
    """The variable as float64 with the dims ("run", *dims), and NaN for all that is not finite.

    A dim of length 1 that was selected away comes back, or goes.
    """
    array = data[name].astype(np.float64)
    for dim in set(dims) - set(array.dims):
        array = array.expand_dims(dim)
    surplus = set(array.dims) - {"run", *dims}
    return array.squeeze([*surplus]).transpose("run", *dims).where(np.isfinite)
