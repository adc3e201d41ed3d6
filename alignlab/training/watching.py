"""What a dask cluster has of workers: how many there will be, and what keeps them from working.

A sweep waits for workers as long as it takes, and dask says nothing of what it waits for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

INTERVAL = 15.0  # s between looks


def expected(client: Client) -> int:
    """How many workers there are, or will be where the client's own cluster was told to have more, which have yet to start."""
    cluster: Any = client.cluster
    there = len(client.nthreads())  # type: ignore[no-untyped-call]
    planned = len(getattr(cluster, "plan", ()))
    adaptive = getattr(cluster, "_adaptive", None)
    if adaptive is None or adaptive.periodic_callback is None or adaptive.maximum == float("inf"):
        return max(1, there, planned)
    return max(1, there, planned, int(adaptive.maximum))


@contextmanager
def watched(client: Client) -> Iterator[None]:
    """Warn, while the block goes on, where nobody works on what it waits for."""
    over = threading.Event()
    threading.Thread(target=_watch, args=(client, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(client: Client, over: threading.Event) -> None:
    told = ""
    while not over.wait(INTERVAL):
        with suppress(Exception):  # the scheduler may be gone, which those who wait are told
            cluster = client.scheduler_info()
            found = standstill(cluster["workers"])
            if found and found != told and not over.is_set():
                logging.getLogger(__name__).warning("%s: %s", cluster["address"], found)
            told = found


def standstill(workers: dict[str, Any]) -> str:
    """Why jobs wait, in words; nothing where all workers work."""
    if not workers:
        return "no workers are left; waiting for others"
    paused = [name for name, worker in workers.items() if worker.get("status") == "paused"]
    if not paused:
        return ""
    return (
        f"{len(paused)} of {len(workers)} workers are paused by dask, near their memory limit, and a job that is theirs waits "
        f"until they have more or end ({paused[0]}): start workers with --memory-limit 0, or with more"
    )
