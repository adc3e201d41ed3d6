"""Weight perturbation: noise on the weights tells each weight its gradient. Jabri & Flower 1992 move one weight at a time,
Cauwenberghs 1993 all at once by ±σ; Gaussian noise on all at once, as here, is that of Werfel, Xie & Seung 2005."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from alignlab.rules.perturbation import Perturbation
from alignlab.rules.runs import beside

if TYPE_CHECKING:
    from alignlab.rules.passes import Passes


class WeightPerturbation(Perturbation):
    """``G = ΔL ξ / σ²`` with noise ξ ~ N(0, σ²) on every trained parameter that the loss depends on, on all at once.

    G is no ``deltaᵀ h``: the rule has no error at the units. Biases and normalisations learn alike. All samples share the
    weights, so a loss for each sample is averaged first. Whatever the closure's loss contains is estimated, penalties
    included; parameters outside the model get no gradient.
    """

    name = "weight_perturbation"
    explicit = True

    def teach(self, passes: Passes) -> Tensor:
        loss = passes.first()
        objective = passes.objective(loss)
        learners = list(passes.learners(loss).values())
        self.check_resolution({loss.dtype, *(p.dtype for p in learners)})
        noise = passes.noise
        totals = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in learners]
        for _ in range(self.samples):
            drawn = {p: noise.like(tuple(p.shape), p.dtype, p.device).mul_(self.sigma) for p in learners}
            change = self.change(objective, partial(_perturbed, passes, drawn))
            for total, xi in zip(totals, drawn.values(), strict=True):
                total += beside(change.to(total), xi) * xi
        scale = 1 / (self.sigma**2 * self.samples)
        passes.gradients = {id(p): (t * scale).to(p.dtype) for p, t in zip(learners, totals, strict=True)}
        passes.land(objective)
        return objective.detach()


def _perturbed(passes: Passes, noise: Mapping[nn.Parameter, Tensor], sign: int) -> Tensor:
    with _moved(noise, sign):
        return passes.objective(passes.again())


@contextmanager
def _moved(noise: Mapping[nn.Parameter, Tensor], sign: int) -> Iterator[None]:
    """Within the block the parameters hold other values; their version counters, which layers and autograd read, stay."""
    values = {parameter: parameter.data for parameter in noise}
    try:
        for parameter, xi in noise.items():
            parameter.data = values[parameter] + sign * xi
        yield
    finally:
        for parameter, value in values.items():
            parameter.data = value
