"""Losses of many runs at once are those of each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, l1_loss

from alignlab.training.evaluation import losses_of_runs, sample_losses
from alignlab.training.tasks import Loss, absolute_error, half_squared_error


def two_thirds(output: Tensor, target: Tensor) -> Tensor:
    """A loss of a user's own."""
    return l1_loss(output, target) * 2 / 3


@pytest.mark.parametrize("loss", [cross_entropy, half_squared_error, absolute_error, two_thirds])
@pytest.mark.parametrize("n", [1, 5])
def test_losses_of_runs_and_samples_and_their_derivatives_are_those_of_each(loss: Loss, n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(3, n, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    classes = torch.randint(4, (3, n), generator=generator)
    targets = (
        classes if loss is cross_entropy else torch.randn(3, n, 4, generator=generator, dtype=torch.float64)
    )
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
