"""The peak of what torch holds during a training step: parameters and batch, and what the step itself takes.

On the host it is read from torch's profiler, on a GPU from torch's own allocator.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

Step = Callable[[], None]
Start = Callable[[], AbstractContextManager[Step]]
WARM = 12  # steps before the one that is looked at


def peak(start: Start, device: torch.device) -> float:
    """The most bytes during one step, after some, of the training that ``start`` makes."""
    return on_host(start) if device.type == "cpu" else on_gpu(start, device)


def on_host(start: Start) -> float:
    """Of what was there before a step the profiler does not know the size, so it looks on for some steps, and the sum is taken
    back from their end.
    """
    with start() as step:
        for _ in range(WARM - 2):
            step()
        with torch.profiler.profile(profile_memory=True) as profile:
            for _ in range(2):
                step()
            with torch.profiler.record_function("last"):
                step()
        gc.collect()
        held = _held()
    events = profile.profiler.kineto_results.events()
    last = next(e.start_ns() for e in events if e.name() == "last")
    now, highest = 0, -math.inf
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        highest = max(highest, now) if event.start_ns() >= last else highest
    return held + highest - now


def _held() -> int:
    """Bytes of all tensors' memory that is alive now."""
    found = [x.untyped_storage() for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


def on_gpu(start: Start, device: torch.device) -> float:
    """Less what is held before: a first training has left there the workspaces of cuBLAS, which are larger than the net."""
    _highest(start, device)
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    return _highest(start, device) - before


def _highest(start: Start, device: torch.device) -> int:
    with start() as step:
        for _ in range(WARM):
            step()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
