"""What a step of one run costs in a population, by size, width, depth, batch and recorded steps; and a run's parts.

    python tests/benchmarks/bench_scaling.py [--rounds 5] [--clock process] [--json PATH]

Multilayer perceptrons by feedback alignment, SGD, one thread. From one base each number is varied by itself, with no step
recorded and with every step recorded by the standard probes but eigenvalues; a few points with several numbers drawn at random
are measured too, and every second of these is held out: a model (``scaling_model.py``) is fitted to the others, and its errors
are told on the held-out ones. A recorder's flush belongs to the time, once in 16 recorded steps.

Then what a run has beside its steps: sweeps of runs of the shape of ``alignlab audit sign_sync``, of 20 steps and stored, in
pairs of which one evaluates, or takes eigenvalues, at every step; and what the caller does for each run, and the scheduler
for each job. A sweep as that audit's own shows how far the sum of the parts is from a whole.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

import measuring
import scaling_model
import torch
from torch import nn

from alignlab.training import RunSpec, Task
from alignlab.training.planner import packs
from alignlab.training.population import Population
from alignlab.training.sweep import Sweep
from alignlab.training.task import Split
from alignlab.training.workers import Workers

BASE = {"runs": 64, "inputs": 64, "width": 64, "depth": 2, "batch": 32, "share": 0.0}
LINES: dict[str, tuple[float, ...]] = {
    "runs": (1, 4, 16, 64, 256, 1024),
    "width": (8, 16, 32, 64, 128, 256, 512),
    "depth": (1, 2, 4, 8),
    "batch": (1, 4, 16, 32, 128, 512),
    "share": (0, 1 / 64, 1 / 16, 1 / 4, 1),
}
DRAWN = {
    "runs": (1, 4, 16, 64, 256), "inputs": (16, 64, 784), "width": (8, 16, 32, 64, 128, 256), "depth": (1, 2, 3, 5),
    "batch": (1, 8, 32, 64, 128), "share": (0.0, 1 / 4, 1.0),
}  # fmt: skip
MOST = 5e8  # operations of a population's step, of the points drawn at random
OUTPUTS, RECORDED = 10, 16  # recorded steps a flush
LONGEST, LASTS = 100, 0.1  # steps that are timed together: at most so many, and for about so many seconds
AUDIT = RunSpec(
    task="mnist_small", hidden=(128, 64), rule="sign_sync", rule_args={"period": 100}, lr=0.002, steps=500
)
SHORT = 20  # steps of the short runs whose differences are prices
PARTS = ("points", "base", "lines", "run", "prices", "whole", "whole_runs")
Clock = Callable[[], float]


def settings(drawn: int) -> Iterator[dict[str, Any]]:
    """The points to measure: the lines through the base, and some drawn at random, every second of them held out."""
    seen = []
    for name, values in LINES.items():
        for value, share in itertools.product(values, (0.0, 1.0) if name != "share" else (None,)):
            at = BASE | {name: value} | ({} if share is None else {"share": share})
            if at not in seen:
                seen.append(at)
                yield at | {"held_out": False}
    dice, found = random.Random(0), 0
    while found < drawn:
        at = {name: dice.choice(values) for name, values in DRAWN.items()}
        if scaling_model.features(shaped(at))[3] * at["runs"] < MOST:
            yield at | {"held_out": bool(found % 2)}
            found += 1


def shaped(at: dict[str, Any]) -> dict[str, Any]:
    """A setting as a point of the model."""
    widths = [at["inputs"], *[at["width"]] * at["depth"], OUTPUTS]
    return {**scaling_model.point(at["runs"], widths, at["batch"], at["share"]), **at}


def numbers(inputs: int) -> Task:
    """Ten classes in random numbers: for time alone."""
    generator = torch.Generator().manual_seed(0)
    split = Split(
        torch.randn(1024, inputs, generator=generator), torch.randint(10, (1024,), generator=generator)
    )
    return Task("numbers", split, split, split, nn.functional.cross_entropy, (inputs,), OUTPUTS, True)


def measured(at: dict[str, Any], rounds: int, clock: Clock) -> dict[str, Any]:
    """A point with its ``seconds``, the median of the rounds, and their ``quartiles``."""
    every = round(1 / at["share"]) if at["share"] else 0
    spec = RunSpec(
        rule="fa", hidden=(at["width"],) * at["depth"], batch_size=at["batch"], lr=1e-3, record_every=every, spectra_every=0,
        steps=(RECORDED * every or LONGEST) * (rounds + 1) + 4,
    )  # fmt: skip
    many = [spec.changed(seed=seed) for seed in range(at["runs"])]
    population = _population(many, at["inputs"])
    steps, times = enumerate(population.batches()), list[float]()

    def timed(count: int) -> float:
        start = clock()
        for step, rows in itertools.islice(steps, count):
            population.step(step, rows)
        population.recorder.flush()
        return clock() - start

    with population.recorder:
        group = RECORDED * every or max(2, min(LONGEST, ceil(LASTS * 4 / max(timed(4), 1e-4))))
        timed(group if every else 2)
        times = [timed(group) / group / at["runs"] for _ in range(rounds)]
    low, middle, high = (measuring.rounded(t) for t in statistics.quantiles(times, n=4))
    return shaped(at) | {"seconds": middle, "quartiles": [low, high]}


def _population(specs: list[RunSpec], inputs: int) -> Population:
    return Population(specs, numbers(inputs), torch.device("cpu"))


def prices(runs: int, rounds: int, clock: Clock) -> dict[str, Any]:
    """Seconds of the parts of a run of the audit's shape that are not steps, and of a whole run."""
    size = len(packs([AUDIT.changed(seed=seed) for seed in range(1024)])[0])
    bare = AUDIT.changed(steps=SHORT, evaluations=2, record_every=0, spectra_every=0)
    recorded = bare.changed(record_every=1)
    sides = {
        "one": bare.changed(steps=1), "bare": bare, "evaluated": bare.changed(evaluations=SHORT + 1),
        "recorded": recorded, "spectra": recorded.changed(spectra_every=1),
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name in random.sample(list(sides), len(sides)):
            times[name].append(swept(sides[name], range(i * size, (i + 1) * size), clock))
    one, plain, evaluated, without, spectra = (statistics.median(times[name][1:]) for name in sides)
    evaluation = (evaluated - plain) / (SHORT - 1)
    looks = ceil(ceil(AUDIT.steps / AUDIT.record_every) / AUDIT.spectra_every)
    run = scaling_model.point(size, [784, *AUDIT.hidden, OUTPUTS], AUDIT.batch_size, 1 / AUDIT.record_every)
    run |= {"steps": AUDIT.steps, "evaluations": AUDIT.evaluations, "spectra": looks}
    fixed = one - 2 * evaluation - (plain - one) / (SHORT - 1)
    found = {"evaluation": evaluation, "spectra": (spectra - without) / SHORT, "fixed": fixed}
    return {"run": run, "prices": found, "whole": swept(AUDIT, range(runs), clock), "whole_runs": runs}


def swept(spec: RunSpec, seeds: range, clock: Clock) -> float:
    """Seconds a run of a sweep in this process."""
    with tempfile.TemporaryDirectory() as store:
        sweep, start = Sweep([spec.changed(seed=seed) for seed in seeds], store), clock()
        sweep.run()
        return (clock() - start) / len(seeds)


def overheads(cells: int, clock: Clock) -> dict[str, float]:
    """Seconds of the caller's a run, and of caller and scheduler a job: what no worker can take over."""
    specs = [AUDIT.changed(seed=seed, steps=1) for seed in range(cells)]
    with tempfile.TemporaryDirectory() as store, Workers(2) as workers:
        start = clock()
        sweep = Sweep(specs, store)
        packs(sweep.missing(), workers=cells // 16)
        caller = (clock() - start) / cells
        list(workers.each(len, [specs[:16]] * 4))  # to start them
        start = clock()
        jobs = [specs[i : i + 16] for i in range(0, cells, 16)]
        assert sum(count for _, count in workers.each(len, jobs)) == cells
        return {"caller": caller, "job": (clock() - start) / len(jobs)}


def main() -> None:
    parser = measuring.options(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--drawn", type=int, default=32, help="points at random; every second is held out")
    parser.add_argument("--runs", type=int, default=40, help="runs of the sweep as the audit's own")
    parser.add_argument(
        "--cells", type=int, default=3200, help="cells for the caller's and scheduler's prices"
    )
    parser.add_argument(
        "--points", action="store_true", help="measure the points alone; the file keeps its prices"
    )
    parser.add_argument(
        "--prices", action="store_true", help="measure the prices alone; the file keeps its points"
    )
    options = parser.parse_args()
    clock = measuring.CLOCKS[options.clock]
    torch.set_num_threads(1)
    random.seed(0)
    kept = json.loads(options.json.read_text()) if options.points or options.prices else {}
    found = {name: kept[name] for name in PARTS if name in kept}
    if not options.prices:
        points = [told(measured(at, options.rounds, clock)) for at in settings(options.drawn)]
        found |= {"points": points, "base": BASE, "lines": {n: list(v) for n, v in LINES.items()}}
    if not options.points:
        found |= prices(options.runs, options.rounds, clock)
        found["prices"] |= overheads(options.cells, clock)
        for name, seconds in (found["prices"] | {"whole": found["whole"]}).items():
            print(f"{1e3 * seconds:10.2f} ms  {name}")
    measuring.write(options.json, [], options.clock, **found)


def told(point: dict[str, Any]) -> dict[str, Any]:
    shown = {name: point[name] for name in (*BASE, "held_out")}
    print(f"{1e6 * point['seconds']:10.1f} µs  {shown}", flush=True)
    return point


if __name__ == "__main__":
    main()
