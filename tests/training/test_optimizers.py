"""The learning rate of a step: the schedule's share of the spec's, after a warm-up in even steps; what a stacked step calls."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from alignlab.training import RunSpec
from alignlab.training.evaluation import tabulated
from alignlab.training.optimizers import STACKED, clip_each, learning_rate, learning_rates


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [2, 2, 2, 2]),
        ({"warmup": 3}, [0.5, 1, 1.5, 2]),
        ({"lr_schedule": "linear"}, [2, 1.5, 1, 0.5]),
        ({"lr_schedule": "cosine"}, [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5]),
        ({"lr_schedule": "linear", "warmup": 1}, [1, 1.5, 1, 0.5]),
    ],
    ids=str,
)
def test_rates_are_those_by_hand(fields: dict[str, object], expected: list[float]) -> None:
    spec = RunSpec(task="xor", lr=2.0, steps=4, **fields)
    assert [learning_rate(spec, step) for step in range(4)] == pytest.approx(expected)


MIXED: list[dict[str, Any]] = [
    {},
    {"warmup": 3},
    {"lr_schedule": "linear"},
    {"lr": 0.3},
    {"warmup": 3},
    {"lr_schedule": "cosine"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_table_of_rates_has_each_runs_own(dtype: torch.dtype) -> None:
    specs = [RunSpec(task="xor", steps=5, seed=seed, **fields) for seed, fields in enumerate(MIXED)]
    expected = [[learning_rate(spec, step) for spec in specs] for step in range(5)]
    found = learning_rates(specs, dtype)
    assert found.is_contiguous()
    assert torch.equal(found, torch.tensor(expected, dtype=dtype))


def test_the_table_of_rates_takes_little_memory_beside_itself() -> None:
    specs = [RunSpec(task="xor", steps=10_000, seed=seed) for seed in range(20)]
    tracemalloc.start()  # of Python's objects and numpy's arrays, not of the table
    learning_rates(specs, torch.float32)
    assert tracemalloc.get_traced_memory()[1] < 4 * 10_000 * 20
    tracemalloc.stop()


def test_the_share_of_clipped_steps_is_that_since_the_last_evaluation() -> None:
    found = tabulated({step: {"train_loss": 1.0} for step in (0, 2, 4)}, [True, True, False, True])
    assert found["clip_fraction"].values.tolist() == pytest.approx([float("nan"), 1, 0.5], nan_ok=True)


def test_each_runs_gradient_is_clipped_as_torch_clips_it_alone_and_left_where_it_is_short() -> None:
    generator, largest = torch.Generator().manual_seed(0), torch.tensor([0.5, 3.9, 4.1, 100.0, float("inf")])
    own = [[torch.randn(shape, generator=generator) for shape in ((3, 2), (3,))] for _ in largest]
    own = [[4 * g / torch.cat([g.flatten() for g in run]).norm() for g in run] for run in own]  # of norm 4
    stacked = [nn.Parameter(torch.zeros(5, *shape)) for shape in ((3, 2), (3,))]
    for i, parameter in enumerate(stacked):
        parameter.grad = torch.stack([run[i] for run in own])
    assert clip_each(stacked, largest).tolist() == [True, True, False, False, False]
    for k, run in enumerate(own):
        alone = [nn.Parameter(torch.zeros_like(g)) for g in run]
        for parameter, g in zip(alone, run, strict=True):
            parameter.grad = g.clone()
        nn.utils.clip_grad_norm_(alone, float(largest[k]))
        for parameter, single in zip(stacked, alone, strict=True):
            torch.testing.assert_close(parameter.grad[k], single.grad)


def test_a_stacked_step_calls_its_hooks_once_around_the_update() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = STACKED["sgd"]([weight], [RunSpec(task="xor", lr=0.5, seed=seed) for seed in range(2)])
    seen: list[tuple[str, float]] = []
    before = optimizer.register_step_pre_hook(lambda *_: seen.append(("before", weight[0, 0].item())))
    optimizer.register_step_post_hook(lambda *_: seen.append(("after", weight[0, 0].item())))
    everyones = register_optimizer_step_post_hook(lambda *_: seen.append(("after all", weight[0, 0].item())))
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    assert seen == [("before", 1.0), ("after", 0.5), ("after all", 0.5)]
    before.remove()
    everyones.remove()
    optimizer.step()
    assert seen[3:] == [("after", 0.0)]
