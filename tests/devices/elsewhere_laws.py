"""What must hold on any device, said of the device ``elsewhere``; run by ``test_elsewhere.py``, a process for all.

    python elsewhere_laws.py FOLDER

compiles the device into the folder, and prints a line of JSON for each law: its name, and what went wrong.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import elsewhere
import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

from alignlab import rules
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
from alignlab.store import open_runs
from alignlab.training import RunSpec, Sweep, planner, train
from alignlab.training.population import train_population
from alignlab.training.workers import Workers

Law = Callable[[], None]
LAWS: dict[str, Law] = {}
FAR = elsewhere.NAME
SHAPES: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (8,), "batch_size": 16, "steps": 6, "splits": ("validation",)},
    "lenet": {"model": "lenet", "batch_size": 8, "steps": 2, "record_every": 1, "splits": ("validation",)},
}
DRAWN_THERE = {
    "dfa",
    "ifa",
    "drtp",
    "brsf",
    "rerandomised",
    "weight_mirror",
    "node_perturbation",
    "weight_perturbation",
}
ARGS: dict[str, dict[str, Any]] = {"rescaled": {"of": "fa"}, "noisy_backprop": {"cosine": 0.5}}
TESTED = (0, 1, 2, 4, 8, 16)  # measured steps at which a recording tests itself, and reads


def law(function: Law) -> Law:
    LAWS[function.__name__] = function
    return function


def specs_of(rule: str, model: str, n: int = 2, **fields: Any) -> list[RunSpec]:
    base = {
        "task": "mnist_small",
        "rule": rule,
        "rule_args": ARGS.get(rule, {}),
        "lr": 0.02,
        "record_every": 2,
    }
    return [RunSpec(**{**base, **SHAPES[model], **fields}, seed=seed) for seed in range(n)]


def close(one: xr.Dataset, other: xr.Dataset, rounding: float = 1e-3) -> None:
    """Angles to 0.1°, which a recorded update's rounding takes; but for what only counts, all else relative to its largest."""
    for name in one.data_vars:
        a, b = one[name].values, other[name].values
        if a.dtype.kind == "f" and not counts(str(name)) and not np.isnan(a).all():
            size = 100.0 if str(name).endswith("angle") else np.nanmax(np.abs(a)) + 1e-30
            np.testing.assert_allclose(a / size, b / size, atol=rounding, rtol=0, err_msg=str(name))


def counts(name: str) -> bool:
    """Of samples, of which one may lie at a bound."""
    return name == "wall_time" or name.endswith(("accuracy", "fraction"))


def own_law(name: str, run: Law) -> None:
    run.__name__ = name
    law(run)


def equal_everywhere(rule: str, model: str) -> None:
    """A run there is the CPU's, where its rule draws nothing on the device, and a population's members are those runs."""
    specs = specs_of(rule, model)
    together = train_population(specs, device=FAR)
    for spec, member in zip(specs, together, strict=True):
        alone = train(spec, device=FAR)
        assert alone.attrs["device"] == member.attrs["device"] == f"{FAR}:0"
        close(alone, member)
        if rule not in {*DRAWN_THERE, "noisy_backprop"}:
            close(train(spec), alone)


for _model in SHAPES:
    for _rule in sorted(rules.RULES):
        if (_rule, _model) != ("ifa", "lenet"):  # which it refuses
            own_law(f"equal_everywhere-{_rule}-{_model}", functools.partial(equal_everywhere, _rule, _model))


@law
def members_with_interventions_equal_their_own_runs() -> None:
    made = [
        *specs_of("fa", "mlp", graft={"direction": "bp", "magnitude": "rule"}),
        *specs_of("sign_sync", "mlp", graft={"direction": "rule", "magnitude": "bp"}),
        *specs_of("bp", "mlp", clip=0.1),
    ]
    for spec, member in zip(made, train_population(made, device=FAR), strict=True):
        close(train(spec, device=FAR), member)
        close(train(spec), member)


@law
def members_that_diverge_leave_and_the_others_go_on() -> None:
    made = [
        spec.changed(lr=lr)
        for spec, lr in zip(specs_of("bp", "mlp", 4, steps=40), (0.02, 1e6, 1e6, 0.05), strict=True)
    ]
    found = train_population(made, device=FAR)
    assert [str(run["status"].values) for run in found] == ["finished", "diverged", "diverged", "finished"]
    close(train(made[3]), found[3])


@law
def a_sweep_stores_what_it_trained_there_and_the_planner_measures_there() -> None:
    cells = [s for rule in ("bp", "fa") for s in specs_of(rule, "mlp", 8, task="xor", hidden=(4,))]
    planner.WORTH, worth = 0, planner.WORTH
    asked = planner.price_of.cache_info().misses
    try:
        with tempfile.TemporaryDirectory() as store:
            assert Sweep(cells, store).run(Workers(device=FAR)) == len(cells)
            assert Sweep(cells, store).run() == 0
            assert open_runs(store).attrs["device"] == f"{FAR}:0"
    finally:
        planner.WORTH = worth
    assert planner.price_of.cache_info().misses > asked


@law
def random_states_are_as_before() -> None:
    module = torch.get_device_module(FAR)
    before = module.get_rng_state(), torch.get_rng_state()
    train(specs_of("node_perturbation", "mlp")[0], device=FAR)
    train_population(specs_of("weight_perturbation", "mlp"), device=FAR)
    assert torch.equal(module.get_rng_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


# Probes in a loop of one's own ----------------------------------------------------------------------------------------


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(100, 12),
        nn.Tanh(),
        nn.Linear(12, 5),
    )


def recorded(rule: str, device: str, probes: list[Probe], steps: int = 20) -> tuple[xr.Dataset, list[int]]:
    """A converted net on the device, what was recorded of it at each step, and how often each step waited."""
    model = rules.convert(net(), rule, generator=torch.Generator().manual_seed(1)).to(device)
    optimizer, generator = (
        torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        torch.Generator().manual_seed(2),
    )
    batches = [
        (torch.randn(16, 1, 7, 7, generator=generator), torch.randint(5, (16,), generator=generator))
        for _ in range(steps)
    ]
    moved, waited = [(x.to(device), y.to(device)) for x, y in batches], []
    with Recorder(model, optimizer, probes, every(1)) as recorder:
        for x, y in moved:
            elsewhere.waits.clear()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            waited.append(sum(elsewhere.waits.values()))
    return recorder.to_dataset(), waited


def recorded_alike(rule: str) -> None:
    probes = [GradientAngle(), EffectiveLR(), WeightAngle(), Loss(), FeedbackSpectrum(5)]
    close(recorded(rule, "cpu", probes, 6)[0], recorded(rule, FAR, probes, 6)[0])


def recorded_without_waiting(rule: str) -> None:
    waited = recorded(rule, FAR, [GradientAngle(), EffectiveLR(), WeightAngle(), Loss()])[1]
    assert all(n == 0 for step, n in enumerate(waited) if step not in TESTED), waited
    assert sum(waited) > 0, "not even the tests of the recording waited: waits are not seen"


for _rule in ("bp", "fa", "usf", "frsf", "sign_sync", "kolen_pollack"):
    own_law(f"recorded_alike-{_rule}", functools.partial(recorded_alike, _rule))
for _rule in ("bp", "fa", "dfa", "sign_sync", "kolen_pollack", "weight_mirror", "rerandomised"):
    own_law(f"recorded_without_waiting-{_rule}", functools.partial(recorded_without_waiting, _rule))


class Noise(nn.Module):
    """From the device's own generator, as dropout on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x).round()


def repeated_exactly(rule: str) -> None:
    """Were the device's random state another in the further passes, so would be the masks, and the losses by far."""
    torch.manual_seed(0)
    small = {"step" if rule == "soap" else "sigma": 1e-4}
    model = nn.Sequential(nn.Linear(6, 8), Noise(), nn.Tanh(), nn.Linear(8, 3))
    model = rules.convert(model, rule, generator=torch.Generator().manual_seed(1), **small).to(FAR)
    x, y = torch.ones(4, 6, device=FAR), torch.zeros(4, 3, device=FAR)
    seen: list[float] = []

    def closure() -> Tensor:
        each = F.mse_loss(model(x), y, reduction="none").mean(1)
        seen.append(float(each.mean()))
        return each

    rules.backward(model, closure)
    assert len(seen) > 1
    assert max(seen) - min(seen) < 1e-3, seen


for _rule in ("soap", "node_perturbation", "weight_perturbation"):
    own_law(f"repeated_exactly-{_rule}", functools.partial(repeated_exactly, _rule))


@law
def a_converted_model_and_its_copies_learn_where_they_are_moved() -> None:
    model = rules.convert(net(), "fa", generator=torch.Generator().manual_seed(1)).to(FAR)
    x: Tensor = torch.ones(2, 1, 7, 7, device=FAR)
    for one in (model, copy.deepcopy(model), rules.revert(copy.deepcopy(model))):
        one(x).square().sum().backward()
        assert {p.grad.device.type for p in one.parameters() if p.grad is not None} == {FAR}
        assert {b.device.type for b in one.buffers()} == {FAR}


# The device itself ----------------------------------------------------------------------------------------------------


def refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except RuntimeError:
        return True
    return False


@law
def tensors_and_generators_of_two_devices_do_not_meet() -> None:
    here, there = torch.ones(3, 3), torch.ones(3, 3, device=FAR)
    assert refused(lambda: there + here)
    assert refused(lambda: here @ there)
    assert refused(lambda: F.linear(there, here))
    assert refused(lambda: there.normal_(generator=torch.Generator()))
    assert torch.equal((there @ there).cpu(), here @ here)


@law
def a_number_that_is_read_is_a_wait() -> None:
    number = torch.ones(2, 2, device=FAR)
    for read in (
        lambda: number.sum().item(),
        lambda: bool(number.any()),
        number.cpu,
        lambda: number[number > 0],
    ):
        elsewhere.waits.clear()
        read()
        assert elsewhere.waits


@law
def one_seed_gives_other_numbers_there() -> None:
    far = torch.empty(4, device=FAR).normal_(generator=torch.Generator(FAR).manual_seed(1))
    assert not torch.equal(far.cpu(), torch.empty(4).normal_(generator=torch.Generator().manual_seed(1)))


def main() -> None:
    elsewhere.load(Path(sys.argv[1]))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name, run in LAWS.items():
        wrong, start = "", time.perf_counter()
        try:
            run()
        except Exception:
            wrong = traceback.format_exc()
        print(
            json.dumps({"name": name, "wrong": wrong, "seconds": round(time.perf_counter() - start, 2)}),
            flush=True,
        )


if __name__ == "__main__":
    main()
