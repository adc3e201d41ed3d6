"""How much memory this process may still take: the machine's, and of that what its control groups leave.

A container and a Slurm job have limits of their own, which psutil does not know, and who goes beyond them is killed. dask's
``memory_limit`` reads the topmost group alone, which in a job is the machine's. Here every group counts from the process's own
to the top, of version 2 and of version 1. File caches that are given up when memory is short count as free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

OWN, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class Files(NamedTuple):
    """What a version calls a group's limits, what it uses, and what of that are idle file caches."""

    limits: tuple[str, ...]
    used: str
    idle: str


FIRST = Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
SECOND = Files(("memory.max", "memory.high"), "memory.current", "inactive_file")


def available() -> int:
    """Bytes that this process may still take."""
    return min([int(psutil.virtual_memory().available), *_left()])


def _left() -> Iterator[int]:
    """What each limit of the process's groups leaves."""
    for line in _text(OWN).splitlines():
        controllers, path = line.split(":", 2)[1:]
        if not controllers:
            yield from _left_by(ROOT, path, SECOND)
        elif "memory" in controllers.split(","):
            yield from _left_by(ROOT / "memory", path, FIRST)


def _left_by(top: Path, path: str, files: Files) -> Iterator[int]:
    parts = [part for part in path.split("/") if part]
    for depth in range(len(parts) + 1):  # of a path that is not seen from within a container there is the top
        group = top.joinpath(*parts[:depth])
        used = _text(group / files.used)
        if not used:
            continue
        stat = dict(line.split(maxsplit=1) for line in _text(group / "memory.stat").splitlines())
        for name in files.limits:
            limit = _text(group / name)
            if limit.isdigit():  # else "max"
                yield max(0, int(limit) - int(used) + int(stat.get(files.idle, 0)))


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""
