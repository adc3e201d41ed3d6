"""The process that worker processes are forked from. It has imported what they need, once for all of them, and can do so
while its caller still imports its own: seconds, twice over.

It is ``multiprocessing``'s own forkserver, of which a process has one: pools that the caller starts by that method after it
come from it too, with one thread each. Where the caller has one already, on other systems than Linux, and where there can be
none, worker processes are spawned, and import for themselves.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

NEEDED = [
    "torch._dynamo",
    "distributed.nanny",
    "alignlab.training.cells",
    "alignlab.training.population",
    "xarray",
    "h5py",
]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# glibc returns large tensors to the system, by dask's settings at once; new pages for each new one take a third of the time
MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
}

_changing = threading.RLock()
_ours: tuple[int, int] | None = None  # the caller's process and that of the server


def start() -> str:
    """Start it, unless it is there, and return by which method to start workers; does not wait for it. To be called ahead
    where there is surely work."""
    global _ours
    if sys.platform != "linux":
        return "spawn"
    from multiprocessing import forkserver

    server: Any = forkserver._forkserver
    theirs = server._forkserver_pid is not None and (os.getpid(), server._forkserver_pid) != _ours
    if theirs:
        return "spawn"
    with (
        environment(PYTHONSAFEPATH="1"),
        interrupts_held(),
        suppress(OSError),
    ):  # a socket's path may be too long
        multiprocessing.get_context("forkserver").set_forkserver_preload(NEEDED)
        forkserver.ensure_running()
        if _ours is None:
            atexit.register(_end)
        _ours = os.getpid(), server._forkserver_pid
        return "forkserver"
    return "spawn"


def ready() -> None:
    """The server has started a process, and so has imported all: it will end with its caller by itself."""
    atexit.unregister(_end)


def _end() -> None:
    """Before it has imported all it does not see that its caller has ended, and holds the caller's output open."""
    if _ours is not None and _ours[0] == os.getpid():
        with suppress(OSError):
            os.kill(_ours[1], signal.SIGKILL)


@contextmanager
def environment(**more: str) -> Iterator[None]:
    """That of processes that start within the block: one thread each, and they keep the memory that they will need again.

    Other threads that start some wait, and so restore the caller's own environment after it, not this one."""
    with _changing:
        before = dict(os.environ)
        os.environ.update(dict.fromkeys(THREADS, "1") | MEMORY | more)
        try:
            yield
        finally:
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end of the block; the threads and processes that start within never see it.

    A terminal sends it to all processes. This one ends the others; on their own they would die with a traceback each.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # it is started with the first process, and its start would end the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
