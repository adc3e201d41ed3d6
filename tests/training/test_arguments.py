"""Whoever hands over something else than a spec, specs or a task is told so; and training turns gradients on for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import xarray as xr

from alignlab.training import RunSpec, SpecError, train
from alignlab.training.population import train_population

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


@pytest.mark.parametrize("made", TRAINED)
def test_nothing_is_trained_in_inference_mode(made: Callable[[], xr.Dataset]) -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode.*call it outside"):
        made()
