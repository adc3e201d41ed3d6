"""Whether recording makes the host wait for a GPU: waits of a recorded step between two flushes, beyond those of a bare one.

    python tests/benchmarks/bench_synchronisation.py [--device cuda] [--trace trace.json] [--json PATH]

The standard set records every step of 784-512-512-10, batch 128, under torch's profiler, from one flush of the Recorder to
the next; what is counted in its trace are the calls by which the host waits (``waits.py``). The measured steps 0, 1, 2, 4, 8, …
test the recording itself, and read numbers to do so: a row of its own, of step 128. ``--trace`` keeps the trace of the last
rule for chrome://tracing or https://ui.perfetto.dev, with the stretches named there. Where a wait that is made on purpose
cannot be found in a trace, nothing is counted. A second way to see it, ``torch.cuda.set_sync_debug_mode("error")``, is a test
(``pytest -m gpu tests/probes/test_probe_on_gpu.py``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import devices
import measuring
import torch
import waits
from bench_probes import BATCHES, Step, model_of, repeated, standard, step_of

from alignlab.probes import Recorder, every
from alignlab.rules import RULES

TESTED = 128  # a measured step that tests the recording; the one before is 64
STEPS = 60  # between the two
FLUSH = 10 * TESTED  # measured steps, so that none is flushed but by hand
BETWEEN, TEST, CONTROL = "between two flushes", "a step that tests the recording", "a wait made on purpose"
Counts = dict[str, int]


def traced(rule: str, recorder: bool, device: torch.device, path: Path) -> Counts:
    """The waits in each stretch; its trace goes to ``path``."""
    model = model_of(rule).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    step = step_of(model, optimizer, BATCHES, device)
    if not recorder:
        return _profiled(step, lambda: None, device, path)
    with Recorder(model, optimizer, standard(), every(1), flush_every=FLUSH) as recording:
        return _profiled(step, recording.flush, device, path)


def _profiled(step: Step, flush: Step, device: torch.device, path: Path) -> Counts:
    """Steps 0 to 128, in the middle of which a flush, and after which another."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    named = torch.profiler.record_function
    repeated(step, TESTED - STEPS - 1)
    with torch.profiler.profile(activities=activities) as profile:
        repeated(step, 1)  # the profiler's own first steps
        flush()
        with named(BETWEEN):
            repeated(step, STEPS)
        with named(TEST):
            step()
        flush()
        with named(CONTROL):
            torch.ones((), device=device).item()
    profile.export_chrome_trace(str(path))
    events = waits.read(path)
    return {name: waits.within(events, name) for name in (BETWEEN, TEST, CONTROL)}


def rows(rule: str, bare: Counts, probed: Counts) -> list[measuring.Row]:
    what, against = f"standard set by {rule}, every step", f"bare step of {rule}"
    if not (bare[CONTROL] and probed[CONTROL]):
        reason = (
            "the profiler's trace does not show a wait that was made on purpose: is CUPTI there, and allowed?"
        )
        return [measuring.skipped(f"waits for the GPU a step: {what}", against, reason)]
    more = {name: probed[name] - bare[name] for name in (BETWEEN, TEST)}
    return [
        measuring.amount(f"waits for the GPU a step: {what}", "count", more[BETWEEN] / STEPS, 0, against),
        measuring.amount(f"waits for the GPU in {TEST}: {what}", "count", more[TEST], None, against),
    ]


def main() -> None:
    parser = measuring.options(__doc__, device="cuda")
    parser.add_argument("--trace", type=Path, help="where to keep the trace, .json or .json.gz")
    parser.add_argument("--rules", nargs="+", choices=sorted(RULES), default=["bp", "fa"])
    options = devices.parsed(parser)
    if options.device.type == "cpu":
        parser.error("argument --device: a processor waits for nobody: take cuda")
    torch.set_num_threads(1)
    if options.trace is not None:
        options.trace.parent.mkdir(parents=True, exist_ok=True)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for rule in options.rules:
            scratch = Path(folder, f"{rule}.json")
            bare = traced(rule, False, options.device, scratch)
            probed = traced(rule, True, options.device, options.trace or scratch)
            found += rows(rule, bare, probed)
    measuring.write(options.json, found, options.clock, options.device)


if __name__ == "__main__":
    main()
