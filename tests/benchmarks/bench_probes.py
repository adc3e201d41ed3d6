"""What recording costs: a training step under a Recorder against the bare step of the same rule, as ratios.

    python tests/benchmarks/bench_probes.py [--steps 2000] [--rule fa] [--clock process] [--json PATH]

784-512-512-10 with ReLU, batch 128, cross entropy, SGD, one thread; a new batch at each step, since on one that is learnt
by heart the errors vanish. Bare and probed steps alternate, a few at a time and in an order drawn anew, so that the machine's
moods meet both alike; the ratios are of groups of steps that hold as many measured ones each, and their median is printed
beside the ratio to reach, with the quartiles. "bare" against itself shows what the machine's noise makes of 1. ``--clock
process`` counts this process's own time, for machines that others use too. Memory is the peak of what torch holds during a
step, parameters and batch included, read from its profiler.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import measuring
import torch
from torch import nn

from alignlab.probes import (
    EffectiveLR,
    FeedbackSpectrum,
    GradientAngle,
    Loss,
    Probe,
    Recorder,
    WeightAngle,
    every,
)
from alignlab.rules import convert

BATCHES = 32
Clock = Callable[[], float]
PAIRS = 10  # of models
AT_ONCE = 4  # steps of a group that follow each other


def angles() -> list[Probe]:
    return [GradientAngle()]


def batch_angle() -> list[Probe]:
    return [GradientAngle(samples=False)]


def standard() -> list[Probe]:
    return [GradientAngle(), EffectiveLR(), WeightAngle(), Loss()]


@dataclass(frozen=True)
class Case:
    """What is recorded when; ``group``: steps that are timed together, so that each group holds as many measured ones."""

    what: str
    probes: Callable[[], list[Probe]] | None
    schedule: Callable[[int], bool]
    reach: float | None = None
    group: int = 1


CASES = [
    Case("bare", None, every(1)),
    Case("standard set, nothing scheduled", standard, lambda step: False, 1.005),
    Case("GradientAngle, every 64th step", angles, every(64), 1.01, group=64),
    Case("standard set, every 64th step", standard, every(64), 1.01, group=64),
    Case("GradientAngle, every 10th step", angles, every(10), 1.05, group=10),
    Case("GradientAngle(samples=False), every 10th step", batch_angle, every(10), 1.05, group=10),
    Case("standard set, every 10th step", standard, every(10), 1.05, group=10),
    Case("nothing to measure, every step", list, every(1)),
    Case("GradientAngle, every step", angles, every(1), 1.45),
    Case("GradientAngle(samples=False), every step", batch_angle, every(1), 1.45),
    Case("GradientAngle + WeightAngle, every step", lambda: [GradientAngle(), WeightAngle()], every(1)),
    Case("EffectiveLR, every step", lambda: [EffectiveLR()], every(1)),
    Case("standard set, every step", standard, every(1)),
    Case(
        "standard set, spectra in each 10th",
        lambda: [*standard(), FeedbackSpectrum(100)],
        every(10),
        group=10,
    ),
]
MEMORY = [
    Case("GradientAngle, every step", angles, every(1), 1.35),
    Case("standard set, every step", standard, every(1), 1.35),
]


def model_of(rule: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = (784, 512, 512, 10)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return convert(nn.Sequential(*layers[:-1]), rule, generator=torch.Generator().manual_seed(1))


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, n: int) -> Callable[[], None]:
    batches = itertools.cycle([(torch.randn(128, 784), torch.randint(10, (128,))) for _ in range(n)])

    def step() -> None:
        x, y = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


@contextlib.contextmanager
def recorded(rule: str, case: Case, batches: int = BATCHES) -> Any:
    """A training step of a new model on ``batches`` in turn, recorded as the case says."""
    model = model_of(rule)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    recorder = None if case.probes is None else Recorder(model, optimizer, case.probes(), case.schedule)
    with recorder or contextlib.nullcontext():
        yield step_of(model, optimizer, batches)


def timed(step: Callable[[], None], times: int, clock: Clock) -> float:
    start = clock()
    for _ in range(times):
        step()
    return clock() - start


def ratios(rule: str, case: Case, rounds: int, clock: Clock) -> list[float]:
    """Probed over bare time of groups of steps, measured alternately, on several pairs of models made in turn: where a model
    lies in memory makes half a per cent."""
    bare, found = Case("bare", None, every(1)), list[float]()
    for pair in range(PAIRS):
        with contextlib.ExitStack() as stack:
            made = [stack.enter_context(recorded(rule, c)) for c in ((bare, case), (case, bare))[pair % 2]]
            without, probed = made if pair % 2 == 0 else made[::-1]
            for step in (without, probed):
                timed(step, 2 * case.group, clock)
            found += [_ratio(without, probed, case.group, clock) for _ in range(-(-rounds // PAIRS))]
    return found


def _ratio(without: Callable[[], None], probed: Callable[[], None], group: int, clock: Clock) -> float:
    """Of one group of steps each."""
    seconds = {without: 0.0, probed: 0.0}
    for start in range(0, group, AT_ONCE):
        for step in random.sample(list(seconds), 2):
            seconds[step] += timed(step, min(AT_ONCE, group - start), clock)
    return seconds[probed] / seconds[without]


def peak(rule: str, case: Case) -> float:
    """The most bytes that torch held during one step, after some: those of the model and its batch, and the step's own.

    Of what was there before it the profiler does not know the size, so it looks on for some steps, and the sum is taken back
    from their end.
    """
    with recorded(rule, case, batches=1) as step:
        timed(step, 10, time.perf_counter)
        with torch.profiler.profile(profile_memory=True) as profile:
            timed(step, 2, time.perf_counter)
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


def main() -> None:
    parser = measuring.options(__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="of each kind, a case")
    parser.add_argument("--rule", default="fa")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    rows, against, clock = [], f"bare step of {options.rule}", measuring.CLOCKS[options.clock]
    for case in CASES:
        if options.only in case.what:
            found = ratios(options.rule, case, max(options.steps // case.group, 12), clock)
            rows.append(measuring.row(case.what, against, found, case.reach))
    bare = peak(options.rule, CASES[0])
    for case in MEMORY:
        if options.only in case.what:
            found = [peak(options.rule, case) / bare]
            rows.append(measuring.row(f"memory: {case.what}", f"{against}: peak memory", found, case.reach))
    measuring.write(options.json, rows, options.clock)


if __name__ == "__main__":
    main()
