"""A record as one zarr (format 3), and back: the form in which many runs are read quickly.

The zarr is an ordinary one that `xarray.open_zarr` reads. Chunks hold whole runs: as many as fit into 4 MiB, so that one
run is in one chunk of each variable, and the statistics of a variable over all runs read that variable once, in a few
pieces. `read` takes the coordinates and leaves the variables where they are, as :class:`Stored` arrays. These check every
chunk against the checksums in the index, for a chunk that got lost would otherwise read as fill values without a word.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alignlab.store import atomic
from alignlab.store.chunking import Box, chunks, place, power_of_two, shifted
from alignlab.store.errors import StoreError
from alignlab.store.record import INDEX, Damaged, Entry, Field, Record, checksum
from alignlab.store.schema import as_text

Array = npt.NDArray[Any]
BATCH_BYTES = 64 << 20


class Zarr(NamedTuple):
    """A zarr's record with the coordinates' values, and its outlined variables."""

    record: Record
    arrays: dict[str, Stored]


@dataclass(frozen=True)
class Stored:
    """A variable in a zarr, checked chunk by chunk as it is read. `checksums` are in the chunks' C order."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    checksums: tuple[int, ...]

    def read(self, box: Box) -> Array:
        """The values in a box: one slice for each dim, with start and stop.

        Raises:
            StoreError: where they are not those that were there when the zarr was opened.
        """
        values = np.empty([s.stop - s.start for s in box], self.dtype)
        for number, chunk in self._chunks_of(box):
            found = self._read(number, chunk)
            there = [
                slice(max(c.start, b.start), min(c.stop, b.stop)) for c, b in zip(chunk, box, strict=True)
            ]
            values[shifted(there, box)] = found[shifted(there, chunk)]
        return values

    @functools.cached_property
    def _array(self) -> Any:
        import zarr

        return zarr.open_array(self.path / self.name, mode="r")

    def _chunks_of(self, box: Box) -> Iterator[tuple[int, Box]]:
        """Number and place of every chunk that a box touches."""
        counts = [-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True)]
        touched = [range(s.start // c, -(-s.stop // c)) for s, c in zip(box, self.chunks, strict=True)]
        for where in itertools.product(*touched):
            number = int(np.ravel_multi_index(where, counts)) if where else 0
            yield number, place(where, self.chunks, self.shape)

    def _read(self, number: int, chunk: Box) -> Array:
        try:
            found = np.asarray(self._array[chunk])
            if checksum(found) == self.checksums[number]:
                return found
            wrong = f"the values of {self.name!r} are not those that were written"
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            wrong = f"the values of {self.name!r} are damaged ({error})"
        way_out = (
            "open it again, in case it was compacted anew meanwhile; or else remove it and compact again"
        )
        raise StoreError(f"cannot read {self.path}: {wrong}; {way_out}")


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr of format 3."""
    return os.path.isfile(path / "zarr.json")  # a Path raises where a name is too long


def read(path: Path) -> Zarr:
    """What is in a zarr that `write` made.

    Raises:
        OSError, Damaged, NewerSchema: where there is none.
    """
    import zarr

    stored: dict[str, Stored] = {}

    def outline(name: str, entry: Entry) -> str:
        shape, chunk, dtype = tuple(entry["shape"]), tuple(entry["chunks"]), str(entry["dtype"])
        stored[name] = Stored(path, name, shape, np.dtype(dtype), chunk, tuple(entry["crcs"]))
        return dtype

    try:
        group = zarr.open_group(path, mode="r", use_consolidated=True)
        if INDEX not in group.attrs:
            raise Damaged("it has no alignlab index")
        record = Record.from_index(
            str(group.attrs[INDEX]), lambda name, _: _values(group[name]), outline=outline
        )
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise Damaged(str(error)) from error
    return Zarr(record, stored)


def write(path: Path, record: Record, blocks: Iterable[Mapping[str, Array]]) -> None:
    """Write a zarr at `path`, whole and on disk; one that is there is replaced.

    `record` has all but the values of its outlined variables. These come in `blocks` of `batch(record)` runs, the last of
    what is left, each with all of them; or in one block where there is no dim run.

    Raises:
        OSError: where that cannot be; nothing is left behind, and what was there stays.
    """
    import zarr

    shapes = _shapes(record)
    grid = _grid(record, shapes)
    checksums: dict[str, list[int]] = {name: [] for name in shapes}
    with (
        atomic.temporary_name(path) as temporary,
        atomic.locked_folder(temporary),
        zarr.config.set({"array.write_empty_chunks": True}),  # or a copy over another keeps the other's
    ):
        _write_frame(temporary, record, shapes, grid)
        group = zarr.open_group(temporary, mode="r+", use_consolidated=False)
        arrays = {name: group[name] for name in shapes}
        start = 0
        for block in blocks:
            for name, values in block.items():
                checksums[name] += _write_block(arrays[name], start, values, grid[name])
            start += batch(record)
        entries = {
            name: {
                "shape": shapes[name],
                "dtype": record.fields[name].data.dtype.str,
                "chunks": grid[name],
                "crcs": checksums[name],
            }
            for name in shapes
        }
        group.attrs[INDEX] = record.index(entries)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            zarr.consolidate_metadata(temporary)
        _to_disk(temporary)
        atomic.replace_folder(temporary, path)


def batch(record: Record) -> int:
    """How many runs are written at a time: a power of two, such that all of their variables have at most 64 MiB."""
    one = sum(
        record.fields[name].data.dtype.itemsize * math.prod(shape[1:])
        for name, shape in _shapes(record).items()
    )
    return power_of_two(BATCH_BYTES // max(1, one))


def _shapes(record: Record) -> dict[str, tuple[int, ...]]:
    """The shapes of the outlined variables, by what the coordinates tell of the dims."""
    known = [record.fields[name] for name in record.coords]
    sizes = {dim: n for f in known for dim, n in zip(f.dims, f.data.shape, strict=True)}
    return {name: tuple(sizes[dim] for dim in record.fields[name].dims) for name in record.outlinable}


def _grid(record: Record, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    most = batch(record)
    return {
        name: chunks(shape, record.fields[name].data.dtype.itemsize, most) for name, shape in shapes.items()
    }


def _write_frame(
    path: Path, record: Record, shapes: Mapping[str, tuple[int, ...]], grid: Mapping[str, tuple[int, ...]]
) -> None:
    """Everything but the values of the outlined variables and the index."""
    import dask.array as da
    from zarr.storage import LocalStore

    fields = {}
    for name, field in record.fields.items():
        data: Any = field.data.astype(object) if field.data.dtype.kind == "U" else field.data
        if name in shapes:  # a promise of values that is not kept by dask
            data = da.zeros(shapes[name], chunks=grid[name], dtype=field.data.dtype)
        fields[name] = Field(field.dims, data, {key: _native(value) for key, value in field.attrs.items()})
    attrs = {key: _native(value) for key, value in record.attrs.items()}
    dataset = Record(fields, record.coords, attrs).to_dataset()
    encoding = {
        str(k): {"chunks": grid.get(str(k), chunks(v.shape, v.dtype.itemsize))}
        for k, v in dataset.variables.items()
    }
    store = LocalStore(
        path
    )  # a mere path is text to xarray: a leading ~ is the home folder, and :: makes it an address
    dataset.to_zarr(store, mode="a", zarr_format=3, consolidated=False, encoding=encoding, compute=False)


def _write_block(array: Any, start: int, values: Array, chunk: tuple[int, ...]) -> list[int]:
    """Write some runs and return the checksums of their chunks."""
    array[start : start + len(values)] = values
    counts = [range(-(-n // c)) for n, c in zip(values.shape, chunk, strict=True)]
    return [checksum(values[place(where, chunk, values.shape)]) for where in itertools.product(*counts)]


def _to_disk(path: Path) -> None:
    """Bring a folder to disk with all that is in it; a disk takes many files at a time faster than one by one."""
    paths = [Path(folder) / file for folder, _, files in os.walk(path) for file in [*files, "."]]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(atomic.fsync, paths))


def _native(value: Any) -> Any:
    """An attribute as strict JSON holds it: its JSON text where it has NaN or infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(value)
    return value


def _values(array: Any) -> Array:
    data = np.asarray(array[...])
    return as_text(data) if data.dtype.kind in "OT" else data
