"""Jobs for workers, in a module that their processes can import; and what it takes to watch those processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def leave_pid(job: tuple[Path, int]) -> None:
    folder, number = job
    time.sleep(0.05)
    (folder / f"{number}-{os.getpid()}").touch()


def leave_pid_and_stay(job: tuple[Path, int]) -> None:
    leave_pid(job)
    time.sleep(1.5)


def pids(folder: Path) -> set[int]:
    return {int(path.name.split("-")[1]) for path in folder.iterdir()}


def die(job: tuple[Path, int, int]) -> int:
    """Job 1 kills its process, so many times; returns how often the job was tried before."""
    folder, number, times = job
    deaths = len(list(folder.iterdir()))
    if number == 1 and deaths < times:
        (folder / str(deaths)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return deaths


class OfAnotherVersion:
    """What only its maker can read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _read, (os.getpid(),)


def _read(maker: int) -> OfAnotherVersion:
    if os.getpid() != maker:
        raise TypeError("takes 4 positional arguments but 5 were given")
    return OfAnotherVersion()


def home_of(thing: Any) -> str:
    return type(thing).__module__


def threads(names: tuple[str, ...]) -> list[Any]:
    import torch

    return [torch.get_num_threads(), *(os.environ.get(name) for name in names)]


def page_faults(mebibytes: int) -> float:
    """How many pages the system hands out for each tensor of this size, once there were many before."""
    import resource

    import torch

    def faults(count: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(count):
            torch.ones(2**18 * mebibytes)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults(40)
    return faults(10) / 10


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int], within: float = 20.0) -> bool:
    """Whether all of these processes end in time."""
    deadline = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def environment(name: str) -> str | None:
    return os.environ.get(name)


def parent(job: int) -> int:
    return os.getppid()
