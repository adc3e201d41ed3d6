"""Losses of many runs at once are those of each."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, l1_loss

from alignlab.training import SpecError, Task, tasks
from alignlab.training.evaluation import FEW, losses_of_runs, sample_losses, scores, scores_of_runs, tabulated
from alignlab.training.task import Loss, absolute_error, half_squared_error


def two_thirds(output: Tensor, target: Tensor) -> Tensor:
    """A loss of a user's own."""
    return l1_loss(output, target) * 2 / 3


@pytest.mark.parametrize("loss", [cross_entropy, half_squared_error, absolute_error, two_thirds])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("width", [4, FEW])
def test_losses_of_runs_and_samples_and_their_derivatives_are_those_of_each(
    loss: Loss, n: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(3, n, width, generator=generator, dtype=torch.float64, requires_grad=True)
    classes = torch.randint(width, (3, n), generator=generator)
    values = torch.randn(3, n, width, generator=generator, dtype=torch.float64)
    targets = classes if loss is cross_entropy else values
    each = sample_losses(loss, output, targets, runs=True)
    torch.testing.assert_close(each[1], sample_losses(loss, output[1], targets[1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(each[2, -1], loss(output[2, -1:], targets[2, -1:]), rtol=1e-12, atol=1e-12)
    together = losses_of_runs(loss, output, targets)
    torch.testing.assert_close(each.mean(1), together, rtol=1e-12, atol=1e-12)
    alone = torch.stack([loss(o, t) for o, t in zip(output, targets, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert together.unique().numel() == 3
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    derivatives = [torch.autograd.grad(values @ weights, output)[0] for values in (together, alone)]
    torch.testing.assert_close(*derivatives, rtol=1e-12, atol=1e-12)


def test_logits_that_are_right_to_the_last_digit_have_the_errors_of_a_run_alone() -> None:
    """vmap's are rounded otherwise, to 0 or just not, which a rule that reads targets from errors tells apart."""
    output = torch.linspace(-60, 60, 24, requires_grad=True).view(2, 4, 3)
    for targets in (torch.zeros(2, 4, 3), torch.ones(2, 4, 3)):
        alone = [binary_cross_entropy_with_logits(o, t) for o, t in zip(output, targets, strict=True)]
        together = losses_of_runs(binary_cross_entropy_with_logits, output, targets)
        torch.testing.assert_close(together, torch.stack(alone))
        errors = [
            torch.autograd.grad(losses.sum(), output, retain_graph=True)[0]
            for losses in (together, torch.stack(alone))
        ]
        assert torch.equal(*(error == 0 for error in errors))


def with_a_number(output: Tensor, target: Tensor) -> Tensor:
    return l1_loss(output, target) * output.max().item()


def of_two_kinds(output: Tensor, target: Tensor) -> Tensor:
    return l1_loss(output, target) if output.max() > 0 else -output.sum()


@pytest.mark.parametrize("loss", [with_a_number, of_two_kinds])
def test_a_loss_that_cannot_be_mapped_is_refused_with_the_way_out(loss: Loss) -> None:
    output, targets = torch.ones(2, 5, 3), torch.zeros(2, 5, 3)
    with pytest.raises(
        SpecError, match=r"runs at once: train these one by one \(lockstep=False\) \(vmap: It"
    ):
        losses_of_runs(loss, output, targets)
    for runs in (True, False):
        with pytest.raises(SpecError, match=r"sample by sample.*tensor operations alone \(vmap: It"):
            sample_losses(loss, output, targets, runs=runs)


@pytest.mark.parametrize(
    "task", [tasks.load("xor"), tasks.load("xor_bits"), tasks.load("linear_toy")], ids=lambda t: t.name
)
def test_scores_of_runs_are_those_of_each(task: Task) -> None:
    targets = task.validation.targets
    generator = torch.Generator().manual_seed(0)
    output = torch.rand(5, len(targets), task.n_out, generator=generator)
    together = scores_of_runs(task, task.loss, "test", output, targets)
    assert set(together) == {"test_loss"} | ({"test_accuracy"} if task.has_accuracy else set())
    for name, column in together.items():
        alone = torch.stack([scores(task, task.loss, "test", o, targets)[name] for o in output])
        torch.testing.assert_close(column, alone)
        assert column.unique().numel() > 1


def test_outputs_with_positions_are_those_of_each_run_too() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(2, 4, 3, 3, generator=generator)  # as many positions as classes
    targets = torch.randint(3, (2, 4, 3), generator=generator)
    alone = torch.stack([cross_entropy(o, t) for o, t in zip(output, targets, strict=True)])
    torch.testing.assert_close(losses_of_runs(cross_entropy, output, targets), alone)
    each = torch.stack([cross_entropy(o[None], t[None]) for o, t in zip(output[0], targets[0], strict=True)])
    torch.testing.assert_close(sample_losses(cross_entropy, output[0], targets[0]), each)


def test_a_loss_beyond_float32_is_infinite_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = tabulated({0: {"train_loss": 1.0}, 5: {"train_loss": 1e60}})
    assert table["train_loss"].values.tolist() == [1.0, float("inf")]
