"""What a run costs in a population, against plain PyTorch that trains one network after the other; ratios, more is better.

    python tests/benchmarks/bench_population.py [--rounds 5] [--device cuda] [--json PATH] [case ...]

A step of a plain loop (``nn.Linear`` layers, autograd, ``torch.optim.SGD``) and a step of a population alternate, one thread;
the ratio is (plain step) / (population's step / K), its median over the rounds with the quartiles. On a GPU both are there,
the data too, and the plain loop never waits for it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import devices
import measuring
import torch
from devices import Watch
from torch import nn

from alignlab.training import RunSpec, Task, tasks
from alignlab.training.population import Population
from alignlab.training.task import Split

XOR: dict[str, Any] = {
    "task": "xor_bits", "hidden": (10, 10), "bias": False, "weight_init": "gaussian", "loss": "absolute", "lr": 0.01,
    "batch_size": 1, "sampling": "replacement",
}  # fmt: skip
CASES: dict[str, tuple[int, dict[str, Any], float]] = {  # runs, spec, ratio to reach
    "64 XOR nets": (64, XOR, 40),
    "1,024 XOR nets": (1024, XOR, 150),
    "64 x (64-32-10), batch 32": (64, {"hidden": (32,), "batch_size": 32}, 12),
    "64 x (784-128-10), batch 64": (64, {"hidden": (128,), "batch_size": 64, "task": "mnist_small"}, 1),
}
ON_A_GPU: dict[str, tuple[int, dict[str, Any], float]] = {
    "1,024 x (784-128-10), batch 64": (1024, {"hidden": (128,), "batch_size": 64, "task": "mnist_small"}, 50),
}


def digits() -> Task:
    """10 classes in 64 numbers, at random: for time alone."""
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randn(4096, 64, generator=generator), torch.randint(10, (4096,), generator=generator))
    return Task("digits", split, split, split, nn.functional.cross_entropy, (64,), 10, True)


def plain_loop(spec: RunSpec, task: Task, device: torch.device) -> Callable[[], None]:
    widths = (torch.Size(task.n_in).numel(), *spec.hidden, task.n_out)
    layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b, spec.bias), nn.ReLU())]
    net = nn.Sequential(nn.Flatten(), *layers[:-1]).to(device)
    optimizer = torch.optim.SGD(net.parameters(), spec.lr)
    x, y = task.train.inputs.to(device), task.train.targets.to(device)

    def step() -> None:
        rows = torch.randint(len(x), (spec.batch_size,), device=device)
        optimizer.zero_grad()
        out = net(x[rows])
        loss = (out - y[rows]).abs().sum() if spec.loss == "absolute" else task.loss(out, y[rows])
        loss.backward()
        optimizer.step()

    return step


def ratios(runs: int, fields: dict[str, Any], rounds: int, watch: Watch, device: torch.device) -> list[float]:
    steps = 20
    base = RunSpec(**{"record_every": 0, "steps": steps * (rounds + 1), "rule": "bp", **fields})
    task = tasks.load(base.task) if "task" in fields else digits()
    population = Population([base.changed(seed=seed) for seed in range(runs)], task, device)
    one, batches, found = plain_loop(base, task, device), enumerate(population.batches()), []
    for _ in range(rounds + 1):
        marks = [watch.mark()]
        for _ in range(5 * steps):
            one()
        marks.append(watch.mark())
        for step, rows in itertools.islice(batches, steps):
            population.step(step, rows)
        marks.append(watch.mark())
        plain, together = itertools.starmap(watch.seconds, itertools.pairwise(marks))
        found.append(plain / 5 / (together / runs))
    return found[1:]


def chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """The cases to run; an error of argparse where one is none, or none of this device."""
    known = CASES if options.device.type == "cpu" else CASES | ON_A_GPU
    for case in options.cases:
        if case not in known:
            there = "needs a GPU: --device cuda" if case in ON_A_GPU else f"is none of {', '.join(known)}"
            parser.error(f"argument case: {case!r} {there}")
    return options.cases or list(known)


def main() -> None:
    parser = measuring.options(__doc__, device="cpu")
    cases = "; ".join([*CASES, *(f"{case} (on a GPU)" for case in ON_A_GPU)])
    parser.add_argument("cases", nargs="*", help=f"of {cases}; all where none is given")
    parser.add_argument("--rounds", type=int, default=9)
    options = devices.parsed(parser)
    named = chosen(parser, options)
    torch.set_num_threads(1)
    rows = []
    for case in named:
        runs, fields, reach = (CASES | ON_A_GPU)[case]
        found = ratios(runs, fields, options.rounds, options.watch, options.device)
        rows.append(measuring.row(case, "one at a time, plain PyTorch", found, reach, "more"))
    measuring.write(options.json, rows, options.clock, options.device)


if __name__ == "__main__":
    main()
