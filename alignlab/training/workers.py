"""Where jobs run: in this process, on a few processes of this machine, or on any dask cluster.

The processes of this machine are a dask ``LocalCluster``: one thread each, started when first needed, kept until closed
(an audit hands out its cells in many small groups, and a process takes seconds to import torch), and gone at once when the
user interrupts. A process that dies is replaced, and its job tried again by another.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from alignlab.training import devices, importing, watching
from alignlab.training.errors import SweepError
from alignlab.training.starting import local_cluster

if TYPE_CHECKING:
    import torch
    from distributed import Client, Future, LocalCluster

    Executor: TypeAlias = "int | str | Client | Workers"

CONNECT = 5.0  # s to find a scheduler, and to find it again


class Lost(str):
    """Why a job has no result: its workers died, or the scheduler did."""


class Workers:
    """A context manager, and reusable: jobs run in this process (1), on so many processes, or on a dask cluster.

    ``where``: a number of processes; the address of a scheduler, ``tcp://…``; or a ``distributed.Client``, which is left open.
    ``device``: on which each of them trains, ``"cpu"``, or ``"cuda"`` for its own GPU, which several may share.

    Raises:
        ValueError: for anything else, as a number below 1.
    """

    def __init__(self, where: int | str | Client = 1, *, device: str | torch.device = "cpu") -> None:
        _check(where)
        self.where, self.device = where, devices.named(device)
        self._client: Client | None = None
        self._cluster: LocalCluster | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def count(self) -> int:
        """How many jobs are done at a time, on a cluster as soon as all of its workers have started."""
        if isinstance(self.where, int):
            return self.where
        return watching.expected(self._started())

    def start(self) -> None:
        """Have the processes there for the next jobs, however few: they will be needed."""
        if self.where != 1:
            self._started()

    def each(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Generator[tuple[Any, Any]]:
        """``(job, function(job))`` as each is done, or ``(job, Lost(why))``. Close the iterator to drop what waits.

        Raises:
            SweepError: where there are no workers to be had, or one cannot run ``function`` at all.
        """
        if self.where == 1 or (isinstance(self.where, int) and self._client is None and len(jobs) <= 1):
            yield from ((job, function(job)) for job in jobs)
            return
        import cloudpickle

        client = self._started()
        function = importing.ready(function)
        own = function if self._cluster else _Alone(function)
        futures = client.map(pickle.loads, [cloudpickle.dumps(_Call(own, job)) for job in jobs], pure=False)
        try:
            with watching.watched(client):
                yield from _as_completed(client, dict(zip(futures, jobs, strict=True)))
        except BaseException:
            self._abandon(client, futures)
            raise

    def close(self) -> None:
        """End the processes, or the connection. They start anew when needed."""
        self._client = self._cluster = None
        self._open.close()

    def _started(self) -> Client:
        if self._client is None:
            with _collection_held():
                self._client = self._connected()
        return self._client

    def _connected(self) -> Client:
        from distributed import Client

        if isinstance(self.where, Client):
            return self.where
        self._open.enter_context(_quiet())
        if isinstance(self.where, int):
            self._cluster = self._open.enter_context(local_cluster(self.where))
        try:
            found: Client = Client(  # type: ignore[no-untyped-call]
                self._cluster or self.where, timeout=CONNECT, set_as_default=False
            )
        except (OSError, ValueError, TypeError) as error:
            self.close()
            raise SweepError(
                f"no dask scheduler answers at {self.where} ({' '.join(str(error).split())}): start one there (dask "
                "scheduler), or correct the address, which looks like tcp://host:8786"
            ) from error
        if not found.scheduler_info()["workers"]:
            logging.getLogger(__name__).warning("no workers at %s yet: waiting for them", self.where)
        self._open.enter_context(found)
        return found

    def _abandon(self, client: Client, futures: Sequence[Future[Any]]) -> None:
        """Drop the jobs. Processes of our own end at once; those of a cluster finish and store what they are at."""
        if self._cluster is not None:
            for nanny in self._cluster.workers.values():
                nanny.close_gracefully()  # so that it starts no other
                if nanny.pid:
                    os.kill(nanny.pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        else:
            with suppress(Exception):  # the scheduler may be gone
                client.cancel(futures, force=True)  # type: ignore[no-untyped-call]
        self.close()


def _check(where: object) -> None:
    if isinstance(where, int):
        fit = where >= 1
    elif isinstance(where, str):
        fit = bool(where.strip())
    else:
        from distributed import Client

        fit = isinstance(where, Client)
    if not fit:
        raise ValueError(
            f"workers is {where!r}, expected a number of at least 1, a dask scheduler's address (tcp://host:8786) or a "
            "distributed.Client"
        )


@contextmanager
def opened(where: Executor) -> Iterator[Workers]:
    """Workers for the block; those handed in stay open after it."""
    if isinstance(where, Workers):
        yield where
    else:
        with Workers(where) as own:
            yield own


class _Call:
    """``function(job)``, which is called where it is unpickled.

    So a worker is sent bytes alone, and one with another alignlab fails at the job, where it can tell. What it cannot read
    where it listens breaks its connection, again and again, and the sweep waits for ever.
    """

    def __init__(self, function: Callable[[Any], Any], job: Any) -> None:
        self.function, self.job = function, job

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return self.function, (self.job,)


class _Alone:
    """A function, on a worker that does one job at a time: the random state and the threads of a process are shared."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.__name__ = function.__name__

    def __call__(self, job: Any) -> Any:
        from distributed import get_worker

        worker = get_worker()
        if worker.state.nthreads > 1:
            raise SweepError(
                f"the worker {worker.address} has {worker.state.nthreads} threads: start more workers of one thread each "
                "(dask worker ADDRESS --nworkers N --nthreads 1)"
            )
        return self.function(job)


def _as_completed(client: Client, jobs: dict[Future[Any], Any]) -> Iterator[tuple[Any, Any]]:
    from distributed import as_completed

    for future in as_completed(jobs, loop=client.loop):  # type: ignore[no-untyped-call]
        yield jobs[future], _result(future)
        future.release()


def _result(future: Future[Any]) -> Any:
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError  # type: ignore[attr-defined]

    try:
        return future.result()
    except KilledWorker:
        return Lost("its worker process died each time it was tried (killed, or out of memory)")
    except (CancelledError, CommClosedError):  # the latter where a result was on its way
        return Lost("the connection to the dask scheduler was lost")
    except SweepError:
        raise
    except Exception as error:
        raise SweepError(
            f"a worker cannot run cells ({type(error).__name__}: {error}): install the same alignlab, torch and dask there"
        ) from error


@contextmanager
def _collection_held() -> Iterator[None]:
    """No garbage is collected within the block: it may hold a client that never found its scheduler. Such a one closes itself
    with a lock that dask holds while it starts another."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without dask's own log: what goes wrong is told by the sweep."""
    from distributed.utils import silence_logging_cmgr

    with silence_logging_cmgr(logging.CRITICAL + 1):
        yield
