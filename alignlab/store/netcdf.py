"""A record as the bytes of a netCDF-4 file, and back.

The files are ordinary netCDF-4 (HDF5 with dimension scales), readable by xarray, h5netcdf and the netCDF tools. They
are written through h5py, the layer under h5netcdf, in a quarter of its time. Fifty small variables take HDF5 longer to
look up than to read, so the index also tells where in the file each array lies, and `from_file` takes it from there:
some fifty times as fast as h5netcdf, with the checksums to vouch for it. The bytes are made in memory so that the disk
sees one plain write, for HDF5 itself does not recover from a disk that fills up under it. Attributes that netCDF cannot
hold (None, bool, lists, dicts) appear there as their JSON text; alignlab reads them from the index, exactly.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.store.record import INDEX, Damaged, Entry, Field, Record
from alignlab.store.schema import storable

if TYPE_CHECKING:
    import os
    from collections.abc import Collection

    import numpy.typing as npt

COMPRESS_FROM = 1 << 18  # bytes; below, the chunk's overhead costs more than it saves


def to_bytes(record: Record) -> bytes:
    """The netCDF-4 file of a record."""
    import h5py  # type: ignore[import-untyped]

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        for name, field in record.fields.items():
            _write(file, name, field)
        _attach_dims(file, record)
        auxiliary = [name for name in record.coords if name not in record.fields[name].dims]
        index = record.index({name: _place(file[name], field) for name, field in record.fields.items()})
        _write_attrs(file, record.attrs | {"coordinates": " ".join(sorted(auxiliary)), INDEX: index})
    return buffer.getvalue()


def from_file(path: str | os.PathLike[str], only: Collection[str] | None = None) -> Record:
    """The record in a netCDF-4 file that `to_bytes` made, with all its variables or `only` some.

    Raises:
        OSError, Damaged, NewerSchema: where there is none.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:  # nobody writes to a segment
            if INDEX not in file.attrs:
                raise Damaged("it has no alignlab index")
            content = Path(path).read_bytes()
            index = str(file.attrs[INDEX])
            return Record.from_index(index, lambda name, entry: _read(content, file, name, entry), only)
    except (KeyError, RuntimeError, TypeError) as error:
        raise Damaged(str(error)) from error


def _place(variable: Any, field: Field) -> Entry:
    """How `_read` finds a variable: text in the index itself, plain arrays by their place in the file."""
    if field.data.dtype.kind == "U":
        return {"text": field.data.tolist()}
    offset = variable.id.get_offset()  # none where it is compressed, or empty
    return {} if offset is None else {"place": [field.data.dtype.str, field.data.shape, offset]}


def _read(content: bytes, file: Any, name: str, entry: Entry) -> npt.NDArray[Any]:
    if "text" in entry:
        return np.array(entry["text"], dtype=str)
    if "place" in entry:
        dtype, shape, offset = entry["place"]
        return np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape).copy()
    data = np.asarray(file[name][()])
    return data.astype(bool) if "dtype" in file[name].attrs else data


def _write(file: Any, name: str, field: Field) -> None:
    import h5py

    data = field.data
    options: dict[str, Any] = {}
    if data.dtype.kind == "U":
        data, options = data.astype(object), {"dtype": h5py.string_dtype()}
    elif data.dtype.kind == "b":
        data = data.astype(np.int8)
    elif data.nbytes >= COMPRESS_FROM:
        options = {"chunks": True, "compression": "gzip", "compression_opts": 1, "shuffle": True}
    variable = file.create_dataset(name, data=data, track_order=True, **options)
    kind = {"dtype": "bool"} if field.data.dtype.kind == "b" else {}  # as xarray marks it
    _write_attrs(variable, field.attrs | kind)


def _attach_dims(file: Any, record: Record) -> None:
    """Say which axis is which dim, as netCDF-4 does: by HDF5's dimension scales."""
    sizes = {dim: n for f in record.fields.values() for dim, n in zip(f.dims, f.data.shape, strict=True)}
    for dim in sizes:
        if dim not in file:  # a dim without a coordinate: a scale without values
            file.create_dataset(dim, shape=(sizes[dim],), dtype=">f4", track_order=True)
            file[dim].make_scale(f"This is a netCDF dimension but not a netCDF variable. {sizes[dim]:9d}")
        else:
            file[dim].make_scale(dim)
    scales = {dim: file[dim] for dim in sizes}
    for name, field in record.fields.items():
        if name in sizes:
            continue
        axes = file[name].dims
        for axis, dim in enumerate(field.dims):
            axes[axis].attach_scale(scales[dim])


def _write_attrs(target: Any, attrs: dict[str, Any]) -> None:
    for key, value in attrs.items():
        if key.startswith("valid_") and _number(value) and hasattr(target, "dtype"):
            value = np.asarray(value, target.dtype)  # CF conventions: of the variable's own type
        elif not (_number(value) or (isinstance(value, str) and storable(value))):
            value = json.dumps(value)
        target.attrs[key] = value


def _number(value: object) -> bool:
    """Whether netCDF can hold a value as a number, or as an array of them."""
    if isinstance(value, list):
        return bool(value) and all(not isinstance(item, list) and _number(item) for item in value)
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
