"""What a second worker gives: a sweep of 400 runs on two processes of one thread against as many runs in one process.

    python tests/benchmarks/bench_sweep.py [--runs 400] [--rounds 5] [--json PATH]

Of digits, 784-128-64-10, 500 steps, probed and evaluated: the runs of ``alignlab audit sign_sync``, minutes. And of XOR,
2-8-2, 100 steps, probed: so small that all of them together take less time than processes take to start. Sides take turns,
each time with a whole sweep of seeds of its own, of digits in a fourth of the ``--rounds``; every run is stored, as in any
sweep. "sweep": with what it takes to start the processes once; "workers started": without. "threads": one process with two
threads against one with one, the other way to use two cores. Programs that others run on these cores take from the ratios;
``--clock cpu`` counts the processor time of all processes of a side and shares it out over its cores: what these would take if
they were free.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import measuring
import psutil
import torch

from alignlab.training import RunSpec, cells
from alignlab.training.sweep import Sweep
from alignlab.training.workers import Workers

REACH = 1.7
BASE = RunSpec(task="xor", hidden=(8,), rule="fa", batch_size=4, steps=100, record_every=20, lr=0.1)
DIGITS = RunSpec(task="mnist_small", hidden=(128, 64), rule="fa", steps=500, lr=0.002)


def processor_time() -> float:
    """Of this process and those that it started, in seconds."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))


CLOCKS = {"wall": time.perf_counter, "cpu": processor_time}
clock = "wall"


def timed(seeds: range, spec: RunSpec, workers: int | Workers, folder: str, cores: int) -> float:
    start = CLOCKS[clock]()
    done = Sweep([spec.changed(seed=seed) for seed in seeds], folder).run(workers)
    assert done == len(seeds)
    return (CLOCKS[clock]() - start) / (cores if clock == "cpu" else 1)


@contextmanager
def threads(count: int) -> Any:
    """Runs with so many threads, where a sweep gives them one."""
    own, cells.one_thread = cells.one_thread, nullcontext  # type: ignore[assignment]
    torch.set_num_threads(count)
    try:
        yield
    finally:
        cells.one_thread = own
        torch.set_num_threads(1)


def measured(sides: dict[str, Callable[[range], float]], runs: int, rounds: int) -> dict[str, list[float]]:
    """The seconds of each side, one a round; no side and round has another's seeds."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for place, name in enumerate(random.sample(list(sides), len(sides))):
            first = (i * len(sides) + place + 1) * runs
            times[name].append(sides[name](range(first, first + runs)))
    return times


def rows_of(
    what: str, one: list[float], two: list[float], start: float | None, reach: float | None
) -> list[measuring.Row]:
    """With the start of processes, where there is one, and without."""
    named = [(f"{what}, workers started" if start else what, 0.0, None if start else reach)]
    if start:
        named.insert(0, (f"{what}: sweep", start, reach))
    return [
        measuring.row(
            name, "one worker", [a / (first + b) for a, b in zip(one, two, strict=True)], wanted, "more"
        )
        for name, first, wanted in named
    ]


def main() -> None:
    parser = measuring.options(__doc__, CLOCKS)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    global clock
    clock = options.clock
    random.seed(0)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as store, Workers(2) as two:
        timed(range(2), BASE, 1, f"{store}/warm", 1)
        start = timed(range(2), BASE, two, f"{store}/start", 2)
        for spec, name, rounds in (
            (DIGITS, "digits", max(1, options.rounds // 4)),
            (BASE, "xor", options.rounds),
        ):

            def on(workers: int | Workers, cores: int, spec: RunSpec = spec, name: str = name) -> Any:
                return lambda seeds: timed(seeds, spec, workers, f"{store}/{name}", cores)

            def threaded(seeds: range, own: Any = on) -> float:
                with threads(2):
                    return float(own(1, 2)(seeds))

            sides = {"one": on(1, 1), "two": on(two, 2)} | ({"threads": threaded} if spec is DIGITS else {})
            times = measured(sides, options.runs, rounds)
            size = f"{options.runs} runs of {name}"
            rows += rows_of(f"{size}, two workers", times["one"], times["two"], start, REACH)
            if "threads" in times:
                rows += rows_of(f"{size}, two threads", times["one"], times["threads"], None, None)
        rows.append(measuring.amount("starting two workers", "seconds", start))
    measuring.write(options.json, rows, clock)


if __name__ == "__main__":
    main()
