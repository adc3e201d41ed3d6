"""Run many specs, each exactly once: finished cells are found in the store by the hash of their spec, code and data.

A cell is one run. Its segment's name is a hash of the spec, of the source code that computes it and of the data, so a
changed program or data set never passes for the old one. Cells run in this process, or on ``workers`` processes of one
thread each; every finished cell is on disk at once, so an interrupted sweep loses only the cells under way.
"""

from __future__ import annotations

import functools
import hashlib
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from alignlab.store import Segments
from alignlab.training import tasks
from alignlab.training.loop import train
from alignlab.training.spec import RunSpec

PACKAGE = Path(__file__).resolve().parent.parent
# the floors whose code decides what a run's numbers are
COMPUTING = ("measures", "rules", "probes", "training")
LISTED = 10  # failures that an error tells in full
Notify = Callable[[int], None]


class SweepError(RuntimeError):
    """Some cells failed; the others are stored. The message lists which, and why."""


@functools.cache
def code_hash() -> str:
    """A hash of the source that computes a run, and of the versions of torch and numpy under it."""
    import numpy as np

    digest = hashlib.sha256(f"torch {torch.__version__}, numpy {np.__version__}".encode())
    for floor in COMPUTING:
        for path in sorted((PACKAGE / floor).rglob("*.py")):
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def cell_name(spec: RunSpec) -> str:
    """The name of a spec's segment: hash(spec + code + data)."""
    parts = f"{spec.digest()} {code_hash()} {tasks.load(spec.task).fingerprint}"
    return hashlib.sha256(parts.encode()).hexdigest()[:24]


def run_cells(
    specs: Iterable[RunSpec], store: str | Path, *, workers: int = 1, notify: Notify | None = None
) -> tuple[dict[RunSpec, str], int]:
    """Make sure that every spec's run is in ``store``.

    Returns the segment's name of each spec, and how many had to be computed. ``notify(1)`` is called for each computed cell
    as it finishes. Raises :class:`SweepError` after all others are done if some failed. With ``workers`` above 1 the calling
    script is imported anew in each, so what it runs belongs under ``if __name__ == "__main__":``.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    names = {spec: cell_name(spec) for spec in dict.fromkeys(specs)}
    segments = Segments(store).prepare()
    there = set(segments.names())
    missing = [spec for spec, name in names.items() if name not in there]
    failures = _run(missing, Path(store), names, workers, notify or (lambda n: None))
    if failures:
        listed = [f"{_short(spec)}: {reason}" for spec, reason in failures[:LISTED]]
        listed += [f"and {len(failures) - LISTED} more"] if len(failures) > LISTED else []
        raise SweepError(
            f"{len(failures)} of {len(names)} runs failed, the others are stored in {store}. {'; '.join(listed)}"
        )
    return names, len(missing)


def missing_cells(specs: Iterable[RunSpec], store: str | Path) -> list[RunSpec]:
    """The specs whose runs are not in ``store``."""
    there = set(Segments(store).names()) if Path(store).is_dir() else set()
    return [spec for spec in dict.fromkeys(specs) if cell_name(spec) not in there]


def run_cell(spec: RunSpec, store: Path, name: str) -> None:
    """Train one spec on one thread and store it: its numbers then do not depend on how many cores were free."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dataset = train(spec).assign_coords(run_id=name)
        Segments(store).append(dataset, name=name, exist_ok=True)
    finally:
        torch.set_num_threads(threads)


def _run(
    specs: Sequence[RunSpec], store: Path, names: dict[RunSpec, str], workers: int, notify: Notify
) -> list[tuple[RunSpec, str]]:
    if workers > 1 and len(specs) > 1:
        return _run_in_processes(specs, store, names, workers, notify)
    failures = []
    for spec in specs:
        try:
            run_cell(spec, store, names[spec])
        except Exception as error:  # one bad cell must not cost the others
            failures.append((spec, _reason(error)))
        notify(1)
    return failures


def _run_in_processes(
    specs: Sequence[RunSpec], store: Path, names: dict[RunSpec, str], workers: int, notify: Notify
) -> list[tuple[RunSpec, str]]:
    failures = []
    size = min(workers, len(specs))
    with ProcessPoolExecutor(size, mp_context=get_context("spawn"), initializer=_die_at_interrupt) as pool:
        waiting: dict[Any, RunSpec] = {
            pool.submit(run_cell, spec, store, names[spec]): spec for spec in specs
        }
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    spec = waiting.pop(future)
                    error = future.exception()
                    if error is not None:
                        failures.append((spec, _reason(error)))
                    notify(1)
        except BaseException:
            # not wait=False: the block's own exit would take the cancellation back and run all cells to come
            pool.shutdown(cancel_futures=True)
            raise
    return failures


def _die_at_interrupt() -> None:
    """A worker that Ctrl-C reaches ends at once and without a traceback; the sweep's own process tells the user."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a job in a shell's background has it
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _reason(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its worker process died (killed, out of memory, or the script has no `if __name__ == '__main__':`)"
    return f"{type(error).__name__}: {error}"


def _short(spec: RunSpec) -> str:
    graft = "" if spec.graft is None else f", graft {spec.graft.direction}/{spec.graft.magnitude}"
    return f"{spec.rule} lr={spec.lr:g} seed={spec.seed}{graft}"
