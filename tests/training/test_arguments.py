"""Whoever hands over something else than a spec, specs or a task is told so; and training turns gradients on for itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from threading import Event
from typing import Any

import pytest
import torch
import xarray as xr

from alignlab.training import RunSpec, SpecError, models, tasks, train
from alignlab.training.arguments import ALONE
from alignlab.training.population import train_population
from alignlab.training.task import Task

FIELDS: dict[str, Any] = {"task": "xor", "hidden": (3,), "steps": 3, "batch_size": 2, "record_every": 0}
SPEC = RunSpec(**FIELDS)
call: Any = train_population
alone: Any = train


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: call([]), "expected a list of RunSpecs, not an empty one"),
        (lambda: call(SPEC), r"expected several specs, not one: give a list, \[spec\]"),
        (lambda: call([FIELDS]), r"expected a RunSpec, not dict \({'task': 'xor'.*by RunSpec\(\*\*fields\)"),
        (lambda: call(FIELDS), "expected a list of RunSpecs, not dict"),
        (lambda: call(3), r"expected a list of RunSpecs, not int \(3\)"),
        (lambda: call([SPEC], task="xor"), "task is 'xor', expected a Task.*named by the spec"),
        (lambda: alone(FIELDS), r"expected a RunSpec, not dict .*by RunSpec\(\*\*fields\)"),
        (lambda: alone("xor"), r"expected a RunSpec, not str \('xor'\)"),
        (lambda: alone(SPEC, task="xor"), "task is 'xor', expected a Task.*named by the spec"),
    ],
)
def test_what_is_no_spec_or_task_is_refused_by_name(ask: Callable[[], Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        ask()


def test_specs_may_come_one_after_the_other() -> None:
    found = train_population(SPEC.changed(seed=seed) for seed in (4, 2))
    assert [int(run["seed"]) for run in found] == [4, 2]


TRAINED: list[Callable[[], xr.Dataset]] = [lambda: train(SPEC), lambda: train_population([SPEC])[0]]


@pytest.mark.parametrize("made", TRAINED)
def test_gradients_that_the_caller_switched_off_are_computed_all_the_same(
    made: Callable[[], xr.Dataset],
) -> None:
    with torch.no_grad():
        found = made()
        assert not torch.is_grad_enabled()
    xr.testing.assert_identical(found, made())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@contextmanager
def coarse_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "setting",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: default_dtype(torch.float64),
        lambda: torch.device("meta"),
        coarse_products,
    ],
    ids=["autocast", "default dtype", "default device", "precision of products"],
)
@pytest.mark.parametrize("made", [train, lambda spec: train_population([spec])[0]])
def test_what_the_caller_has_set_for_other_work_changes_no_number(
    made: Callable[[RunSpec], xr.Dataset], setting: Callable[[], AbstractContextManager[Any]]
) -> None:
    spec = SPEC.changed(task="linear_toy", hidden=(20,), batch_size=64, rule="fa")
    usual = made(spec)
    with setting():
        found = made(spec)
    xr.testing.assert_identical(found, usual)


def test_a_task_has_its_numbers_whatever_the_default_type_and_device() -> None:
    usual = {name: tasks.load(name).fingerprint for name in ("xor", "xor_bits")}
    tasks._cached.cache_clear()
    with default_dtype(torch.float64), torch.device("meta"):
        assert {name: tasks.load(name).fingerprint for name in usual} == usual


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # which is what is tried
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_process_that_is_forked_while_a_thread_trains_can_train() -> None:
    held, done = Event(), Event()

    def hold() -> None:
        with ALONE:
            held.set()
            done.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hold)
        held.wait()
        child = os.fork()
        if not child:
            os._exit(not ALONE.acquire(blocking=False))
        done.set()
    assert os.waitpid(child, 0)[1] == 0


def test_runs_in_two_threads_do_not_draw_from_each_others_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, network, other = [train(SPEC.changed(seed=seed)) for seed in (1, 2)], models._network, Event()
    entered: list[int] = []

    def slowly(spec: RunSpec, task: Task) -> torch.nn.Module:
        entered.append(spec.seed)
        if len(entered) == 2:
            other.set()
        else:
            other.wait(0.3)  # for the other thread to be here too
        return network(spec, task)

    monkeypatch.setattr(models, "_network", slowly)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(train, [SPEC.changed(seed=seed) for seed in (1, 2)]))
    assert sorted(entered) == [1, 2]
    for run, own in zip(found, usual, strict=True):
        xr.testing.assert_identical(run, own)


@pytest.mark.parametrize("made", TRAINED)
def test_nothing_is_trained_in_inference_mode(made: Callable[[], xr.Dataset]) -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode.*call it outside"):
        made()
