"""Steps of a given length: a layer's gradient keeps its direction, and its step gets the size that the spec sets.

Sizes relative to ‖W‖ are those of You et al. 2017 (LARS) and Bernstein et al. 2020 (Fromage), who hold that they are what a
step does to a layer; sizes replayed from another run take the effect of one run's state on its steps out of the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from alignlab.rules import feedback_layers
from alignlab.rules.runs import beside
from alignlab.training.errors import SpecError
from alignlab.training.graft import length_of, ratio
from alignlab.training.optimizers import learning_rates
from alignlab.training.spec import RunSpec


class SetSizes:
    """Rewrites ``.grad`` between ``backward()`` and ``optimizer.step()``, of plain SGD.

    ``specs``: those of the runs of a stacked ``model``; of a model of one run that run's alone, with ``stacked`` False.
    """

    def __init__(self, model: nn.Module, specs: Sequence[RunSpec], *, stacked: bool = True) -> None:
        self._layers: dict[str, nn.Module] = dict(feedback_layers(model))
        like = next(model.parameters())
        rates = learning_rates(specs, torch.float64)[..., None]
        wanted = torch.stack([_table(spec, list(self._layers)) for spec in specs], 1) / rates
        wanted = wanted.to(
            like
        )  # (steps, K, layers): ‖ΔW‖ / lr, or that over ‖W‖; NaN where a step is left alone
        relative = torch.tensor([s.step_sizes is not None and s.step_sizes.relative for s in specs]).to(
            like.device
        )
        self._wanted, self._relative = (wanted, relative) if stacked else (wanted[:, 0], relative[0])
        self._step = 0

    def close(self) -> None:
        """Nothing to give back."""

    def narrow(self, rows: Tensor) -> None:
        """The model goes on with these ``rows`` of its runs alone. Between two steps."""
        self._wanted, self._relative = self._wanted[:, rows], self._relative[rows]

    @torch.no_grad()
    def apply(self) -> None:
        """Give the gradients of the pass that has just ended their sizes."""
        for layer, size in zip(self._layers.values(), self._wanted[self._step].unbind(-1), strict=True):
            if isinstance(layer.weight.grad, Tensor):
                self._resize(layer, layer.weight.grad, size)
        self._step += 1

    def _resize(self, layer: nn.Module, gradient: Tensor, size: Tensor) -> None:
        assert isinstance(layer.weight, Tensor)
        size = torch.where(self._relative, size * length_of(layer, layer.weight), size)
        factor = torch.where(size.isnan(), 1.0, ratio(size, length_of(layer, gradient)))
        for parameter in layer.parameters(recurse=False):
            if parameter.grad is not None:
                parameter.grad = parameter.grad * beside(factor.to(parameter.grad.dtype), parameter)


def _table(spec: RunSpec, layers: Sequence[str]) -> Tensor:
    """The sizes that a run's spec sets, (steps, layers); NaN where it sets none."""
    found = np.full((spec.steps, len(layers)), np.nan)
    if (given := spec.step_sizes) is None:
        return torch.from_numpy(found)
    if not isinstance(given.sizes, Mapping):
        return torch.from_numpy(np.full_like(found, given.sizes))
    if unknown := [name for name in given.sizes if name not in layers]:
        raise SpecError(
            f"step_sizes: {', '.join(map(repr, unknown))} names no layer with weights; there are {', '.join(layers)}"
        )
    for place, name in enumerate(layers):
        if name in given.sizes:
            found[:, place] = np.interp(np.arange(spec.steps), given.steps, given.sizes[name])
    return torch.from_numpy(found)
