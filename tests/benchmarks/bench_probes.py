"""What recording costs: a training step under a Recorder against the bare step of the same rule, as ratios.

    python tests/benchmarks/bench_probes.py [--steps 2000] [--rule fa] [--device cuda] [--clock process] [--json PATH]

784-512-512-10 with ReLU, batch 128, cross entropy, SGD, one thread; a new batch at each step, since on one that is learnt
by heart the errors vanish. Bare and probed steps alternate, a few at a time and in an order drawn anew, so that the machine's
moods meet both alike; the ratios are of groups of steps that hold as many measured ones each, and their median is printed
beside the ratio to reach, with the quartiles. A recorder tests itself at its measured steps 0, 1, 2, 4, 8, …, ever more
rarely: a pair is timed from the 17th measured step on. "bare" against itself shows what the machine's noise makes of 1.
``--clock process`` counts this process's own time, for machines that others use too. Memory is the peak of what torch holds
during a step, parameters and batch included (``memory.py``). On a GPU the model and its batches are there, and a group's
times are read at its end.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import devices
import measuring
import memory
import torch
from devices import CPU, Watch
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
Step = Callable[[], None]
PAIRS = 10  # of models
AT_ONCE = 4  # steps of a group that follow each other
TESTED = 17  # measured steps until the recorder's own tests are rare


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


def batches_of(n: int, device: torch.device = CPU) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """``n`` of them in turn, without end."""
    made = [(torch.randn(128, 784), torch.randint(10, (128,))) for _ in range(n)]
    return itertools.cycle([(x.to(device), y.to(device)) for x, y in made])


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, n: int, device: torch.device = CPU) -> Step:
    batches = batches_of(n, device)

    def step() -> None:
        x, y = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


@contextlib.contextmanager
def recorded(rule: str, case: Case, batches: int = BATCHES, device: torch.device = CPU) -> Any:
    """A training step of a new model on ``batches`` in turn, recorded as the case says."""
    model = model_of(rule).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    recorder = None if case.probes is None else Recorder(model, optimizer, case.probes(), _settled(case))
    with recorder or contextlib.nullcontext():
        yield step_of(model, optimizer, batches, device)


def _settled(case: Case) -> Callable[[int], bool]:
    """The case's schedule, behind the measured steps in which the recorder mostly tests itself."""
    if case.schedule(0):
        return lambda step: step < TESTED or case.schedule(step)
    return case.schedule


def repeated(step: Step, times: int) -> None:
    for _ in range(times):
        step()


def ratios(rule: str, case: Case, rounds: int, watch: Watch, device: torch.device) -> list[float]:
    """Probed over bare time of groups of steps, measured alternately, on several pairs of models made in turn: where a model
    lies in memory makes half a per cent."""
    bare, found = Case("bare", None, every(1)), list[float]()
    for pair in range(PAIRS):
        with contextlib.ExitStack() as stack:
            cases = ((bare, case), (case, bare))[pair % 2]
            made = [stack.enter_context(recorded(rule, c, device=device)) for c in cases]
            without, probed = made if pair % 2 == 0 else made[::-1]
            for step in (without, probed):
                repeated(step, case.group * (1 + -(-TESTED // case.group)))
            found += [_ratio(without, probed, case.group, watch) for _ in range(-(-rounds // PAIRS))]
    return found


def _ratio(without: Step, probed: Step, group: int, watch: Watch) -> float:
    """Of one group of steps each; its times are read after the last of them."""
    marks: dict[Step, list[tuple[Any, Any]]] = {without: [], probed: []}
    for start in range(0, group, AT_ONCE):
        for step in random.sample(list(marks), 2):
            begun = watch.mark()
            repeated(step, min(AT_ONCE, group - start))
            marks[step].append((begun, watch.mark()))
    seconds = {step: sum(itertools.starmap(watch.seconds, pairs)) for step, pairs in marks.items()}
    return seconds[probed] / seconds[without]


def peak(rule: str, case: Case, device: torch.device) -> float:
    """The most bytes during one step."""
    return memory.peak(functools.partial(recorded, rule, case, batches=1, device=device), device)


def main() -> None:
    parser = measuring.options(__doc__, device="cpu")
    parser.add_argument("--steps", type=int, default=2000, help="of each kind, a case")
    parser.add_argument("--rule", default="fa")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = devices.parsed(parser)
    torch.set_num_threads(1)
    random.seed(0)
    rows, against = [], f"bare step of {options.rule}"
    for case in CASES:
        if options.only in case.what:
            rounds = max(options.steps // case.group, 12)
            found = ratios(options.rule, case, rounds, options.watch, options.device)
            rows.append(measuring.row(case.what, against, found, case.reach))
    bare = peak(options.rule, CASES[0], options.device)
    for case in MEMORY:
        if options.only in case.what:
            found = [peak(options.rule, case, options.device) / bare]
            rows.append(measuring.row(f"memory: {case.what}", f"{against}: peak memory", found, case.reach))
    measuring.write(options.json, rows, options.clock, options.device)


if __name__ == "__main__":
    main()
