"""The calls by which the host waits for a GPU, counted in a trace that torch's profiler has exported (Chrome's JSON).

They are the synchronisations of CUDA's runtime and driver, and copies from the device to the host, which wait unless they go
to pinned memory: a number that is read shows as both. Each counts where the host calls it, on whatever thread; a copy's call is
the one with its correlation.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOST = ("cuda_runtime", "cuda_driver")
CALLS = (
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy",
    "cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize",
)  # fmt: skip
DOWN = "Memcpy DtoH"
Event = dict[str, Any]


def read(path: Path) -> list[Event]:
    """The events of a trace, compressed or not."""
    raw = path.read_bytes()
    found: list[Event] = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)["traceEvents"]
    return found


def within(events: Sequence[Event], name: str) -> int:
    """The waits that began in the stretches that ``record_function(name)`` marked; an error where there is none."""
    stretches = [
        (e["ts"], e["ts"] + e["dur"])
        for e in events
        if e.get("name") == name and e.get("cat") == "user_annotation"
    ]
    if not stretches:
        raise ValueError(f"the trace has no stretch that is called {name!r}")
    return sum(any(start <= when < stop for start, stop in stretches) for when in times(events))


def times(events: Sequence[Event]) -> list[float]:
    """When the host began to wait, by the trace's clock."""
    calls = {
        e["args"]["correlation"]: e["ts"]
        for e in events
        if e.get("cat") in HOST and "correlation" in e.get("args", {})
    }
    waited = [e["ts"] for e in events if e.get("cat") in HOST and e["name"].split("_v")[0] in CALLS]
    copies = [e for e in events if e.get("cat") == "gpu_memcpy" and e["name"].startswith(DOWN)]
    return waited + [calls.get(e.get("args", {}).get("correlation"), e["ts"]) for e in copies]
