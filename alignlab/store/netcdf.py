"""A record as the bytes of a netCDF-4 file, and back.

The files are ordinary netCDF-4 (HDF5 with dimension scales), readable by xarray, h5netcdf and the netCDF tools. They
are written through h5py, the layer under h5netcdf, in a quarter of its time. HDF5 takes longer to lay out fifty small
variables (50 ms) than a disk to store them, and the segments of a run, or of a sweep, have all one layout: it is made
once, and each file begins as a copy of that mould, into which texts and numbers are put (4 ms). As HDF5 also takes
longer to look variables up than to read them, the index tells where in the file each array lies, and `from_file` takes it
from there: some fifty times as fast as h5netcdf, with the checksums to vouch for it. The bytes are made in memory so that
the disk sees one plain write, for HDF5 itself does not recover from a disk that fills up under it. Attributes that netCDF
cannot hold (None, bool, lists, dicts) appear there as their JSON text; alignlab reads them from the index, exactly.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from alignlab.store.record import INDEX, Damaged, Entry, Field, Record
from alignlab.store.schema import storable

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy.typing as npt

SIGNATURE = b"\x89HDF\r\n\x1a\n"
END_AT = {0: 40, 1: 44, 2: 28, 3: 28}  # where an HDF5 file's head says how long it is, by the head's version
COMPRESS_FROM = 1 << 18  # bytes; below, the chunk's overhead costs more than it saves


class Variable(NamedTuple):
    """The layout of one variable; ``dtype`` is "U" for texts of any length, ``attrs`` are JSON."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: str


class Mould(NamedTuple):
    """A file without texts and numbers: where each plain array lies, and which variables HDF5 has to write itself."""

    content: bytes
    places: dict[str, int]
    unplaced: list[str]


def to_bytes(record: Record) -> bytes:
    """The netCDF-4 file of a record."""
    import h5py  # type: ignore[import-untyped]

    mould = _mould(_layout(record))
    auxiliary = [name for name in record.coords if name not in record.fields[name].dims]
    buffer = io.BytesIO(mould.content)
    with h5py.File(buffer, "r+") as file:
        for name in mould.unplaced:
            file[name][...] = _as_stored(record.fields[name].data)
        index = record.index(
            {name: _entry(field, mould.places.get(name)) for name, field in record.fields.items()}
        )
        _write_attrs(file, record.attrs | {"coordinates": " ".join(sorted(auxiliary)), INDEX: index})
    content = buffer.getbuffer()
    for name, offset in mould.places.items():
        data = _as_stored(record.fields[name].data)
        content[offset : offset + data.nbytes] = data.tobytes()
    return bytes(content)


def from_file(
    path: str | os.PathLike[str], only: Collection[str] | None = None, *, outlined: bool = False
) -> Record:
    """The record in a netCDF-4 file that `to_bytes` made, with all its variables or `only` some; or `outlined`.

    Raises:
        OSError, Damaged, NewerSchema: where there is none.
    """
    import h5py

    try:
        with (
            h5py.File(path, "r", locking=False) as file,
            Path(path).open("rb") as plain,
        ):  # nobody writes to it
            if INDEX not in file.attrs:
                raise Damaged("it has no alignlab index")
            return Record.from_index(
                str(file.attrs[INDEX]),
                lambda name, entry: _read(plain, file, name, entry),
                only,
                (lambda name, entry: _dtype(file, name, entry)) if outlined else None,
            )
    except (KeyError, RuntimeError, TypeError) as error:
        raise Damaged(str(error)) from error


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a file is as long as it says that it is; a look at its head, which takes a hundredth of reading it.

    One that cannot be read counts as whole: why it cannot is for its reader to tell.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(52)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return True
    if len(head) < 52 or head[:8] != SIGNATURE:
        return False
    start = END_AT.get(head[8], 52)  # of a version to come nothing is known
    return int.from_bytes(head[start : start + 8], "little") <= size


def _entry(field: Field, offset: int | None) -> Entry:
    """How `_read` finds a variable: text in the index itself, plain arrays by their place in the file."""
    if field.data.dtype.kind == "U":
        return {"text": field.data.tolist()}
    return {} if offset is None else {"place": [field.data.dtype.str, field.data.shape, offset]}


def _dtype(file: Any, name: str, entry: Entry) -> str:
    if "place" in entry:
        return str(entry["place"][0])
    return "bool" if "dtype" in file[name].attrs else str(file[name].dtype)


def _read(plain: BinaryIO, file: Any, name: str, entry: Entry) -> npt.NDArray[Any]:
    if "text" in entry:
        return np.array(entry["text"], dtype=str)
    if "place" in entry:
        dtype, shape, offset = entry["place"]
        plain.seek(offset)
        content = plain.read(math.prod(shape) * np.dtype(dtype).itemsize)
        return np.frombuffer(content, dtype, math.prod(shape)).reshape(shape).copy()
    data = np.asarray(file[name][()])
    return data.astype(bool) if "dtype" in file[name].attrs else data


def _as_stored(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Texts as objects, truth values as int8: what HDF5 and netCDF have for them."""
    if data.dtype.kind == "U":
        return data.astype(object)
    return data.astype(np.int8) if data.dtype.kind == "b" else data


def _layout(record: Record) -> tuple[Variable, ...]:
    """All that decides how a file is laid out: everything but the numbers, the texts and the dataset's attributes."""
    return tuple(
        Variable(
            name,
            f.dims,
            f.data.shape,
            "U" if f.data.dtype.kind == "U" else f.data.dtype.str,
            json.dumps(f.attrs),
        )
        for name, f in record.fields.items()
    )


@functools.lru_cache(maxsize=8)
def _mould(layout: tuple[Variable, ...]) -> Mould:
    """A file of this layout that holds zeros."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        for variable in layout:
            _create(file, variable)
        _attach_dims(file, layout)
        # where an array lies is not told of text, nor where it is compressed, or empty
        offsets = {v.name: None if v.dtype == "U" else file[v.name].id.get_offset() for v in layout}
    places = {name: offset for name, offset in offsets.items() if offset is not None}
    unplaced = [v.name for v in layout if v.name not in places and 0 not in v.shape]
    return Mould(buffer.getvalue(), places, unplaced)


def _create(file: Any, variable: Variable) -> None:
    import h5py

    truths = np.dtype(variable.dtype).kind == "b"
    options: dict[str, Any] = {"shape": variable.shape, "dtype": "i1" if truths else variable.dtype}
    if variable.dtype == "U":
        options["dtype"] = h5py.string_dtype()
    elif math.prod(variable.shape) * np.dtype(variable.dtype).itemsize >= COMPRESS_FROM:
        options |= {"chunks": True, "compression": "gzip", "compression_opts": 1, "shuffle": True}
    else:
        stored = _as_stored(np.zeros(variable.shape, variable.dtype))
        options = {"data": stored}  # written, and so given its place
    dataset = file.create_dataset(variable.name, track_order=True, **options)
    kind = {"dtype": "bool"} if truths else {}  # as xarray marks it
    _write_attrs(dataset, json.loads(variable.attrs) | kind)


def _attach_dims(file: Any, layout: tuple[Variable, ...]) -> None:
    """Say which axis is which dim, as netCDF-4 does: by HDF5's dimension scales."""
    sizes = {dim: n for v in layout for dim, n in zip(v.dims, v.shape, strict=True)}
    for dim in sizes:
        if dim not in file:  # a dim without a coordinate: a scale without values
            file.create_dataset(dim, shape=(sizes[dim],), dtype=">f4", track_order=True)
            file[dim].make_scale(f"This is a netCDF dimension but not a netCDF variable. {sizes[dim]:9d}")
        else:
            file[dim].make_scale(dim)
    scales = {dim: file[dim] for dim in sizes}
    for variable in layout:
        if variable.name in sizes:
            continue
        axes = file[variable.name].dims
        for axis, dim in enumerate(variable.dims):
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
