"""What a rule costs: one training step of the converted net against the same net of plain layers under backprop.

    python tests/benchmarks/bench_rules.py [--rounds 100] [--json PATH] [rule ...]

784-512-512-10 with ReLU, batch 128, cross entropy, SGD, one thread. In each round every net makes a few steps, in an
order drawn anew; the median of the rounds' ratios to the plain net is printed beside the ratio to reach, with the
quartiles. "plain" against itself shows what the machine's noise makes of 1. ``--clock process`` counts this process's
own time, for machines that others use too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import measuring
import torch
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


def step_of(rule: str | None) -> Callable[[], None]:
    net = net_of(rule)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    x, y = torch.randn(128, 784), torch.randint(10, (128,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def measured(rules: list[str], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """The ratios of each rule, one a round."""
    steps = {"baseline": step_of(None), "plain": step_of(None), **{rule: step_of(rule) for rule in rules}}
    order, times = list(steps), {name: [0.0] * rounds for name in steps}
    for i in range(-2, rounds):  # two rounds to warm up
        random.shuffle(order)
        for name in order:
            start = clock()
            for _ in range(STEPS):
                steps[name]()
            times[name][max(i, 0)] = clock() - start
    own = times.pop("baseline")
    return {name: [t / o for t, o in zip(found, own, strict=True)] for name, found in times.items()}


def main() -> None:
    parser = measuring.options(__doc__)
    parser.add_argument(
        "rules", nargs="*", help="names of rules; all those with a ratio to reach where none is given"
    )
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    rules = options.rules or ["bp", *(rule for rule in REACH if rule in RULES)]
    against = "plain layers under backprop"
    rows = [
        measuring.row(f"a step by {rule}", against, ratios, REACH.get(rule))
        for rule, ratios in measured(rules, options.rounds, measuring.CLOCKS[options.clock]).items()
    ]
    measuring.write(options.json, rows, options.clock)


if __name__ == "__main__":
    main()
