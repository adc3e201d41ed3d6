"""A record as one zarr (format 3), and back: the form in which many runs are read quickly.

The zarr is an ordinary one that `xarray.open_zarr` reads lazily. `read` loads all of it and checks every array against
the checksums in its index, for a chunk that got lost would otherwise read as fill values without a word.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignlab.store import atomic
from alignlab.store.record import INDEX, Damaged, Field, Record
from alignlab.store.schema import as_text

CHUNK_BYTES = 4 << 20


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr of format 3."""
    return (path / "zarr.json").is_file()


def write(path: Path, record: Record) -> None:
    """Write a zarr at `path`, whole and on disk; one that is there is replaced.

    Raises:
        OSError: where that cannot be; nothing is left behind, and what was there stays.
    """
    with atomic.temporary_name(path) as temporary, atomic.locked_folder(temporary):
        dataset = _as_zarr(record).to_dataset()
        encoding = {
            str(k): {"chunks": chunks(v.shape, v.dtype.itemsize)} for k, v in dataset.variables.items()
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            dataset.to_zarr(temporary, mode="a", zarr_format=3, consolidated=True, encoding=encoding)
        for folder, _, files in os.walk(temporary):
            for file in files:
                atomic.fsync(Path(folder) / file)
            atomic.fsync(Path(folder))
        atomic.replace_folder(temporary, path)


def read(path: Path) -> Record:
    """The record in a zarr that `write` made.

    Raises:
        OSError, Damaged, NewerSchema: where there is none.
    """
    import zarr

    try:
        group = zarr.open_group(path, mode="r", use_consolidated=True)
        if INDEX not in group.attrs:
            raise Damaged("it has no alignlab index")
        return Record.from_index(str(group.attrs[INDEX]), lambda name, _: _array(group[name]))
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise Damaged(str(error)) from error


def chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """A chunk's shape: the array's, its longest leading axes (run, step) halved until a chunk has at most 4 MiB.

    >>> chunks((200, 1000, 4, 64), 4)
    (50, 63, 4, 64)
    """
    shape = tuple(max(1, n) for n in shape)
    while np.prod(shape, dtype=np.int64) * itemsize > CHUNK_BYTES and max(shape) > 1:
        axis = int(np.argmax(shape[:2])) if max(shape[:2]) > 1 else int(np.argmax(shape))
        shape = tuple(-(-n // 2) if i == axis else n for i, n in enumerate(shape))
    return shape


def _as_zarr(record: Record) -> Record:
    """The record in types that zarr has: no text of fixed length, no attributes with NaN or infinity."""
    fields = {}
    for name, field in record.fields.items():
        data = field.data.astype(object) if field.data.dtype.kind == "U" else field.data
        fields[name] = Field(field.dims, data, {key: _native(value) for key, value in field.attrs.items()})
    attrs = {key: _native(value) for key, value in record.attrs.items()}
    return Record(fields, record.coords, attrs | {INDEX: record.index()})


def _native(value: Any) -> Any:
    """An attribute as strict JSON holds it: its JSON text where it has NaN or infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(value)
    return value


def _array(array: Any) -> npt.NDArray[Any]:
    data = np.asarray(array[...])
    return as_text(data) if data.dtype.kind in "OT" else data
