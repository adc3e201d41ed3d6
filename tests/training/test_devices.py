"""Where runs are trained: names, what is not here, and that the device given is the one that trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from alignlab.rules.randomness import random_states_kept
from alignlab.store import open_runs
from alignlab.training import RunSpec, Sweep, cells, devices, train
from alignlab.training.errors import SpecError, SweepError
from alignlab.training.population import train_population
from alignlab.training.workers import Workers

SPEC = RunSpec(task="xor", rule="fa", hidden=(4,), steps=6, record_every=2)
HERE = torch.cuda.is_available()
ENTRANCES: list[Callable[[Any], Any]] = [
    lambda device: train(SPEC, device=device),
    lambda device: train_population([SPEC], device=device),
    lambda device: Workers(device=device),
]


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cudda", "device is 'cudda', expected 'cpu', 'cuda', 'cuda:1' or the like"),
        (None, "device is None, expected 'cpu'"),
        ("meta", "device is 'meta', whose tensors hold no numbers"),
    ],
)
def test_what_names_no_device_is_told(entrance: Callable[[Any], Any], device: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        entrance(device)


@pytest.mark.skipif(HERE, reason="there is a CUDA device")
@pytest.mark.parametrize("entrance", ENTRANCES[:2])
def test_a_device_that_is_not_here_is_told_with_the_way_out(entrance: Callable[[Any], Any]) -> None:
    with pytest.raises(SpecError, match=r"device 'cuda:3' is not to be had here \(.*\): leave it out"):
        entrance("cuda:3")


@pytest.mark.skipif(HERE, reason="there is a CUDA device")
def test_workers_without_the_device_refuse_and_nothing_is_stored(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"the worker on .*: device 'cuda' is not to be had here"):
        Sweep([SPEC], tmp_path).run(Workers(device="cuda"))
    assert len(Sweep([SPEC], tmp_path).missing()) == 1


@pytest.mark.parametrize("lockstep", [False, True])
def test_a_sweep_trains_on_the_device_of_its_workers(
    lockstep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []

    def noted(trained: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(what: Any, *, device: torch.device) -> Any:
            asked.append(device)
            return trained(what)

        return stand_in

    monkeypatch.setattr(cells, "train", noted(train))
    monkeypatch.setattr(cells, "train_population", noted(train_population))
    monkeypatch.setattr(devices, "present", lambda given: torch.device(given))
    three = [SPEC.changed(seed=seed) for seed in range(3)]
    assert Sweep(three, tmp_path, lockstep=lockstep).run(Workers(device="cuda:1")) == 3
    assert set(asked) == {torch.device("cuda:1")}


def test_a_processor_tells_its_free_memory_and_has_nothing_to_wait_for() -> None:
    devices.wait_for(devices.CPU)
    assert devices.free_memory(devices.CPU) > 2**20


def test_random_states_are_kept_and_seeded() -> None:
    before = torch.get_rng_state()
    with random_states_kept(devices.CPU):
        devices.seed(3, devices.CPU)
        first = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    with random_states_kept(devices.CPU):
        devices.seed(3, devices.CPU)
        assert torch.equal(torch.rand(2), first)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), first)


def test_an_apple_gpu_has_one_random_state_which_is_kept_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no ``manual_seed_all``: every run on one ended in an AttributeError."""
    state = torch.tensor([1])
    monkeypatch.setattr(torch.mps, "manual_seed", lambda number: state.fill_(number))
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: state.clone())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda new, device: state.copy_(new))
    with random_states_kept(torch.device("mps")):
        devices.seed(3, torch.device("mps"))
        assert state == 3
    assert state == 1


def close(one: xr.Dataset, other: xr.Dataset) -> None:
    for name in ("train_loss", "feedback_gain", "gradient_angle", "weight_angle"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not HERE, reason="needs a CUDA device")
@pytest.mark.parametrize("model", ["mlp", "lenet"])
@pytest.mark.parametrize("rule", ["bp", "fa", "usf", "frsf", "sign_sync", "kolen_pollack", "soap"])
def test_runs_and_populations_on_a_gpu_are_the_cpus_to_rounding(
    rule: str, model: Any, tmp_path: Path
) -> None:
    """These rules draw nothing there."""
    shape: dict[str, Any] = {"hidden": (8,)} if model == "mlp" else {"model": model}
    base = RunSpec(task="mnist_small", rule=rule, steps=4, record_every=2, batch_size=16, lr=0.02, **shape)
    specs = [base.changed(seed=seed) for seed in range(2)]
    together = train_population(specs, device="cuda")
    for spec, member in zip(specs, together, strict=True):
        alone = train(spec, device="cuda")
        assert alone.attrs["device"] == member.attrs["device"] == "cuda:0"
        close(alone, member)
        close(alone, train(spec))
    assert Sweep(specs, tmp_path).run(Workers(device="cuda")) == 2
    assert open_runs(tmp_path).attrs["device"] == "cuda:0"
