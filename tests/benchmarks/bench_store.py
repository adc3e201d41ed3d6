"""What the store costs: analysing thousands of runs, and recording to disk.

    python tests/benchmarks/bench_store.py [--runs 10000] [--steps 10000] [--folder PATH] [--json PATH] [reading recording]

**reading**: ``--runs`` runs x 200 steps x 4 layers, 10 variables a layer and 7 a step with a value at every step, are
appended as segments (rule x learning rate x seed, synthetic values, run_ids in no order) and compacted by `compact`. Then
a fresh process each opens the store, and takes the mean and spread over seeds of three variables, by rule and learning
rate, out of the lazy dataset and out of its three variables loaded. Seconds count after the libraries are imported;
memory is the process's peak, libraries included.

**recording**: 784-512-512-10, batch 128, rule fa, one thread, probed at every step (angles, rates, weights, loss), a flush
every 100 steps: to a folder against in memory. The two alternate, 100 steps each, in an order drawn anew, so that the
machine's moods meet both alike; the median of the ratios is printed with the quartiles. ``--clock process`` counts this
process's own time, for machines that others use too; it leaves out the waiting for the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import measuring
import numpy as np
from measuring import Row

RULES, LRS, STEPS, LAYERS = ("bp", "fa", "dfa", "sign_sync"), (0.01, 0.03, 0.1, 0.3, 1.0), 200, 4
PER_LAYER = (
    "gradient_angle", "delta_angle", "weight_angle", "zero_fraction", "feedback_gain", "effective_lr", "weight_norm",
    "gradient_norm", "update_norm", "relative_update",
)  # fmt: skip
PER_STEP = (
    "loss", "learning_rate", "wall_time", "samples_seen", "train_loss", "test_loss", "test_accuracy",
)  # fmt: skip
ASKED = ["loss", "gradient_angle", "feedback_gain"]


def append_runs(folder: str, first: int, last: int) -> None:
    """Some of the runs, as a sweep appends them."""
    import xarray as xr

    from alignlab.measures.quantities import QUANTITIES
    from alignlab.store import Segments

    segments = Segments(folder)
    layers = {"kind": ["linear"] * LAYERS, "fan_in": [64, 32, 32, 32], "fan_out": [32, 32, 32, 10]}
    for i in range(first, last):
        rng = np.random.default_rng(i)
        rule, lr, seed = RULES[i % 4], LRS[i // 4 % 5], i // 20
        run_id = f"{rng.integers(2**62):016x}"
        shapes = {name: (STEPS, LAYERS) for name in PER_LAYER} | {name: (STEPS,) for name in PER_STEP}
        variables = {
            name: (
                ("step", "layer")[: len(shape)],
                rng.random(shape, dtype=np.float32),
                QUANTITIES[name].attrs(),
            )
            for name, shape in shapes.items()
        }
        of_run = {"run_id": run_id, "rule": rule, "lr": lr, "seed": seed, "task": "mnist_small", "arm": rule}
        of_run |= {"control": "", "status": "finished", "last_step": STEPS - 1}
        coords = {"step": np.arange(STEPS), "layer": [f"fc{j + 1}" for j in range(LAYERS)]}
        labels = {name: ("layer", values) for name, values in layers.items()}
        attrs = {"device": "cpu", "optimizer": "sgd", "spec": f"rule: {rule}\nlr: {lr}\nseed: {seed}\n"}
        segments.append(xr.Dataset(variables, coords | labels | of_run, attrs), name=run_id)


def make(folder: Path, runs: int) -> None:
    """The segments, unless they are there."""
    missing = runs - sum(name.endswith(".nc") for name in os.listdir(folder))
    if missing == runs:
        with ProcessPoolExecutor(2) as pool:
            parts = np.linspace(0, runs, 21).astype(int)
            list(pool.map(append_runs, [str(folder)] * 20, map(int, parts[:-1]), map(int, parts[1:])))
    elif missing:
        raise SystemExit(f"{folder} holds {runs - missing} segments, expected {runs} or none")


def compacting(store: Path) -> Iterator[tuple[str, float]]:
    from alignlab.store import compact

    shutil.rmtree(store / "compact.zarr", ignore_errors=True)
    with timed("compact") as found:
        compact(store)
    yield from found


def opening(store: Path) -> Iterator[tuple[str, float]]:
    from alignlab.store import open_runs

    with timed("open") as found:
        open_runs(store)
    yield from found


def lazily(store: Path) -> Iterator[tuple[str, float]]:
    import dask

    from alignlab.store import open_runs

    runs = open_runs(store)
    with timed("statistics, lazy") as found:
        seeds = runs[ASKED].groupby(["rule", "lr"])
        dask.compute(seeds.mean("run"), seeds.std("run"))
    yield from found


def loaded(store: Path) -> Iterator[tuple[str, float]]:
    from alignlab.store import open_runs

    runs = open_runs(store)
    with timed("statistics, loaded") as found:
        seeds = runs[ASKED].load().groupby(["rule", "lr"])
        seeds.mean("run"), seeds.std("run")
    yield from found
    with timed("one run, all variables") as found:
        runs.isel(run=runs.sizes["run"] // 2).load()
    yield from found


@contextmanager
def timed(what: str) -> Iterator[list[tuple[str, float]]]:
    found: list[tuple[str, float]] = []
    start = time.perf_counter()
    yield found
    found.append((what, time.perf_counter() - start))


CHILDREN: dict[str, Callable[[Path], Iterator[tuple[str, float]]]] = {
    "compacting": compacting, "opening": opening, "lazily": lazily, "loaded": loaded,
}  # fmt: skip
REACH = {"open": 1.0, "statistics, lazy": 5.0, "statistics, loaded": 5.0}
MIB = 1024.0  # the memory to stay below


def child(name: str, store: Path) -> None:
    """One measurement in this process, as JSON: [what, seconds] and the peak of memory in MiB."""
    for module in ("xarray", "zarr", "dask.array"):
        import_module(module)
    found = list(CHILDREN[name](store))
    print(json.dumps({"times": found, "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def reading(folder: Path, runs: int) -> list[Row]:
    """The rows of `reading`."""
    start = time.perf_counter()
    make(folder, runs)
    what = f"{runs:,} runs x {STEPS} steps x {LAYERS} layers"
    print(f"{what}, {len(PER_LAYER) + len(PER_STEP)} variables; made in {time.perf_counter() - start:.0f} s")
    rows: list[Row] = []
    most = 0.0
    for name in CHILDREN:
        command = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
        done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for part, seconds in done["times"]:
            rows.append(measuring.amount(f"{part}: {what}", "seconds", seconds, REACH.get(part)))
        rows.append(measuring.amount(f"memory, {name}: {what}", "MiB", done["MiB"]))
        most = max(most, done["MiB"])
    return [*rows, measuring.amount(f"memory, the most of these: {what}", "MiB", most, MIB)]


def recording(folder: Path, steps: int, clock: Callable[[], float]) -> list[Row]:
    """The rows of `recording`."""
    import torch
    from bench_probes import BATCHES, model_of, step_of

    from alignlab.probes import EffectiveLR, GradientAngle, Loss, Recorder, WeightAngle, every

    torch.set_num_threads(1)
    random.seed(0)
    steppers, recorders = {}, {}
    for name, path in (("disk", folder / "recorded"), ("memory", None)):
        model = model_of("fa")
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        probes = [GradientAngle(), EffectiveLR(), WeightAngle(), Loss()]
        recorders[name] = Recorder(model, optimizer, probes, every(1), path).attach()
        steppers[name] = step_of(model, optimizer, BATCHES)
    times: dict[str, list[float]] = {name: [] for name in steppers}
    order = list(steppers)
    for _ in range(1 + steps // 100):  # one round to warm up
        random.shuffle(order)
        for name in order:
            start = clock()
            for _ in range(100):
                steppers[name]()
            times[name].append(clock() - start)
    for recorder in recorders.values():
        recorder.detach()
    ratios = [disk / memory for disk, memory in zip(times["disk"][1:], times["memory"][1:], strict=True)]
    whole = sum(times["disk"][1:]) / sum(times["memory"][1:])
    what = f"recording {steps:,} steps to disk"
    return [
        measuring.row(what, "the same in memory", ratios, 1.02),
        measuring.row(f"{what}, whole times", "the same in memory", [whole]),
    ]


def main() -> None:
    parser = measuring.options(__doc__)
    parser.add_argument("parts", nargs="*", help="reading, recording; by default both")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument(
        "--folder", type=Path, help="where the runs are, or are to be kept; else a temporary one"
    )
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        if "reading" in (options.parts or ["reading"]):
            rows += reading(folder, options.runs)
        if "recording" in (options.parts or ["recording"]):
            rows += recording(Path(scratch), options.steps, measuring.CLOCKS[options.clock])
    measuring.write(options.json, rows, options.clock)


if __name__ == "__main__":
    main()
