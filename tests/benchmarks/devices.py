"""Where a benchmark runs, and how time is read there: by a clock of the host's, or by the events of a GPU.

A GPU works behind the host's back, so a clock of the host's must wait for it at both ends of what it times. Events do not: they
are marks in the order of the GPU's own work, and nothing waits until their times are read, after the last of a group.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

CPU = torch.device("cpu")
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
EVENTS = "events"


class Watch(Protocol):
    """Takes marks, and tells the seconds between two of them."""

    def mark(self) -> Any: ...

    def seconds(self, start: Any, stop: Any) -> float: ...


class HostWatch:
    """By a clock of the host's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.mark = clock

    def seconds(self, start: float, stop: float) -> float:
        return stop - start


class WaitingWatch:
    """By the wall's clock, after all that the GPU was given to do is done."""

    def mark(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, start: float, stop: float) -> float:
        return stop - start


class EventWatch:
    """By events on the GPU's current stream; ``cuda``: the module that has them."""

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda

    def mark(self) -> Any:
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, stop: Any) -> float:
        """Waits: to be asked once all that is timed together has been marked."""
        self._cuda.synchronize()
        return float(start.elapsed_time(stop)) / 1000  # it tells milliseconds


def watch(clock: str, device: torch.device) -> Watch:
    if device.type == "cpu":
        return HostWatch(CLOCKS[clock])
    return EventWatch() if clock == EVENTS else WaitingWatch()


def device(name: str) -> torch.device:
    """What ``--device`` names, with its number; an error of argparse where it is not here."""
    try:
        found = torch.device(name)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{name!r} is no device: take cpu, cuda or cuda:1") from None
    if found.type == "cpu":
        return CPU
    if found.type != "cuda":
        raise argparse.ArgumentTypeError(f"{name!r} has no events to time it by: take cpu, cuda or cuda:1")
    if not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(
            f"{name!r} is not here: torch {torch.__version__} finds no CUDA device"
        )
    if (index := found.index or 0) >= (count := torch.cuda.device_count()):
        raise argparse.ArgumentTypeError(f"{name!r} is not here: the last of {count} is cuda:{count - 1}")
    return torch.device("cuda", index)


def name_of(device: torch.device) -> str:
    return str(torch.cuda.get_device_name(device))


def add_to(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--device", type=device, default=default, help="cpu, cuda or cuda:1, say (%(default)s)"
    )
    parser.add_argument("--clock", choices=(*CLOCKS, EVENTS), help="events on a GPU, wall elsewhere")


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a benchmark that takes a device, with its clock and its ``watch``; a GPU is made torch's current one."""
    options = parser.parse_args(arguments)
    on_gpu = options.device.type == "cuda"
    options.clock = options.clock or (EVENTS if on_gpu else "wall")
    if on_gpu and options.clock == "process":
        parser.error("argument --clock: the processor's time leaves out the GPU's: take events or wall")
    if not on_gpu and options.clock == EVENTS:
        parser.error("argument --clock: events are a GPU's: take wall or process, or --device cuda")
    if on_gpu:
        torch.cuda.set_device(options.device)
    options.watch = watch(options.clock, options.device)
    return options
