"""A store is a folder of immutable segments, each one netCDF file that is whole from the moment it can be seen.

A recorder appends a segment at every flush and a sweep one for each finished cell. Nothing is ever changed or
written into: whoever opens the folder, at any moment and however the writers died, sees all that was appended and
nothing half-written. Writers of different runs share a folder without knowing of each other.
"""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from alignlab.store import atomic, netcdf, schema
from alignlab.store.errors import StoreError
from alignlab.store.record import Record, reading

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import xarray as xr

    from alignlab.store.pieces import Piece

SUFFIX = ".nc"


class Segments:
    """The segments in one folder, which the first `append` makes.

    A segment holds some steps of one run (dims step, layer, mode), or of several (with the leading dim run). A run
    that goes on says status "running" in its segments, and what became of it in the last. A run whose last segment
    says "running" is still going on or was killed: the store cannot know which, and says "running".

    >>> import tempfile, xarray as xr
    >>> run = {"run_id": "toy", "status": "finished", "last_step": 2}
    >>> dataset = xr.Dataset({"loss": ("step", [3.0, 2.0, 1.0])}, coords={"step": [0, 1, 2], **run})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     segments = Segments(folder)
    ...     path = segments.append(dataset)
    ...     segments.names(), segments.latest_status("toy")
    (['toy-000000'], 'finished')
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()  # the caller may go elsewhere between two appends
        self._last_stamp = 0
        self._swept: float | None = None
        self._latest: dict[str, int] = {}  # the number of each run's last segment, of those appended here

    def prepare(self, run_id: str = "probe") -> Segments:
        """Make the folder and prove that segments of a run can be written there, so that a long run fails at its beginning or
        not at all.

        Raises:
            StoreError: where they cannot.
        """
        atomic.make_folder(self.path)
        first = self.file(_numbered_name(run_id, 0))
        try:
            with atomic.temporary_name(first) as probe:
                probe.touch()
        except OSError as error:
            at_fault = first if error.errno == errno.ENAMETOOLONG else self.path
            raise atomic.cannot_write(at_fault, error) from error
        self.path = self.path.resolve()  # a link such as "latest" may lead elsewhere by the next append
        return self

    def append(
        self,
        dataset: xr.Dataset,
        name: str | None = None,
        *,
        exist_ok: bool = False,
        writer: str | None = None,
        number: int | None = None,
        tokens: Sequence[str] = (),
    ) -> Path:
        """Write one segment; when this returns, it is on disk.

        Args:
            dataset: in the data contract (`alignlab.store.schema.check`). Stored as it is; float32 is meant.
            name: of the segment; by default ``<run_id>-<number>``, counting on from those of this run in the folder.
            exist_ok: return silently, writing nothing, where a segment `name` exists: for names made from a hash of
                what is in them.
            writer: who writes it, to be asked for by `writer`.
            number: of the segment among those of its run, for a writer that must be the run's only one: where another wrote
                a segment of this number, an error.
            tokens: of those who recorded the run so far, the writer's own last (`alignlab.store.pieces`).

        Raises:
            ContractError: where the dataset breaks the contract.
            StoreError: where the name is taken, or the folder cannot be written; nothing half-written is left.
        """
        sequence = None
        if name is not None and self.has(name):
            return self._taken(name, exist_ok)
        schema.check(dataset)
        record = Record.from_dataset(dataset)
        atomic.make_folder(self.path)
        if name is None:
            name, sequence = self._next_name(record) if number is None else self._sole_name(record, number)
        record.notes = {"sequence": sequence, "written": self._stamp()}
        if writer is not None:
            record.notes["writer"] = writer
        if tokens:
            record.notes["tokens"] = list(tokens)
        path = self.file(name)
        self._sweep()
        try:
            atomic.write_new(path, netcdf.to_bytes(record))
        except FileExistsError:  # another process was faster
            if number is not None:
                self._sole_name(record, number)
            return self._taken(name, exist_ok)
        except OSError as error:
            raise atomic.cannot_write(path, error) from error
        if sequence is not None:
            self._latest[str(record.fields["run_id"].data)] = sequence
        return path

    def names(self) -> list[str]:
        """The names of all segments, sorted; empty where there is no folder yet."""
        try:
            files = os.listdir(self.path) if self.path.exists() else []
        except NotADirectoryError as error:
            raise StoreError(
                f"no store at {self.path}: it is a file; give the folder that holds the segments"
            ) from error
        except OSError as error:
            raise StoreError(
                f"cannot list {self.path}: {error.strerror}; it must be a folder that you may read"
            ) from error
        return sorted(
            name[: -len(SUFFIX)] for name in files if name.endswith(SUFFIX) and not name.startswith(".")
        )

    def has(self, name: str) -> bool:
        """Whether there is a segment of this name."""
        # a Path raises where a name is too long or a folder may not be entered
        return os.path.exists(self.file(name))

    def read(self, name: str) -> xr.Dataset:
        """One segment, as it was appended. Raises StoreError where it is missing, damaged, or of a newer schema."""
        return self.read_record(name).to_dataset()

    def read_record(
        self, name: str, only: Collection[str] | None = None, *, outlined: bool = False
    ) -> Record:
        """One segment as plain arrays, all or `only` some, with the store's notes; raises as `read` does.

        `outlined`: with the values of its coordinates only.
        """
        path = self.file(name)
        way_out = "restore it from a copy, or move it out of the folder to open the rest"
        with reading(path, "no alignlab segment", way_out):
            try:
                return netcdf.from_file(path, only, outlined=outlined)
            except FileNotFoundError as error:
                if path.is_symlink():
                    raise StoreError(
                        f"cannot read {path}: it is a link to {os.readlink(path)}, which is not there; {way_out}"
                    ) from error
                raise StoreError(
                    f"no segment {name!r} in {self.path}; there are {self._some_names()}"
                ) from error

    def writer(self, name: str) -> str | None:
        """Who wrote a segment, where `append` was told; raises as `read` does."""
        found: str | None = self.read_record(name, only=()).notes.get("writer")
        return found

    def is_by(self, tokens: Sequence[str], run_id: str, number: int) -> bool:
        """Whether the segment of this number is there, and of these tokens."""
        name = _numbered_name(run_id, number)
        return self.has(name) and self.read_record(name, only=()).notes.get("tokens") == list(tokens)

    def latest_status(self, run_id: str) -> str | None:
        """The status that the last segment of a run tells; None where the folder has no segment of it."""
        from alignlab.store.pieces import by_run, split

        heads = ((name, self.read_record(name, only=schema.run_coords)) for name in self.names())
        told = by_run(piece for name, head in heads for piece in split(head, str(self.file(name)))).get(
            run_id
        )
        return told[-1].status if told else None

    def pieces(self, run_id: str) -> list[Piece]:
        """What the segments of a run under default names tell, in the order in which they were written."""
        from alignlab.store.pieces import Piece, by_run

        read = [
            Piece(self.read_record(name), str(self.file(name))) for name in self._numbered(run_id).values()
        ]
        return by_run(read).get(run_id, [])

    def _numbered(self, run_id: str) -> dict[int, str]:
        """The segments of a run under default names, by number."""
        pattern = re.compile(re.escape(_file_name(run_id)) + r"-(\d{6,})")
        return {int(match[1]): name for name in self.names() if (match := pattern.fullmatch(name))}

    def _next_name(self, record: Record) -> tuple[str, int]:
        if record.fields["run_id"].dims:
            raise StoreError(f"a segment of several runs in {self.path} has no default name; pass name=")
        run_id = str(record.fields["run_id"].data)
        sequence = self._latest.get(run_id, -1) + 1
        known = sequence > 0 and self.has(_numbered_name(run_id, sequence - 1))
        if not known or self.has(
            _numbered_name(run_id, sequence)
        ):  # another had a hand in it: look at them all
            sequence = max(self._numbered(run_id), default=-1) + 1
        return _numbered_name(run_id, sequence), sequence

    def _sole_name(self, record: Record, number: int) -> tuple[str, int]:
        run_id = str(record.fields["run_id"].data)
        if self.has(name := _numbered_name(run_id, number)):
            raise StoreError(
                f"run {run_id!r} is recorded by another process too, which wrote {self.file(name)}: one checkpoint was resumed "
                "twice, or two runs have one run_id. Stop one of them, or give it a path, or a copy of the store, of its own"
            )
        return name, number

    def _sweep(self) -> None:
        """Sweep the folder, but not at every append: of many thousand files the listing alone takes long."""
        if self._swept is None or time.monotonic() - self._swept > atomic.FRESH:
            atomic.sweep(self.path)
            self._swept = time.monotonic()

    def _stamp(self) -> int:
        """Nanoseconds since 1970, later at every call."""
        self._last_stamp = max(time.time_ns(), self._last_stamp + 1)
        return self._last_stamp

    def _taken(self, name: str, exist_ok: bool) -> Path:
        if not exist_ok:
            way_out = "segments are never overwritten: pass another name, or another run_id"
            raise StoreError(f"segment {name!r} exists in {self.path}; {way_out}")
        return self.file(name)

    def file(self, name: str) -> Path:
        """Where the segment of this name is or would be."""
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise StoreError(
                f"segment name {name!r} for {self.path}: a name is a file name that begins with no dot"
            )
        return self.path / f"{name}{SUFFIX}"

    def _some_names(self) -> str:
        names = self.names()
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


def _numbered_name(run_id: str, sequence: int) -> str:
    return f"{_file_name(run_id)}-{sequence:06d}"


def _file_name(run_id: str) -> str:
    """A run_id as a file name, one to one."""
    name = quote(run_id, safe="=+,@ ")
    return "%2E" + name[1:] if name.startswith(".") else name
