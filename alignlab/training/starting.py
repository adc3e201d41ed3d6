"""The start of worker processes on this machine, and what to tell where they cannot.

They are a dask ``LocalCluster`` of one thread each, forked where that can be (:mod:`alignlab.training.forking`). Each imports
the calling script, which goes wrong in ways that are known beforehand and told as what they are. Of the others dask says no
more than that a process ended: its exit status is found in its log.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from alignlab.training import forking
from alignlab.training.errors import SweepError

if TYPE_CHECKING:
    from distributed import LocalCluster

DEATHS = 2  # of workers, that a job may be present at and still be tried again
SETTINGS: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": DEATHS,
    "distributed.scheduler.worker-ttl": None,  # else a machine that slept takes all of them for hung, and ends them
    "distributed.scheduler.worker-saturation": 1.0,  # a worker's death is then that of one job
    "distributed.admin.tick.interval": "5s",  # every look at itself stops the run that a worker is at
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
}

_had_workers: set[int] = set()  # the processes, this one and those that it was forked from


@contextmanager
def local_cluster(count: int) -> Iterator[LocalCluster]:
    """So many worker processes for the block.

    Raises:
        SweepError: where they do not start.
    """
    import dask
    from distributed import LocalCluster

    _check_caller(count)
    method = {"distributed.worker.multiprocessing-method": forking.start()}
    with ExitStack() as started:
        with (
            forking.environment(),
            dask.config.set(SETTINGS | method),
            forking.interrupts_held(),
            _deaths() as deaths,
        ):
            try:
                cluster = LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=count,
                    threads_per_worker=1,
                    memory_limit=None,
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    silence_logs=logging.CRITICAL + 1,
                    env=dict(
                        os.environ
                    ),  # what was set since the process was started from which they are forked
                )
            except Exception as error:
                root = _root(error)
                raise _did_not_start(deaths[0] if deaths else f"{type(root).__name__}: {root}") from root
            started.enter_context(cluster)  # before an interrupt that waits
        forking.ready()
        _had_workers.add(os.getpid())
        yield cluster


def _check_caller(count: int) -> None:
    """Raise SweepError where this process can have no workers."""
    own = multiprocessing.current_process()
    if getattr(own, "_inheriting", False):  # a worker imports the user's script
        raise SweepError(
            "a worker process that is just starting was asked for workers of its own: put what your script runs under "
            "`if __name__ == '__main__':`"
        )
    if own.daemon:
        raise SweepError(
            f"{count} worker processes were asked for in {own.name}, which is daemonic (as those of a pool are) and may start "
            "none: use 1, or a scheduler's address"
        )
    if _had_workers - {os.getpid()}:
        raise SweepError(
            f"{count} worker processes were asked for in {own.name}, which was forked from one that had some, and has none of "
            "dask's threads: start it by multiprocessing.get_context('spawn'), or use 1"
        )
    script = _script()
    if script is not None and not os.path.exists(script):
        raise SweepError(
            f"{count} worker processes would import the script that runs, {os.path.basename(script)}, but there is no such "
            "file: put it into a file, or run(1)"
        )


def _script() -> str | None:
    """The file that `multiprocessing` has a process import as the caller's script, if any."""
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:  # a module, by its name
        return None
    return getattr(main, "__file__", None)


@contextmanager
def _deaths() -> Iterator[list[str]]:
    """What dask logs of processes that end within the block."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(lambda record: record.getMessage().startswith("Worker process"))
    log = logging.getLogger("distributed.nanny")
    log.addHandler(handler)
    try:
        yield told
    finally:
        log.removeHandler(handler)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error


def _did_not_start(cause: str) -> SweepError:
    return SweepError(
        f"the worker processes did not start ({cause}). They import the script that runs: what it raised there is told above "
        "(it may lack `if __name__ == '__main__':`); where nothing is, they were killed, perhaps for lack of memory"
    )
