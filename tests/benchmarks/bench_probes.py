"""What recording costs: a training step under a Recorder against the bare step, as ratios.

    python tests/benchmarks/bench_probes.py [--steps 60] [--rule fa]

784-512-512-10, batch 128, one thread. Bare and probed steps alternate, so that the machine's moods meet both alike; the
median of the ratios is printed, with the quartiles.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from alignlab.probes import EffectiveLR, FeedbackSpectrum, GradientAngle, Loss, Recorder, WeightAngle, every
from alignlab.rules import convert

CASES: dict[str, tuple[Callable[[], list[Any]], Any]] = {
    "nothing scheduled": (
        lambda: [GradientAngle(), EffectiveLR(), WeightAngle(), Loss()],
        lambda step: False,
    ),
    "nothing to measure, every step": (lambda: [], every(1)),
    "GradientAngle, every step": (lambda: [GradientAngle()], every(1)),
    "GradientAngle + WeightAngle, every step": (lambda: [GradientAngle(), WeightAngle()], every(1)),
    "EffectiveLR, every step": (lambda: [EffectiveLR()], every(1)),
    "angles, rates and loss, every step": (
        lambda: [GradientAngle(), EffectiveLR(), WeightAngle(), Loss()],
        every(1),
    ),
    "angles, rates and loss, every 10th": (
        lambda: [GradientAngle(), EffectiveLR(), WeightAngle(), Loss()],
        every(10),
    ),
    "with spectra in each 10th": (
        lambda: [GradientAngle(), EffectiveLR(), WeightAngle(), FeedbackSpectrum(100)],
        every(10),
    ),
}


def model_of(rule: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = (784, 512, 512, 10)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return convert(nn.Sequential(*layers[:-1]), rule, generator=torch.Generator().manual_seed(1))


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    x, y = torch.randn(128, 784), torch.randint(10, (128,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        step()
    return time.perf_counter() - start


def ratios(rule: str, probes: list[Any], schedule: Any, pairs: int, group: int) -> list[float]:
    """Probed over bare time of ``group`` steps, measured alternately."""
    bare, probed = (model_of(rule) for _ in range(2))
    optimizers = [torch.optim.SGD(model.parameters(), 0.01, momentum=0.9) for model in (bare, probed)]
    steps = [step_of(model, optimizer) for model, optimizer in zip((bare, probed), optimizers, strict=True)]
    with Recorder(probed, optimizers[1], probes, schedule):
        for step in steps:
            timed(step, 2 * group)
        times = [(timed(steps[0], group), timed(steps[1], group)) for _ in range(pairs)]
    return [with_probes / without for without, with_probes in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="steps of each kind a case")
    parser.add_argument("--rule", default="fa")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, (probes, schedule) in CASES.items():
        group = 10 if schedule not in (every(1),) else 1
        found = ratios(options.rule, probes(), schedule, max(options.steps // group, 6), group)
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"{name:42} {middle:6.3f}  ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
