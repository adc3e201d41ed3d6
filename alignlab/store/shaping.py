"""One shape for one run and for many: `run` and `step` as dims, and on `run` all in which runs differ."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_OF_LAYERS = ("layer", "kind", "fan_in", "fan_out")
_TABLED = ("rule_args", "step_sizes")  # which may hold tables of what was recorded, step by step
_REPLICATES = ("seed", "order")  # settings that make another replicate of a run, not another condition
CONDITIONS = ("task", "rule", "arm", "control", "lr", "optimizer", "feedback_init")
_ENDED = ("run_id", "status", "last_step")
_MADE_BY = ("schema_version", "alignlab_version", "torch_version", "numpy_version", "device", "gradients",
            "spectrum_settings", "spectrum_method", "spec_hash", "code_hash", "data_hash", "seed_streams")  # fmt: skip


def as_runs(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with the dims `run` and `step`, and on `run` every coordinate that describes a run.

    Where runs were trained from specs that differ in a field which is no coordinate yet (hidden, rule_args, ...), that
    field becomes one; the attr `differing` lists them. Of runs without specs it lists the coordinates that a user gave them;
    `code_hash` too, where several versions of the code computed one spec.
    """
    runs = on_runs(dataset)
    fields = {name: column for name, column in _differing(runs).items() if name not in runs.variables}
    known = [
        name for name in runs.attrs.get("differing", ()) if name in runs.coords and _several(runs[name])
    ]  # of a dataset that was here before
    given = [] if _has_specs(runs) else _given(runs)
    given += ["code_hash"] if recomputed(runs) else []
    differing = dict.fromkeys([*known, *fields, *given])
    return runs.assign_coords(fields).assign_attrs(differing=list(differing))


def recomputed(runs: xr.Dataset) -> list[list[str]]:
    """The versions of the code behind the runs of each spec that several have computed, a hash a run."""
    if "run" not in runs.dims or "code_hash" not in runs.coords or runs["code_hash"].dims != ("run",):
        return []  # an attribute that all share, or none
    hashes = runs.coords.get("spec_hash")  # an attribute where all runs are of one spec
    specs = (
        [runs.attrs.get("spec_hash", "")] * runs.sizes["run"] if hashes is None else hashes.values.tolist()
    )
    versions = defaultdict[str, list[str]](list)
    for spec, code in zip(specs, runs["code_hash"].values.tolist(), strict=True):
        if spec:  # of no spec are runs that a recorder alone wrote
            versions[spec].append(code)
    return [codes for codes in versions.values() if len(set(codes)) > 1]


def _has_specs(runs: xr.Dataset) -> bool:
    """Whether runs were trained from specs that are not all the same; a user's attribute of this name may be any text."""
    return "spec" in runs.coords and any(map(_fields, runs["spec"].values.tolist()))


def on_runs(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with the dims `run` and `step`, and on `run` what describes a single run; one that has them as it is.

    Steps are in order: what is last in the dataset is what a run ended with.
    """
    check_dataset(dataset)
    dataset = _in_order(_without_levels(dataset))
    kept = (*_OF_LAYERS, "step", "mode")
    scalars = {str(name): c.item() for name, c in dataset.coords.items() if not c.ndim and name not in kept}
    if not scalars and "run" in dataset.dims and "step" in dataset.dims:
        return _of_each(dataset)
    runs = dataset.drop_vars(list(scalars))
    runs = runs if "run" in runs.dims else runs.expand_dims("run")
    runs = runs if "step" in runs.dims or "step" not in runs.coords else runs.expand_dims("step")
    scalars.pop("run", None)
    return _of_each(runs).assign_coords(
        {name: ("run", [value] * runs.sizes["run"]) for name, value in scalars.items()}
    )


def _of_each(runs: xr.Dataset) -> xr.Dataset:
    """What all runs share, so that ``xr.concat(..., data_vars="different")`` left it without the dim run, is each one's."""
    shared = [name for name, own in runs.data_vars.items() if "run" not in own.dims]
    whole = {name: runs[name].expand_dims(run=runs.sizes["run"]) for name in shared}
    return runs.assign(whole) if whole else runs


def _without_levels(dataset: xr.Dataset) -> xr.Dataset:
    """Coordinates that a user made levels of one index of the runs are coordinates again."""
    levels = dataset.indexes["run"].nlevels if "run" in dataset.indexes else 1
    return dataset.reset_index("run") if levels > 1 else dataset


def _in_order(dataset: xr.Dataset) -> xr.Dataset:
    """By rising steps, as a dataset need not be that was put together from pieces or turned round."""
    steps = dataset["step"].values if "step" in dataset.dims else np.zeros(0)
    return dataset if (steps[1:] >= steps[:-1]).all() else dataset.sortby("step")


def _several(column: xr.DataArray) -> bool:
    return len(set(column.values.tolist())) > 1


def _given(runs: xr.Dataset) -> list[str]:
    """The coordinates, of any name, that make several conditions of the runs of a user's own loop.

    Of runs that agree in all known conditions some share its value and others do not, or two of one seed differ in it. One
    that has another value in each of these runs tells replicates apart, as a seed does.
    """
    columns = {
        str(name): c.astype(str).values.tolist() for name, c in runs.coords.items() if c.dims == ("run",)
    }
    cells = defaultdict[tuple[str, ...], list[int]](list)
    for i, alike in enumerate(zip(*(columns[name] for name in CONDITIONS if name in columns), strict=True)):
        cells[alike].append(i)
    every = list(cells.values()) or [list(range(runs.sizes["run"]))]
    seeds = columns.get("seed")
    return [
        name
        for name, column in columns.items()
        if name not in (*CONDITIONS, *_REPLICATES, *_ENDED, *_MADE_BY)
        and any(_parts([column[i] for i in cell], seeds and [seeds[i] for i in cell]) for cell in every)
    ]


def _parts(values: Sequence[str], seeds: Sequence[str] | None) -> bool:
    """Whether runs that have these values of a coordinate, and these seeds, are of several conditions."""
    shared = 1 < len(set(values)) < len(values)
    return shared or (seeds is not None and len(set(zip(seeds, values, strict=True))) > len(set(seeds)))


def _differing(runs: xr.Dataset) -> dict[str, tuple[str, list[str]]]:
    """The fields in which the runs' specs (YAML texts, a coordinate where runs differ) are not all the same.

    A field that a spec of an earlier version does not know is as one that is null. What was replayed from another run's
    record is a run's own as its seed is, unless runs are told apart by nothing else or share it from seed to seed.
    """
    if not _has_specs(runs):
        return {}
    texts = runs["spec"].values.tolist()
    specs = [_fields(text) for text in texts]
    short = _without_own_tables(texts)
    if len({str(spec) for spec in short}) == len(set(texts)):
        specs = short
    names = dict.fromkeys(name for spec in specs for name in spec)
    columns = {name: [str(spec.get(name)) for spec in specs] for name in names}
    replicates = _REPLICATES[:1] if _is_crossed(columns) else _REPLICATES
    return {
        name: ("run", column)
        for name, column in columns.items()
        if name not in replicates and len(set(column)) > 1
    }


def _is_crossed(columns: Mapping[str, Sequence[str]]) -> bool:
    """Whether the runs of several seeds have several data orders each, as an audit's placebo: no independent replicates
    of one condition."""
    rest = [column for name, column in columns.items() if name != "order"]
    each = list(zip(*rest, strict=True))
    return len(set(columns.get("seed", ()))) > 1 and len(set(each)) < len(each)


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

    try:
        found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


@functools.lru_cache(maxsize=4096)
def _without_tables(text: str) -> Mapping[str, Any]:
    """A spec's fields with a word in the place of each list of numbers that another run recorded."""
    return {name: _short(value) if name in _TABLED else value for name, value in _fields(text).items()}


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _short(part) for name, part in value.items()}
    return "replayed" if isinstance(value, list) else value


def check_dataset(given: Any) -> None:
    """Raise ``TypeError`` for anything but a dataset."""
    import xarray as xr

    if not isinstance(given, xr.Dataset):
        way_out = ": give the dataset that it is a variable of" if isinstance(given, xr.DataArray) else ""
        raise TypeError(f"expected runs as an xarray.Dataset, not {type(given).__name__}{way_out}")
