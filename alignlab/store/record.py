"""What a file of the store holds, as plain arrays: the common form of netCDF segments and zarr compactions.

Building an `xarray.Dataset` for each of some hundred small files costs more than reading them, so the store works on
`Record`s and makes one dataset at the end. A record's *index* is a JSON text with the names, dims, attributes and
checksums of all its variables, stored beside them. It makes reading quick (one look-up instead of hundreds), lets
every attribute come back as it was (netCDF knows neither None nor bool), and tells a damaged file from a sound one.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignlab.store.errors import StoreError
from alignlab.store.schema import DIMS, SCHEMA_VERSION, as_text, is_text, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt
    import xarray as xr

INDEX = "alignlab_index"
Entry = dict[str, Any]  # what an index tells of one variable


class Damaged(ValueError):
    """Content that is not what was written."""


class NewerSchema(ValueError):
    """Content of a schema that this version cannot know."""


@contextlib.contextmanager
def reading(path: Path, otherwise: str, way_out: str) -> Iterator[None]:
    """What goes wrong in reading a file, as one StoreError; ``otherwise``: what the file is where it is not damaged."""
    try:
        yield
    except NewerSchema as error:
        raise StoreError(f"cannot read {path}: {error}; upgrade alignlab") from error
    except PermissionError as error:
        raise StoreError(f"cannot read {path}: permission denied; ask its owner") from error
    except (OSError, Damaged, ValueError) as error:
        raise StoreError(f"cannot read {path}: damaged, or {otherwise} ({error}); {way_out}") from error


class Field(NamedTuple):
    """One variable: dims in the order run, step, layer, mode; text as numpy's ``<U``.

    An *outline* stands for a variable whose values were left on disk: it has an empty array of the variable's dtype,
    which fits nowhere, so that no outline can pass for values.
    """

    dims: tuple[str, ...]
    data: npt.NDArray[Any]
    attrs: dict[str, Any]

    @classmethod
    def outline(cls, dims: tuple[str, ...], dtype: npt.DTypeLike, attrs: dict[str, Any]) -> Field:
        """A variable without its values."""
        return cls(dims, np.empty((0,) * len(dims), dtype), attrs)

    @property
    def is_outline(self) -> bool:
        return bool(self.dims) and not any(self.data.shape)


@dataclass
class Record:
    """Variables by name, which of them are coordinates, the dataset's attributes, and notes of the store itself."""

    fields: dict[str, Field]
    coords: set[str]
    attrs: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> Record:
        """The content of a dataset that keeps the contract."""
        fields = {str(name): _field(variable) for name, variable in dataset.variables.items()}
        attrs = {key: plain(value) for key, value in dataset.attrs.items()}
        return cls(
            fields, {str(name) for name in dataset.coords}, {"schema_version": SCHEMA_VERSION, **attrs}
        )

    def to_dataset(self) -> xr.Dataset:
        """The content as a dataset, coordinates first."""
        import xarray as xr

        coords = {name: f for name, f in self.fields.items() if name in self.coords}
        variables = {name: f for name, f in self.fields.items() if name not in self.coords}
        return xr.Dataset(variables, coords=coords, attrs=self.attrs)

    @property
    def outlinable(self) -> list[str]:
        """The variables whose values may stay on disk: all but coordinates and single numbers."""
        return [name for name, f in self.fields.items() if name not in self.coords and f.dims]

    def index(self, places: Mapping[str, Entry] | None = None) -> str:
        """The JSON text that describes this record, led by its own checksum.

        `places` are further entries for a variable, by which the reader of the file finds it.
        """
        places = places or {}
        variables = {
            name: {"dims": f.dims, "coord": name in self.coords, "crc": checksum(f.data), "attrs": f.attrs}
            | places.get(name, {})
            for name, f in self.fields.items()
        }
        content = {"schema_version": SCHEMA_VERSION, "variables": variables}
        text = json.dumps(content | {"attrs": self.attrs, "notes": self.notes})
        return f"{zlib.crc32(text.encode()):08x} {text}"

    @classmethod
    def from_index(
        cls,
        index: str,
        read: Callable[[str, Entry], npt.NDArray[Any]],
        only: Collection[str] | None = None,
        outline: Callable[[str, Entry], str] | None = None,
    ) -> Record:
        """The record that `index` describes, or `only` some of it; `read` fetches arrays by name and entry.

        Where there is an `outline`, which tells dtypes, the values of all `outlinable` variables are left where they are.

        Raises:
            Damaged: where index or arrays are not what was written.
            NewerSchema: where a newer alignlab wrote it.
        """
        content = parse_index(index)
        variables = {k: v for k, v in content["variables"].items() if only is None or k in only}
        fields = {}
        for name, entry in variables.items():
            if outline is not None and entry["dims"] and not entry["coord"]:
                fields[name] = Field.outline(tuple(entry["dims"]), outline(name, entry), entry["attrs"])
                continue
            data = read(name, entry)
            if checksum(data) != entry["crc"]:
                raise Damaged(f"the values of {name!r} are not those that were written")
            fields[name] = Field(tuple(entry["dims"]), data, entry["attrs"])
        coords = {name for name, entry in variables.items() if entry["coord"]}
        return cls(fields, coords, content["attrs"], content["notes"])


def parse_index(index: str) -> dict[str, Any]:
    """The content of an index, checked; see `Record.from_index`."""
    crc, _, text = index.partition(" ")
    if crc != f"{zlib.crc32(text.encode()):08x}":
        raise Damaged("its index is not what was written")
    content: dict[str, Any] = json.loads(text)
    if content["schema_version"] > SCHEMA_VERSION:
        raise NewerSchema(
            f"it has schema {content['schema_version']}, this alignlab reads up to {SCHEMA_VERSION}"
        )
    return content


def checksum(data: npt.NDArray[Any]) -> int:
    """CRC-32 of an array's values, its shape and its kind."""
    head = f"{data.shape}{data.dtype.kind}".encode()
    if data.dtype.kind == "U":
        return zlib.crc32("\0".join(data.ravel().tolist()).encode(), zlib.crc32(head))
    return zlib.crc32(np.ascontiguousarray(data).tobytes(), zlib.crc32(head))


def _field(variable: xr.Variable) -> Field:
    dims = tuple(dim for dim in DIMS if dim in variable.dims)
    data = np.asarray(variable.transpose(*dims).values)
    if is_text(data):
        data = as_text(data)
    data = np.ascontiguousarray(data, data.dtype.newbyteorder("=")).reshape(data.shape)
    return Field(dims, data, {key: plain(value) for key, value in variable.attrs.items()})
