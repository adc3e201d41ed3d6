"""`open_runs`: all runs of a store as one dataset.

Segments are small, so each is read at once into plain arrays, and these are joined variable by variable. What was
compacted stays on disk until it is asked for: its variables are dask arrays, of a chunk of runs each.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.store.chunking import Box, chunks
from alignlab.store.errors import StoreError
from alignlab.store.joining import Layout, join, plan
from alignlab.store.pieces import Array, Piece, by_run, row
from alignlab.store.record import Record
from alignlab.store.shaping import recomputed
from alignlab.store.shelf import Shelf, segment_pieces
from alignlab.store.zarrs import Stored, Zarr

if TYPE_CHECKING:
    import xarray as xr

PathLike = str | os.PathLike[str]


def open_runs(path: PathLike | Iterable[PathLike]) -> xr.Dataset:
    """The runs in a store: a folder of segments, a compaction (zarr), a folder that holds both, or a list of these.

    One run has dims (step, layer, mode) and its coordinates (run_id, rule, lr, ...) are scalars; several have the
    leading dim `run`, sorted by run_id, steps, layers and modes being joined and missing values NaN. Segments of one
    run follow each other; where they overlap, the later one counts, and so do its `status` and `last_step`: of a run that
    was taken up again from a checkpoint, what it had told of later steps does not count. A run whose last segment says
    "running" may still go on or may have been killed. Attributes in which runs differ become coordinates on `run`, as
    text.

    Lazy is what was compacted (:func:`alignlab.compact`): its coordinates and attributes are read now, its variables are
    dask arrays that read, and check, each chunk when it is computed (``.load()``, ``.compute()``, ``.values``). Of a store
    that grew since, the new segments are read now and the rest stays lazy. Where nothing was compacted everything is
    loaded into memory. The values are the same either way. A variable that is asked for many times is best loaded once:
    ``runs[["loss", "gradient_angle"]].load()``; of 10,000 runs x 200 steps x 4 layers it has 32 MB.

    Warns where runs of one spec (`spec_hash`) were computed by several versions of the code (`code_hash`), as by a sweep before
    and after an upgrade: they are no further replicates, and which to take must be said. And where segments of a run are
    missing before others.

    Raises:
        StoreError: where there is no store, nothing in it, a damaged or newer file, a segment that is a copy of another, or
            one run_id for two runs or recordings; when it is computed, where a lazy chunk is damaged, or the store was
            compacted anew since it was opened.
    """
    runs = open_all(path)
    _warn_of_versions(runs)
    return runs


def open_all(path: PathLike | Iterable[PathLike]) -> xr.Dataset:
    """As :func:`open_runs`, for callers that choose runs by their names: without a word on versions of the code."""
    paths = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(p) for p in path]
    if not paths:
        raise StoreError("no store to open: the list of paths is empty")
    shelves = [
        Shelf(p.absolute()) for p in dict.fromkeys(paths)
    ]  # the caller may go elsewhere before it computes
    if len(shelves) == 1 and shelves[0].compaction is not None and shelves[0].is_compacted:
        return _lazy(shelves[0].compaction).to_dataset()
    owner: dict[str, Shelf] = {}
    for shelf in shelves:
        for run_id in shelf.runs:
            if owner.setdefault(run_id, shelf) is not shelf:
                raise StoreError(
                    f"run {run_id!r} is in {owner[run_id].path} and in {shelf.path}; open these stores separately"
                )
    runs = {run_id: owner[run_id].runs[run_id] for run_id in sorted(owner)}
    if all(shelf.compaction is None for shelf in shelves):
        return join(list(runs.values())).to_dataset()
    return _Joined(plan(list(runs.values())), owner, list(runs)).record().to_dataset()


def _warn_of_versions(runs: xr.Dataset) -> None:
    """One warning for all specs that several versions of the code have computed."""
    several = recomputed(runs)
    if several:
        warnings.warn(
            f"{sum(map(len, several))} of {runs.sizes['run']} runs are of {len(several)} spec{'s' * (len(several) > 1)}, "
            "computed by several versions of the code each: they are no further seeds. Choose a version by the "
            "coordinate code_hash, runs.isel(run=runs['code_hash'] == ...)",
            stacklevel=3,
        )


def open_segments(path: PathLike, names: Iterable[str]) -> xr.Dataset:
    """The runs in the named segments of one folder, as :func:`open_runs` gives those of all."""
    return join(list(by_run(segment_pieces(Path(path), names)).values())).to_dataset()


def _lazy(zarr: Zarr) -> Record:
    """The record of a compaction with dask arrays for what it outlines."""
    fields = dict(zarr.record.fields)
    for name, stored in zarr.arrays.items():
        data = _promised(stored, stored.chunks, Stored.read)
        fields[name] = fields[name]._replace(data=data)
    return Record(fields, zarr.record.coords, zarr.record.attrs, zarr.record.notes)


@dataclass(frozen=True)
class _Joined:
    """Compacted runs and others, which are joined block by block as they are asked for."""

    layout: Layout
    owner: dict[str, Shelf]
    run_ids: list[str]

    def record(self) -> Record:
        outlines = self.layout.record
        sizes = self.layout.axes.sizes(len(self.run_ids))
        fields = dict(outlines.fields)
        for name in outlines.outlinable:
            shape = tuple(sizes[dim] for dim in fields[name].dims)
            variable = _Variable(self, name, shape, fields[name].data.dtype)
            data = _promised(variable, chunks(shape, variable.dtype.itemsize), _Variable.read)
            fields[name] = fields[name]._replace(data=data)
        record = Record(fields, outlines.coords, outlines.attrs, outlines.notes)
        return record if len(self.run_ids) > 1 else row(record, 0)

    def block(self, name: str, start: int, stop: int) -> Array:
        """The values of one variable of some consecutive runs."""
        told: dict[str, list[Piece]] = {}
        run_ids = self.run_ids[start:stop]
        for shelf in {id(shelf): shelf for shelf in self.owner.values()}.values():
            own = [run_id for run_id in run_ids if self.owner[run_id] is shelf]
            told |= dict(zip(own, shelf.values(own, only=(name,)), strict=True))
        return self.layout.block([told[run_id] for run_id in run_ids], only=(name,))[name]


@dataclass(frozen=True)
class _Variable:
    joined: _Joined
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, box: Box) -> Array:
        return self.joined.block(self.name, box[0].start, box[0].stop)[(slice(None), *box[1:])]


def _promised(variable: Any, chunk: Sequence[int], read: Callable[[Any, Box], Array]) -> Any:
    """A dask array of what `read` gives for each chunk of a variable."""
    import dask.array as da

    return da.from_array(  # type: ignore[no-untyped-call]
        variable,
        chunks=tuple(chunk),
        name=f"{variable.name}-{uuid.uuid4().hex}",
        asarray=False,
        getitem=read,
        meta=np.empty((0,) * len(variable.shape), variable.dtype),
    )
