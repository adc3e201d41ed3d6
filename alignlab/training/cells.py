"""What a worker does with cells: take those that are still to do, train them on one thread, and store each one's run.

Everything that a worker must know comes with its :class:`Job`, and everything that it found out goes back as an
:class:`Outcome` a cell, so that a cell that fails costs no other. A worker that is not fit for the job (other code, another
file system) refuses it instead, for its results would be lost or wrong.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from alignlab.measures.iterative import one_thread
from alignlab.rules import make_rules
from alignlab.store import Segments, StoreError
from alignlab.store.claims import Claims, claim_file
from alignlab.training import devices, tasks
from alignlab.training.arguments import ALONE
from alignlab.training.errors import SpecError, SweepError
from alignlab.training.loop import Progress, train
from alignlab.training.naming import cell_name, code_hash
from alignlab.training.population import alone, train_population
from alignlab.training.spec import RunSpec

if TYPE_CHECKING:
    import xarray as xr

WHERE = "in a module that they can import (PYTHONPATH), imported here too or named by --import"
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Job:
    """Cells that one worker computes together: ``specs`` and the ``names`` of their segments in ``store``.

    ``code``: the hash of the code that was asked to compute them. ``sweep``: a claim in the store that the sweep holds while
    it goes on, by which a worker knows that it sees the same folder. ``lockstep``: train them as one population, if they can
    be one. ``device``: where it trains them, of the worker's own.
    """

    specs: tuple[RunSpec, ...]
    names: tuple[str, ...]
    store: Path
    code: str
    sweep: str
    lockstep: bool = False
    device: torch.device = devices.CPU


class Outcome(NamedTuple):
    """What became of a cell: ``computed`` by this sweep, ``there`` by another, ``busy`` elsewhere at this moment, or
    ``failed`` for a ``reason``."""

    state: Literal["computed", "there", "busy", "failed"]
    reason: str = ""


def run_cell(
    spec: RunSpec,
    store: Path,
    name: str,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Train one spec on one thread and store it: its numbers then do not depend on how many cores were free."""
    with ALONE, one_thread():
        _store(train(spec, progress=progress, device=device), store, name)


def run_job(job: Job) -> list[Outcome]:
    """Compute those cells of a job that are neither stored nor under way elsewhere; an outcome for each, in their order.

    Raises :class:`SweepError` where this process is not fit for it: see :func:`refuse`.
    """
    refuse(job)
    try:
        with Claims(job.store) as claims, ALONE, one_thread():
            return _run(job, claims)
    except StoreError as error:  # not even room for a claim
        if getattr(error.__cause__, "errno", None) in FORBIDDEN:  # this worker's fault, not the cells'
            raise SweepError(f"the worker on {socket.gethostname()}: {error}") from error
        return [Outcome("failed", told(error))] * len(job.names)


def refuse(job: Job) -> None:
    """Raise :class:`SweepError` unless this process has the sweep's own code and device, and sees the sweep's own store."""
    if code_hash() != job.code:
        raise SweepError(
            f"the worker on {socket.gethostname()} computes with other code (hash {code_hash()}) than the sweep "
            f"(hash {job.code}): install the same alignlab, torch and numpy there, and start it anew"
        )
    if not claim_file(job.store, job.sweep).exists():
        raise SweepError(
            f"the worker on {socket.gethostname()} does not see the sweep's store {job.store}: it must be a folder that all "
            "machines share, under the same path"
        )
    try:
        devices.present(job.device)
    except SpecError as error:
        raise SweepError(f"the worker on {socket.gethostname()}: {error}") from error


def _run(job: Job, claims: Claims) -> list[Outcome]:
    mine: list[tuple[RunSpec, str]] = []
    outcomes: dict[str, Outcome] = {}
    for spec, name in zip(job.specs, job.names, strict=True):
        outcome = _taken(spec, name, job, claims)
        if outcome:
            outcomes[name] = outcome
        else:
            mine.append((spec, name))
    for cells in [mine] if job.lockstep and mine else [[cell] for cell in mine]:
        outcomes |= _computed(cells, job)
    return [outcomes[name] for name in job.names]


def _taken(spec: RunSpec, name: str, job: Job, claims: Claims) -> Outcome | None:
    """Claim a cell: None where it is now ours to compute, or else why it is not."""
    found = stored(job, name)
    if found:
        return found
    try:
        own = cell_name(spec)
    except ValueError:  # a rule or a task that is not known here
        own = ""
    if own != name:
        return Outcome("failed", _why_another(spec))
    if not claims.take(name):
        return Outcome("busy")
    return stored(job, name)  # by another before its claim ended


def _why_another(spec: RunSpec) -> str:
    """Why a spec has another name here than where the sweep began."""
    try:
        make_rules(spec.rule, **spec.rule_args)
    except ValueError as error:
        return f"{error}; put a rule of your own into RULES where workers do too: {WHERE}"
    if spec.task not in tasks.TASKS:
        return f"unknown task {spec.task!r}; put a task of your own into TASKS where workers do too: {WHERE}"
    same = "; a task of your own must give the same data in every process" * tasks.TASKS.is_own(spec.task)
    return f"its spec or its data changed after the sweep began, or the file of a rule or a task of its own{same}"


def stored(job: Job, name: str) -> Outcome | None:
    """What became of a cell that is stored; this sweep may have done it, with a worker that died before it could tell."""
    segments = Segments(job.store)
    if not segments.has(name):
        return None
    try:
        return Outcome("computed" if segments.writer(name) == job.sweep else "there")
    except StoreError:  # another copies it there, or did by halves, which the sweep tells at its end
        return Outcome("there")


def _computed(cells: Sequence[tuple[RunSpec, str]], job: Job) -> dict[str, Outcome]:
    """Train and store; where training fails, by halves, so that it fails for those alone that cannot be trained."""
    specs = [spec for spec, _ in cells]
    together = job.lockstep and not alone(specs[0])
    try:
        datasets = (
            train_population(specs, device=job.device)
            if together
            else [train(spec, device=job.device) for spec in specs]
        )
    except BaseException as error:
        if not _is_of_the_cells(error):
            raise
        reason = told(error)
    else:
        return {
            name: _written(dataset, job, name) for dataset, (_, name) in zip(datasets, cells, strict=True)
        }
    if len(cells) == 1:
        return {cells[0][1]: Outcome("failed", reason)}
    half = len(cells) // 2
    return _computed(cells[:half], job) | _computed(cells[half:], job)


def _is_of_the_cells(error: BaseException) -> bool:
    """Whether a loss of the user's raised it, which may call sys.exit, and no signal: these are the main thread's."""
    if threading.current_thread() is threading.main_thread():
        return isinstance(error, Exception | SystemExit)
    return not isinstance(error, KeyboardInterrupt)


def _written(dataset: xr.Dataset, job: Job, name: str) -> Outcome:
    with contextlib.suppress(OSError):  # where there are no locks, what is old is swept as left behind
        os.utime(claim_file(job.store, job.sweep))
    try:
        _store(dataset, job.store, name, job.sweep)
    except Exception as error:  # a full disk
        return Outcome("failed", told(error))
    return Outcome("computed")


def _store(dataset: xr.Dataset, store: Path, name: str, writer: str | None = None) -> None:
    named = dataset.assign_coords(run_id=name)
    _segments(store).append(named, name=name, exist_ok=True, writer=writer)


@functools.lru_cache(maxsize=4)
def _segments(store: Path) -> Segments:
    """One for all cells of a process: the first append of each looks at every claim in the folder, of which there are as many
    as cells under way."""
    return Segments(store)


def told(error: BaseException) -> str:
    """An error in a line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # of a user's own class
        text = "an error whose message cannot be read"
    return f"{type(error).__name__}: {text}"
