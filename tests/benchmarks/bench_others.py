r"""What others take for recording less: a step recorded by them against a step recorded by alignlab, on the same net.

    python3.11 -m venv /tmp/others && /tmp/others/bin/python -m pip install -c .ci/constraints.txt -e .
    /tmp/others/bin/python -m pip install --no-deps biotorch==0.0.16 cockpit-for-pytorch==1.0.2 \
        backpack-for-pytorch==1.7.1 einops==0.8.2 unfoldNd==0.2.3 json-tricks==3.17.3 "setuptools<81"
    /tmp/others/bin/python -m pip install -c .ci/constraints.txt wandb==0.31.0
    /tmp/others/bin/python tests/benchmarks/bench_others.py [--rounds 40] [--device cuda] [--clock process] [--json PATH]

None of them is needed by alignlab: they go to an environment of their own, without the dependencies that would bring another
torch (and which these parts of them do not import). What is not there, or does not run with this torch, is a line that says
so, on a GPU too. 784-512-512-10 with ReLU, batch 128, cross entropy, SGD, one thread, a new batch at each step.

A round times, in an order drawn anew, a few steps of four: the other's net recorded and bare, and alignlab's net recorded and
bare. The prices are recorded over bare, each of its own net; the ratio is the other's price over alignlab's, above 1 where
alignlab is the cheaper. What each records:

- BioTorch 0.0.16: the angle between B and W of each layer, of its own feedback alignment layers;
- Cockpit 1.0.2, economy: step size, distances, a histogram and norms of the gradient, tests of its noise by the gradients of
  single samples, loss. These are other things than alignlab's, and it knows backprop alone;
- wandb.watch: a histogram of each parameter's gradient, of alignlab's net by feedback alignment, logged offline;
- torch: the same calls of torch.histc, written here, with nothing logged;
- alignlab: the standard set is every layer's angles (gradient, errors, local, weights), gains, rates, norms, and the loss;
  WeightAngle, the angle between B and W and the norm of B.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import devices
import measuring
import torch
from bench_probes import (
    BATCHES,
    TESTED,
    Case,
    Step,
    batches_of,
    model_of,
    recorded,
    repeated,
    standard,
    step_of,
)
from devices import Watch
from torch import nn

from alignlab.probes import Probe, WeightAngle, every

BINS = 64  # as wandb has it
PATIENCE, FEWEST = 60.0, 8  # seconds, after which no round follows, but for the first so many
# given every how many steps to record (0: never), and where
Start = Callable[[int, torch.device], AbstractContextManager[Step]]


@dataclass(frozen=True)
class Other:
    """Another way to record: ``package`` on PyPI, ``what`` it records, by which ``rule``; beside ``more`` of alignlab."""

    name: str
    package: str
    what: str
    start: Start
    rule: str = "fa"
    more: str = "standard set"
    probes: Callable[[], list[Probe]] = standard


def plain_net(linear: Callable[[int, int], nn.Module] = nn.Linear) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [m for a, b in itertools.pairwise((784, 512, 512, 10)) for m in (linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


@contextmanager
def biotorch(period: int, device: torch.device) -> Iterator[Step]:
    """Its own layers, and its own angle of each at the steps that are recorded."""
    from biotorch.layers.fa import Linear
    from biotorch.training.metrics import compute_angles_module

    net, count, found = plain_net(Linear).to(device), itertools.count(), []
    step = step_of(net, torch.optim.SGD(net.parameters(), 0.01), BATCHES, device)

    def both() -> None:
        step()
        if period and next(count) % period == 0:
            found.append(compute_angles_module(net))

    yield both


@contextmanager
def cockpit(period: int, device: torch.device) -> Iterator[Step]:
    """As its manual has it, with the economy configuration; bare: the same net without it."""
    from backpack import extend
    from cockpit import Cockpit
    from cockpit.utils import schedules
    from cockpit.utils.configuration import configuration

    net, loss_of = plain_net().to(device), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    if not period:
        yield step_of(net, optimizer, BATCHES, device)
        return
    net, loss_of, each = extend(net), extend(loss_of), nn.CrossEntropyLoss(reduction="none")
    quantities = configuration("economy", track_schedule=schedules.linear(interval=period))
    watching, count = Cockpit(net.parameters(), quantities=quantities), itertools.count()
    batches = batches_of(BATCHES, device)

    def step() -> None:
        (x, y), now = next(batches), next(count)
        optimizer.zero_grad()
        out = net(x)
        loss = loss_of(out, y)
        facts = {
            "batch_size": len(x),
            "individual_losses": each(out, y),
            "loss": loss,
            "optimizer": optimizer,
        }
        with watching(now, info=facts):
            loss.backward(create_graph=watching.create_graph(now))
        optimizer.step()

    yield step


@contextmanager
def watched(period: int, device: torch.device) -> Iterator[Step]:
    """wandb offline: ``watch`` for the gradients, and ``log`` at the steps that are recorded."""
    with recorded("fa", Case("bare", None, every(1)), device=device) as bare:
        if not period:
            yield bare
            return
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    import wandb

    net, count = model_of("fa").to(device), itertools.count(1)
    step = step_of(net, torch.optim.SGD(net.parameters(), 0.01), BATCHES, device)
    with tempfile.TemporaryDirectory() as folder, wandb.init(dir=folder, mode="offline") as run:
        run.watch(net, log="gradients", log_freq=period)

        def both() -> None:
            step()
            if next(count) % period == 0:
                run.log({})

        yield both
        run.unwatch(net)


@contextmanager
def histograms(period: int, device: torch.device) -> Iterator[Step]:
    """The extent and 64 bins of each gradient, at the steps that are recorded."""
    net, count, found = model_of("fa").to(device), itertools.count(), []
    step = step_of(net, torch.optim.SGD(net.parameters(), 0.01), BATCHES, device)

    def both() -> None:
        step()
        if period and next(count) % period == 0:
            for parameter in net.parameters():
                flat = parameter.grad.flatten()
                low, high = flat.min().item(), flat.max().item()
                found.append(flat.histc(BINS, low, high).tolist())

    yield both


def weight_angle() -> list[Probe]:
    return [WeightAngle()]


OTHERS = [
    Other("BioTorch", "biotorch", "weight angles", biotorch, more="WeightAngle alone", probes=weight_angle),
    Other("BioTorch", "biotorch", "weight angles", biotorch),
    Other("Cockpit", "cockpit-for-pytorch", "economy", cockpit, rule="bp"),
    Other("wandb", "wandb", "watch (histograms of gradients)", watched),
    Other("torch", "torch", "histc of each gradient, not logged", histograms),
]


def measured(
    other: Other, period: int, rounds: int, watch: Watch, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each of the four, one a round; fewer rounds of what is very slow."""
    ours = Case(other.more, other.probes, every(period))
    starts = {
        "other": other.start(period, device), "other bare": other.start(0, device),
        "ours": recorded("fa", ours, device=device),
        "ours bare": recorded("fa", Case("bare", None, every(1)), device=device),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        steps = {name: stack.enter_context(start) for name, start in starts.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        warm = 1 + -(-TESTED // period)
        for i in range(rounds + warm):
            if i >= FEWEST + warm and sum(map(sum, times.values())) > PATIENCE:
                break
            marks = {}
            for name in random.sample(list(steps), len(steps)):
                start = watch.mark()
                repeated(steps[name], period)
                marks[name] = start, watch.mark()
            for name, (start, stop) in marks.items():
                times[name].append(watch.seconds(start, stop))
    return {name: found[warm:] for name, found in times.items()}


def rows(other: Other, period: int, rounds: int, watch: Watch, device: torch.device) -> list[measuring.Row]:
    """The other's price, alignlab's, and their ratio."""
    when = f"every {'step' if period == 1 else f'{period}th step'}"
    name = f"{other.name} {_version(other.package)}, {other.what}"
    what, against = f"{name}, {when}", f"alignlab, {other.more}, {when}"
    try:
        times = measured(other, period, rounds, watch, device)
    except Exception as error:
        return [measuring.skipped(what, against, f"{type(error).__name__}: {error}")]
    theirs = [a / b for a, b in zip(times["other"], times["other bare"], strict=True)]
    ours = [a / b for a, b in zip(times["ours"], times["ours bare"], strict=True)]
    return [
        measuring.row(what, f"its bare step ({other.rule})", theirs),
        measuring.row(against, "its bare step (fa)", ours),
        measuring.row(what, against, [t / o for t, o in zip(theirs, ours, strict=True)], 1, "more"),
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def main() -> None:
    parser = measuring.options(__doc__, device="cpu")
    parser.add_argument("--rounds", type=int, default=40)
    options = devices.parsed(parser)
    torch.set_num_threads(1)
    random.seed(0)
    found = []
    for other in OTHERS:
        for period in (1, 10):
            found += rows(other, period, options.rounds, options.watch, options.device)
    measuring.write(options.json, found, options.clock, options.device)


if __name__ == "__main__":
    main()
