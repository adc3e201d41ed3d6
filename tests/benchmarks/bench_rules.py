"""What a rule costs: one training step of the converted net against the same net of plain layers under backprop.

    python tests/benchmarks/bench_rules.py [--rounds 100] [--device cuda] [--json PATH] [rule ...]

784-512-512-10 with ReLU, batch 128, cross entropy, SGD, one thread. In each round every net makes a few steps, in an
order drawn anew; the median of the rounds' ratios to the plain net is printed beside the ratio to reach, with the
quartiles. "plain" against itself shows what the machine's noise makes of 1. ``--clock process`` counts this process's
own time, for machines that others use too. On a GPU a round's times are read at its end.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import devices
import measuring
import torch
from devices import Watch
from torch import nn

from alignlab.rules import RULES, convert

REACH = {"fa": 1.05, "kolen_pollack": 1.05, "usf": 1.10, "frsf": 1.10, "brsf": 1.30, "dfa": 0.95}
STEPS = 3  # a net and round


def net_of(rule: str | None) -> nn.Module:
    torch.manual_seed(0)
    sizes = (784, 512, 512, 10)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*layers[:-1])
    return net if rule is None else convert(net, rule, generator=torch.Generator().manual_seed(1))


def step_of(rule: str | None, device: torch.device) -> Callable[[], None]:
    net = net_of(rule).to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    x, y = torch.randn(128, 784).to(device), torch.randint(10, (128,)).to(device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def measured(rules: list[str], rounds: int, watch: Watch, device: torch.device) -> dict[str, list[float]]:
    """The ratios of each rule, one a round."""
    made = {"baseline": None, "plain": None, **{rule: rule for rule in rules}}
    steps = {name: step_of(rule, device) for name, rule in made.items()}
    order, times = list(steps), {name: [0.0] * rounds for name in steps}
    for i in range(-2, rounds):  # two rounds to warm up
        random.shuffle(order)
        marks = {}
        for name in order:
            start = watch.mark()
            for _ in range(STEPS):
                steps[name]()
            marks[name] = start, watch.mark()
        for name, (start, stop) in marks.items():
            times[name][max(i, 0)] = watch.seconds(start, stop)
    own = times.pop("baseline")
    return {name: [t / o for t, o in zip(found, own, strict=True)] for name, found in times.items()}


def main() -> None:
    parser = measuring.options(__doc__, device="cpu")
    parser.add_argument(
        "rules", nargs="*", help="names of rules; all those with a ratio to reach where none is given"
    )
    parser.add_argument("--rounds", type=int, default=100)
    options = devices.parsed(parser)
    torch.set_num_threads(1)
    random.seed(0)
    rules = options.rules or ["bp", *(rule for rule in REACH if rule in RULES)]
    against = "plain layers under backprop"
    rows = [
        measuring.row(f"a step by {rule}", against, ratios, REACH.get(rule))
        for rule, ratios in measured(rules, options.rounds, options.watch, options.device).items()
    ]
    measuring.write(options.json, rows, options.clock, options.device)


if __name__ == "__main__":
    main()
