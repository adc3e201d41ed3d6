"""Run many specs, each exactly once: finished cells are found in the store by the hash of their spec, code and data.

A cell is one run, and :func:`cell_name` names its segment. Cells run in this process, on other processes of this machine,
or on a dask cluster, each on one thread; every finished cell is on disk at once, so an interrupted sweep loses only the cells
under way. Several sweeps may go on at once in one store: cells that they share are computed by one of them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from alignlab.store import Segments
from alignlab.store.claims import Claims
from alignlab.store.netcdf import is_whole
from alignlab.training import devices, fitting
from alignlab.training.cells import Job, Outcome, run_job, stored
from alignlab.training.errors import SpecError, SweepError
from alignlab.training.naming import cell_name, code_hash, short
from alignlab.training.planner import Question, best_size, packs
from alignlab.training.spec import RunSpec
from alignlab.training.workers import Lost, Workers, opened

if TYPE_CHECKING:
    from alignlab.training.workers import Executor

Notify = Callable[[int], None]
LISTED = 10  # failures that an error tells in full
PATIENCE = 0.5  # s between looks at cells that another sweep is at


class Sweep:
    """Cells, each of which is run once, and the folder that keeps their runs.

    ``names``: the segment of each cell. ``lockstep``: train runs of one shape together, as populations
    (:mod:`alignlab.training.planner`); where it is false, or a run cannot be a member of one, one by one. A population's runs
    are stored at its end, all together: whoever interrupts it loses what they had done.

    >>> import tempfile
    >>> cells = [RunSpec(task="xor", hidden=(4,), steps=10, seed=seed) for seed in range(3)]
    >>> with tempfile.TemporaryDirectory() as store:
    ...     Sweep(cells, store).run(), Sweep(cells, store).run()
    (3, 0)
    """

    def __init__(
        self, cells: Iterable[RunSpec], store: str | Path = "runs", *, lockstep: bool = True
    ) -> None:
        self.names = {spec: cell_name(spec) for spec in dict.fromkeys(map(_spec, cells))}
        self.store, self.lockstep = Path(store).absolute(), lockstep

    def missing(self) -> list[RunSpec]:
        """The cells whose runs are not in the store."""
        there = set(Segments(self.store).names())
        return [spec for spec, name in self.names.items() if name not in there]

    def run(self, executor: Executor = 1, *, notify: Notify | None = None) -> int:
        """Make sure that every cell's run is in the store, and return how many it computed.

        ``executor``: where. 1 is this process; a larger number that many processes of one thread each, which import the
        calling script anew, so that what it runs belongs under ``if __name__ == "__main__":``; the address of a dask scheduler
        or a ``distributed.Client`` any cluster whose workers have one thread each and share the store's folder; a
        :class:`Workers` keeps its processes from call to call, and says on which device they train: a GPU, say.
        ``notify(n)`` is called as ``n`` more of the missing runs are done.

        Raises :class:`SweepError` after all others are done if some failed, or were copied by halves, or at once where the
        workers are not fit for it; and :class:`SpecError`, before anything runs, for a spec that changed after it was named, or
        that does not fit its task where this is one of your own.
        """
        with opened(executor) as workers:
            missing = self.missing()
            self._check(missing)
            computed = self._run(missing, workers, _Progress(notify or (lambda n: None))) if missing else 0
        self._check_files()
        return computed

    def _run(self, missing: Sequence[RunSpec], workers: Workers, progress: _Progress) -> int:
        Segments(self.store).prepare()
        mark = f"sweep-{uuid.uuid4().hex}"
        with Claims(self.store) as claims:
            claims.take(mark)
            jobs = self._jobs(missing, mark, workers)
            while jobs:
                jobs = self._round(jobs, workers, progress)
                time.sleep(PATIENCE if jobs else 0)
        progress.settle(lambda spec: stored(self._job([spec], mark), self.names[spec]))
        if progress.failures:
            raise SweepError(
                f"{len(progress.failures)} of {len(self.names)} runs failed, the others are stored in {self.store}. "
                f"{_listed(progress.failures)}"
            )
        return progress.computed

    def _check_files(self) -> None:
        """Another may copy into the store."""
        files = map(Segments(self.store).file, self.names.values())
        halved = [str(file) for file in files if file.exists() and not is_whole(file)]
        if halved:
            raise SweepError(
                f"{len(halved)} of {len(self.names)} runs lie in files that were copied by halves: "
                f"{_few(halved)}; copy these again, or remove them and let the same call compute them"
            )

    def _check(self, specs: Sequence[RunSpec]) -> None:
        changed = [spec for spec in specs if self.names.get(spec) != cell_name(spec)]
        if changed:
            raise SpecError(
                f"{short(changed[0])} changed after the sweep named it, and nothing was run: a spec is one run for good, "
                "spec.changed(...) makes another"
            )
        fitting.check(specs)

    def _jobs(self, specs: Sequence[RunSpec], mark: str, workers: Workers) -> list[Job]:
        groups = (
            packs(specs, workers.count(), partial(_asked, workers), workers.device)
            if self.lockstep
            else [[spec] for spec in specs]
        )
        return [self._job(group, mark, workers.device) for group in groups]

    def _job(self, specs: Sequence[RunSpec], mark: str, device: torch.device = devices.CPU) -> Job:
        names = tuple(self.names[spec] for spec in specs)
        return Job(tuple(specs), names, self.store, code_hash(), mark, self.lockstep, device)

    def _round(self, jobs: Sequence[Job], workers: Workers, progress: _Progress) -> list[Job]:
        """Each job once; returns those whose cells another sweep is computing, to be looked at again."""
        busy = []
        with closing(workers.each(run_job, jobs)) as done:
            for job, result in done:
                left = progress.note(job, self._outcomes(job, result))
                busy += [self._job(left, job.sweep, job.device)] if left else []
        return busy

    def _outcomes(self, job: Job, result: list[Outcome] | Lost) -> list[Outcome]:
        """A job that was lost may have stored some of its runs before."""
        if not isinstance(result, Lost):
            return result
        return [stored(job, name) or Outcome("failed", result) for name in job.names]


def _spec(cell: object) -> RunSpec:
    if not isinstance(cell, RunSpec):
        raise SpecError(
            f"a cell of the sweep is {cell!r}, expected a RunSpec: give a list of them, [RunSpec(...)] or grid(RunSpec(...), "
            "seed=range(5))"
        )
    return cell


def _asked(workers: Workers, questions: Sequence[Question]) -> list[int]:
    """The planner's questions, answered by the workers: what they train at once is a matter of their speed and memory."""
    workers.start()
    with closing(workers.each(best_size, questions)) as found:
        answers = dict(found)
    return [1 if isinstance(answers[asked], Lost) else answers[asked] for asked in questions]


class _Progress:
    def __init__(self, notify: Notify) -> None:
        self.notify, self.computed = notify, 0
        self.failures: list[tuple[RunSpec, str]] = []

    def note(self, job: Job, outcomes: Sequence[Outcome]) -> list[RunSpec]:
        """Count what became of a job's cells; returns those that are still to do."""
        both = list(zip(job.specs, outcomes, strict=True))
        self.computed += sum(outcome.state == "computed" for outcome in outcomes)
        self.failures += [(spec, outcome.reason) for spec, outcome in both if outcome.state == "failed"]
        busy = [spec for spec, outcome in both if outcome.state == "busy"]
        if len(busy) < len(both):
            self.notify(len(both) - len(busy))
        return busy

    def settle(self, look: Callable[[RunSpec], Outcome | None]) -> None:
        """Take off the failures what is stored by now: a worker may finish, and store, what its lost scheduler gave it."""
        looked = [(failure, look(failure[0])) for failure in self.failures]
        self.computed += sum(found is not None and found.state == "computed" for _, found in looked)
        self.failures = [failure for failure, found in looked if found is None]


def _listed(failures: Sequence[tuple[RunSpec, str]]) -> str:
    """The failed cells, those with one and the same reason together."""
    reasons: dict[str, list[str]] = {}
    for spec, reason in failures:
        reasons.setdefault(reason, []).append(short(spec))
    listed = [f"{_few(cells)}: {reason}" for reason, cells in reasons.items()]
    return "; ".join(listed[:LISTED]) + (
        f"; and {len(listed) - LISTED} more reasons" if len(listed) > LISTED else ""
    )


def _few(cells: list[str]) -> str:
    return ", ".join(cells[:LISTED]) + (f" and {len(cells) - LISTED} more" if len(cells) > LISTED else "")
