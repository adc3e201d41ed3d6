"""`compact`: the segments of a store as one zarr, which opens many runs in a fraction of a second.

Runs are written in batches, so that the memory needed does not grow with their values. First only the coordinates and
attributes of all segments are read; these decide where everything goes. Then each batch is read, joined and written.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from alignlab.store import atomic, rows, zarrs
from alignlab.store.claims import Claims
from alignlab.store.errors import StoreError
from alignlab.store.joining import Layout, plan
from alignlab.store.pieces import Array, row
from alignlab.store.record import Record
from alignlab.store.segments import Segments
from alignlab.store.shelf import Notify, Phase, Shelf, silent
from alignlab.store.surveying import COMPACTION, check_store, holds, read_compaction, read_settled, stamp

PATIENCE = 0.05  # s between looks whether another's turn is over


def compact(
    path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, phase: Phase | None = None
) -> Path:
    """Write all runs of the store `path` into one zarr and return where: `out`, or ``compact.zarr`` in the store.

    The segments stay, and stay the truth: `open_runs` on the store takes from the zarr what is still as it was
    compacted, and reads the rest from the segments. Where the zarr is up to date nothing is written; where the store grew,
    only new segments are read, and the rest is taken from the zarr. The memory needed is that of all coordinates and of 64
    MiB of values (or of the largest run or segment, if that is larger).

    ``phase``: called as ``phase(what, n)`` for progress, a context manager that gives a function to call with how many
    more are done.

    Raises:
        StoreError: where the store cannot be read, or `out` cannot be written or is something else.
    """
    source = Path(path)
    default = source if zarrs.is_zarr(source) else source / COMPACTION
    target = default if out is None else Path(out)
    if not zarrs.is_zarr(source):
        check_store(source)
    if _up_to_date(target, source):  # asked before there is a need to write
        return target
    atomic.make_folder(target.parent)
    with _turn(target):
        _check_free(target)
        if not _up_to_date(target, source):  # by another, while this one waited
            _write(source, target, phase)
    return target


@contextlib.contextmanager
def _turn(target: Path) -> Iterator[None]:
    """Hold the right to replace `target`; wait while another has it."""
    with Claims(target.parent) as claims:
        while not claims.take(target.name):
            time.sleep(PATIENCE)
        yield


def _write(source: Path, target: Path, phase: Phase | None) -> None:
    shelf = Shelf(source, outlined=True, phase=phase)
    atomic.sweep(target.parent)
    try:
        with (phase or silent)("compacting runs", len(shelf.runs)) as notify:
            zarrs.write(target, *_contents(shelf, notify))
    except OSError as error:
        raise atomic.cannot_write(target, error) from error


def _check_free(target: Path) -> None:
    if (target.exists() or target.is_symlink()) and not zarrs.is_zarr(target):
        raise StoreError(f"{target} exists and is no compaction; choose another out")


def _up_to_date(target: Path, source: Path) -> bool:
    old = read_settled(target)
    if old is None:
        return False
    names = [] if zarrs.is_zarr(source) else Segments(source).names()
    compacted = old.record.notes["segments"]
    if target not in (source, source / COMPACTION):
        _check_same(target, compacted, source, names or _only(source).notes["segments"])
    if not names:  # nothing but a compaction to read from: the target itself, or one that it may be a copy of
        return target in (source, source / COMPACTION) or old.record.notes == _only(source).notes
    if not holds(old, source, names) or set(names) != set(compacted):
        return False
    return all(
        stamp(source, name) == note["stamp"] for name, note in compacted.items()
    )  # or the store was copied


def _check_same(target: Path, compacted: Iterable[str], source: Path, names: Iterable[str]) -> None:
    others = sorted(set(compacted) - set(names))
    if others:
        raise StoreError(
            f"{target} is a compaction of other runs than those in {source} (of {others[0]!r}, which is not there); "
            "choose another out"
        )


def _only(source: Path) -> Record:
    return read_compaction(source if zarrs.is_zarr(source) else source / COMPACTION).record


def _contents(shelf: Shelf, notify: Notify) -> tuple[Record, Iterator[dict[str, Array]]]:
    """All that is to be written but the values of the variables, with notes of what they come from; and these, in blocks."""
    runs = list(shelf.runs.values())
    layout = plan(runs)
    layout.record.notes |= rows.forms(runs, layout) | {"segments": shelf.notes}
    if len(runs) == 1:
        return _single(shelf, layout, notify)
    return layout.record, _blocks(shelf, layout, notify)


def _single(shelf: Shelf, layout: Layout, notify: Notify) -> tuple[Record, Iterator[dict[str, Array]]]:
    """One run has no dim run, and then its single numbers belong to the record."""
    record = row(layout.record, 0)
    values = {name: block[0, ...] for name, block in layout.block(shelf.values(list(shelf.runs))).items()}
    for name in values.keys() - set(record.outlinable):
        record.fields[name] = record.fields[name]._replace(data=values.pop(name))
    notify(1)
    return record, iter([values])


def _blocks(shelf: Shelf, layout: Layout, notify: Notify) -> Iterator[dict[str, Array]]:
    run_ids = list(shelf.runs)
    size = zarrs.batch(layout.record)
    for start in range(0, len(run_ids), size):
        part = run_ids[start : start + size]
        yield layout.block(shelf.values(part))
        notify(len(part))
