"""When a run is evaluated: first and last step always, and in between evenly or geometrically."""

import pytest

from alignlab.training import RunSpec, train
from alignlab.training.evaluation import due


def test_even_steps_have_equal_distances():
    assert sorted(due(RunSpec(steps=100, evaluations=5))) == [0, 25, 50, 75, 100]


def test_geometric_steps_have_equal_ratios():
    assert sorted(due(RunSpec(steps=1000, evaluations=5, spacing="geometric"))) == [0, 1, 10, 100, 1000]
    crowded = sorted(due(RunSpec(steps=10, evaluations=12, spacing="geometric")))
    assert crowded[:3] == [0, 1, 2]
    assert crowded[-1] == 10
    assert len(crowded) == len(set(crowded)) < 12


def test_steps_between_two_are_rounded_to_the_nearer():
    assert sorted(due(RunSpec(steps=10, evaluations=4))) == [0, 3, 7, 10]
    assert sorted(due(RunSpec(steps=50, evaluations=4, spacing="geometric"))) == [0, 1, 7, 50]
    assert sorted(due(RunSpec(steps=60, evaluations=4, spacing="geometric"))) == [0, 1, 8, 60]


@pytest.mark.parametrize("spacing", ["even", "geometric"])
@pytest.mark.parametrize(("steps", "evaluations"), [(1, 2), (7, 2), (7, 3), (1, 9)])
def test_first_and_last_step_are_evaluated(spacing, steps, evaluations):
    found = due(RunSpec(steps=steps, evaluations=evaluations, spacing=spacing))
    assert {0, steps} <= found <= set(range(steps + 1))


def test_a_run_is_evaluated_when_it_is_due():
    small = RunSpec(task="xor_bits", hidden=(2,), batch_size=1, steps=20, record_every=0)
    spec = small.changed(evaluations=6, spacing="geometric")
    run = train(spec)
    assert run["step"].values.tolist() == sorted(due(spec))
