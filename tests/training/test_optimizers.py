"""The learning rate of a step: the schedule's share of the spec's, after a warm-up in even steps."""

from __future__ import annotations

import pytest

from alignlab.training import RunSpec
from alignlab.training.evaluation import tabulated
from alignlab.training.optimizers import learning_rate


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


def test_the_share_of_clipped_steps_is_that_since_the_last_evaluation() -> None:
    found = tabulated({step: {"train_loss": 1.0} for step in (0, 2, 4)}, [True, True, False, True])
    assert found["clip_fraction"].values.tolist() == pytest.approx([float("nan"), 1, 0.5], nan_ok=True)
