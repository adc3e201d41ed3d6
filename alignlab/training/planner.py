"""The planner: which runs are trained together, and how many at a time.

More runs in step share the price of Python and of launching kernels, until their tensors leave the cache; where that is
differs from machine to machine and from shape to shape, so it is measured: a few steps of populations of growing size, as
long as a run gets cheaper. Convolutional nets, which gain least, are measured alone as well. Memory sets a limit beside.
The packing changes results as rounding does, and no more: the same runs packed alike have the same numbers bit for bit; beside
others, or alone, some round otherwise, as a sigmoid does by its place in a tensor (tests hold both on the CPU). Where memory
runs out all the same, or a member fails, the worker tries halves (:mod:`alignlab.training.cells`).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from alignlab.measures.iterative import one_thread
from alignlab.training import devices, models, stacking, tasks
from alignlab.training.arguments import learning
from alignlab.training.population import Population, alone
from alignlab.training.spec import RunSpec

SIZES = (4, 16, 64, 256, 1024)
MOST = 4096  # runs at a time: none is stored before all have ended, and many file systems give a claim 65,000 links
TIMED = 4  # steps of a population, after as many to warm up
WORTH = 20_000  # steps of runs together, from which measuring pays
WORTH_OF_MAPS = 2_000  # of convolutional nets, whose steps take longer
GAIN = 0.95  # a larger size must bring a run's price below this share of the smaller's
LONGEST = 600  # s of a population, in which an interrupt may cost so much, for its runs are stored when the last has ended ...
DEARER = 1.25  # ... where a smaller one that takes no longer costs a run at most so many times as much
SHARE = 0.5  # of the free memory
COPIES = 8  # of a run's weights: gradient, optimizer state, B, an update's temporaries


class Question(NamedTuple):
    """How many of so many runs like ``spec`` to train together on a device, where so many ``workers`` share them and its
    memory."""

    spec: RunSpec
    number: int
    workers: int
    device: torch.device = devices.CPU


def best_size(question: Question) -> int:
    """The answer, measured on the machine that is asked."""
    spec, number, workers, device = question
    room = min(math.ceil(number / workers), MOST)
    try:
        room = min(room, fitting(spec, workers, device))
        return min(room, _best_size(spec, number, room, device))
    except Exception:  # no such task, no such network: the runs themselves will say so
        return min(room, SIZES[0])


def _answers(questions: Sequence[Question]) -> list[int]:
    return [best_size(question) for question in questions]


def packs(
    specs: Sequence[RunSpec],
    workers: int = 1,
    ask: Callable[[Sequence[Question]], Sequence[int]] = _answers,
    device: torch.device = devices.CPU,
) -> list[list[RunSpec]]:
    """The specs as populations; those that must be trained alone, alone.

    Of each shape, every one of the ``workers`` gets as many populations, where there are runs enough. ``ask``: has questions
    answered, on the machines that will do the work; it is not called without any.
    """
    if workers < 1:
        raise ValueError(f"packs: workers is {workers!r}, expected a whole number, at least 1")
    alike: dict[object, list[RunSpec]] = {}
    for spec in specs:
        key: object = (
            spec if alone(spec) else (stacking.shared(spec), stacking.family(spec), spec.graft is None)
        )
        alike.setdefault(key, []).append(spec)
    groups = [sorted(own, key=stacking.lane) for own in alike.values()]
    questions = {
        i: Question(own[0], len(own), workers, device) for i, own in enumerate(groups) if len(own) > workers
    }
    answers = ask(list(questions.values())) if questions else []
    sizes = dict(zip(questions, answers, strict=True))
    return [pack for i, own in enumerate(groups) for pack in _cut(own, sizes.get(i, 1), workers)]


def _cut(specs: list[RunSpec], size: int, workers: int) -> Iterator[list[RunSpec]]:
    """Pieces of about one size, at most ``size``, as many for each worker; runs of one rule stay together."""
    rounds = math.ceil(len(specs) / size / workers)
    pieces = min(len(specs), rounds * workers)
    edges = [round(i * len(specs) / pieces) for i in range(pieces + 1)]
    return (specs[a:b] for a, b in pairwise(edges))


def _best_size(spec: RunSpec, number: int, largest: int, device: torch.device = devices.CPU) -> int:
    shape = stacking.shared(spec)
    dense = shape.model == "mlp"
    if shape.steps * number < (WORTH if dense else WORTH_OF_MAPS):
        return largest if dense else min(SIZES[0], largest)
    rule = {"rule": spec.rule, "rule_args": spec.rule_args}
    prices: dict[int, float] = {}
    sizes = SIZES if dense else (1, *SIZES)  # convolutions may cost a run no less beside others
    for size in (*(size for size in sizes if size < largest), largest):
        try:
            now = price_of(shape.changed(**rule), size, device)
        except Exception:  # no memory for so many, a rule that raises: the runs themselves will say so
            break
        if now > GAIN * min(prices.values(), default=math.inf):
            break
        prices[size] = now
    return _brief(prices, shape.steps) if prices else min(SIZES[0], largest)


def _brief(prices: Mapping[int, float], steps: int) -> int:
    """The largest size, or one that ends soon and costs little more."""
    cheap = [size for size, price in prices.items() if price <= DEARER * min(prices.values())]
    brief = [size for size in cheap if prices[size] * size * steps <= LONGEST]
    return max(brief, default=min(cheap))


@functools.cache
def price_of(shape: RunSpec, size: int, device: torch.device = devices.CPU) -> float:
    """Seconds that a step of one run costs in a population of this size, on this device; of a CPU on one thread."""
    specs = [shape.changed(seed=seed, steps=2 * TIMED, record_every=0, record_log=0) for seed in range(size)]
    task, times = tasks.load(shape.task), []
    with learning(task), one_thread():
        population = Population(specs, task, device)
        for step, rows in enumerate(population.batches()):
            start = time.perf_counter()
            population.step(step, rows)
            devices.wait_for(device)
            times.append(time.perf_counter() - start)
    return min(times[TIMED:]) / size


def fitting(spec: RunSpec, workers: int, device: torch.device = devices.CPU) -> int:
    """How many runs of this shape fit the share of the device's free memory that each of the ``workers`` has."""
    free = devices.free_memory(device)
    weights, values = _numbers(stacking.shared(spec))
    inputs = tasks.load(spec.task).train.inputs
    batch, size = min(spec.batch_size, len(inputs)), inputs.element_size()
    return max(1, int(SHARE * free / workers / (size * (COPIES * weights + 3 * batch * values))))


@functools.cache
def _numbers(shape: RunSpec) -> tuple[int, int]:
    """How many weights a run of this shape has, and how many values all its modules give for a sample."""
    task = tasks.load(shape.task)
    with learning(task), torch.no_grad():
        model = models.build(shape, task)
        x = task.train.inputs[:1]
        values = x.numel()
        for module in model.children():  # one after the other
            x = module(x)
            values += x.numel()
    return sum(p.numel() for p in model.parameters()), values
