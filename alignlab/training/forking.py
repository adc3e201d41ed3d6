"""The process that worker processes are forked from. It has imported what they need, once for all of them, and can do so
while its caller still imports its own: seconds, twice over.

On Linux; elsewhere worker processes are spawned, and import for themselves.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

METHOD = "forkserver" if sys.platform == "linux" else "spawn"
NEEDED = ["distributed.nanny", "alignlab.training.cells", "alignlab.training.population", "xarray", "h5py"]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# glibc returns large tensors to the system, by dask's settings at once; new pages for each new one take a third of the time
MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
}


def start() -> None:
    """Start that process, unless it is there; does not wait for it. To be called ahead where there is surely work."""
    if METHOD != "forkserver":
        return
    from multiprocessing import forkserver

    with environment(), interrupts_held():
        multiprocessing.get_context(METHOD).set_forkserver_preload(NEEDED)
        forkserver.ensure_running()
    atexit.register(_end, forkserver)


def _end(forkserver: object) -> None:
    """It would end by itself, but not before it has imported all: until then it holds the caller's output open."""
    server = getattr(forkserver, "_forkserver", None)
    with suppress(Exception):
        os.kill(server._forkserver_pid, signal.SIGKILL)  # type: ignore[union-attr]


@contextmanager
def environment() -> Iterator[None]:
    """That of processes that start within the block: one thread each, and they keep the memory that they will need again."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(THREADS, "1") | MEMORY)
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
