"""Processes that run cells: started when first needed, kept until closed, and gone at once when the user interrupts.

A process costs seconds to start, since it imports torch, and an audit hands out its cells in many small groups.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Self

Notify = Callable[[int], None]


class Workers:
    """``count`` processes; with one, the work is done in the calling process. A context manager, and reusable.

    Raises:
        ValueError: if ``count`` is below 1.
    """

    def __init__(self, count: int = 1) -> None:
        if count < 1:
            raise ValueError(f"workers is {count}, expected at least 1")
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(
        self, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], notify: Notify
    ) -> list[Exception | None]:
        """``function(*job)`` for each job; what each raised, in their order. ``notify(1)`` as each is done."""
        if self.count == 1 or (self._pool is None and len(jobs) == 1):
            return [_attempt(function, job, notify) for job in jobs]
        futures = [self._submitted(function, job) for job in jobs]
        try:
            _await(futures, notify)
        except BaseException:
            self.close()
            raise
        errors = [_error(future) for future in futures]
        if any(isinstance(error, BrokenProcessPool) for error in errors):
            self.close()  # one dead process breaks its whole pool: the next call gets a new one
        return errors

    def close(self) -> None:
        """End the processes; what they are at is finished first, what waits is dropped. They start anew when needed."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def _submitted(self, function: Callable[..., Any], job: tuple[Any, ...]) -> Future[Any]:
        pool = self._started()  # before the block: it starts a resource tracker, which ends it
        try:
            with _interrupts_held():  # a process that starts here inherits it
                return pool.submit(function, *job)
        except BrokenProcessPool as error:  # by one of the jobs before
            broken: Future[Any] = Future()
            broken.set_exception(error)
            return broken

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_die_at_interrupt)
        return self._pool


def _attempt(function: Callable[..., Any], job: tuple[Any, ...], notify: Notify) -> Exception | None:
    try:
        function(*job)
        return None
    except Exception as error:  # one bad job must not cost the others
        return error
    finally:
        notify(1)


def _await(futures: Sequence[Future[Any]], notify: Notify) -> None:
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for _ in done:
            notify(1)


def _error(future: Future[Any]) -> Exception | None:
    error = future.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return error


def _die_at_interrupt() -> None:
    """A worker that Ctrl-C reaches ends at once and without a traceback; the sweep's own process tells the user."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a job in a shell's background has it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, {signal.SIGINT}
        )  # what came while this process was starting acts now


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and in a process started within until it is ready to end quietly."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
