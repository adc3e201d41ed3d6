"""What a run reports of itself besides its probes: loss and accuracy on the splits, and how often its gradient was clipped."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from alignlab.measures.quantities import QUANTITIES
from alignlab.training.errors import SpecError
from alignlab.training.spec import RunSpec
from alignlab.training.task import Loss, Task, Threshold, absolute_error, half_squared_error

if TYPE_CHECKING:
    import xarray as xr

EVALUATED_AT_ONCE = 256  # samples: larger pieces leave the cache, and a convolutional net takes twice as long
FEW = 16  # classes: below it, softmaxes of many samples are several times faster along another dimension than the last
BY_RUNS = "of many runs at once: train these one by one (lockstep=False)"
BY_SAMPLES = "sample by sample, as this rule needs it: write it in tensor operations alone"
Evaluations = Mapping[int, Mapping[str, float]]  # step → name → value


def loss_of(spec: RunSpec, task: Task) -> Loss:
    """The loss that the spec asks for, as ``loss(output, target)``."""
    if spec.loss == "absolute" and not task.train.targets.is_floating_point():
        raise SpecError(
            f"loss is 'absolute', which needs values to compare with: the targets of {task.name} are classes"
        )
    return absolute_error if spec.loss == "absolute" else task.loss


def due(spec: RunSpec) -> set[int]:
    """The steps at which the splits are evaluated, 0 and the last among them.

    Spaced geometrically, there are fewer than ``spec.evaluations`` where several fall on one of the first steps.
    """
    if spec.spacing == "geometric":
        return {0} | {round(x) for x in np.geomspace(spec.steps, 1, spec.evaluations - 1)}
    return {round(x) for x in np.linspace(0, spec.steps, spec.evaluations)}


def sample_losses(loss: Loss, output: Tensor, targets: Tensor, runs: bool = False) -> Tensor:
    """The loss of each sample, (N,): of batches of one. Their mean is the loss of the batch. Of several ``runs`` (K, N).

    Of any loss by ``torch.func.vmap``; those of alignlab's own tasks take any leading dimensions, at less cost.
    """
    leading = 1 + runs
    if loss in (half_squared_error, absolute_error):
        return loss(output.unsqueeze(leading), targets.unsqueeze(leading))
    if loss is cross_entropy and not targets.is_floating_point() and targets.dim() == leading:
        return _cross_entropies(output, targets)

    def alone(o: Tensor, t: Tensor) -> Tensor:
        return loss(o[None], t[None])

    return _at_once(_mapped(alone) if runs else alone, output, targets, BY_SAMPLES)


def losses_of_runs(loss: Loss, output: Tensor, targets: Tensor) -> Tensor:
    """The loss of each of K runs, (K,), from outputs (K, N, …) and targets (K, N, …).

    Of any loss by ``torch.func.vmap``; those of alignlab's own tasks and of logits take the dimension of runs themselves, at
    less cost.
    """
    if loss in (half_squared_error, absolute_error):
        return loss(output, targets)
    if loss is cross_entropy and not targets.is_floating_point() and targets.dim() == 2:
        return _cross_entropies(output, targets).mean(1)
    # mapped, errors of near 0 are rounded otherwise, and drtp reads targets from them
    if loss is binary_cross_entropy_with_logits:
        return binary_cross_entropy_with_logits(output, targets, reduction="none").flatten(1).mean(1)
    return _at_once(loss, output, targets, BY_RUNS)


def _mapped(loss: Loss) -> Loss:
    mapped: Any = torch.func.vmap(loss)
    return mapped  # type: ignore[no-any-return]


def _at_once(loss: Loss, output: Tensor, targets: Tensor, told: str) -> Tensor:
    """A user's own loss along the first dimension. Raises :class:`SpecError` where ``torch.func.vmap`` cannot take it."""
    try:
        return _mapped(loss)(output, targets)
    except Exception as error:  # whatever a loss raises of a batch of one
        reason = textwrap.shorten(str(error), 150, placeholder="…")
        raise SpecError(f"the task's loss cannot be taken {told} ({reason})") from error


def _cross_entropies(output: Tensor, targets: Tensor) -> Tensor:
    """Of each sample, (N,) or (K, N), from outputs (..., C)."""
    if output.dim() == 3 and output.shape[-1] < FEW:
        return cross_entropy(output.mT, targets, reduction="none")
    flat = cross_entropy(output.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view(targets.shape)


def scores_of_runs(task: Task, loss: Loss, split: str, output: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """``scores`` of each of K runs, (K,), from outputs (K, N, …) and the targets (N, …) of all."""
    targets = targets.expand(len(output), *targets.shape)
    found = {f"{split}_loss": losses_of_runs(loss, output, targets)}
    if task.has_accuracy:
        rate = torch.func.vmap(accuracy, in_dims=(0, 0, None))
        found[f"{split}_accuracy"] = rate(output, targets, task.threshold)
    return found


def scores(task: Task, loss: Loss, split: str, output: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """``{split}_loss`` and, for tasks that have one, ``{split}_accuracy`` of a network's output, as scalars."""
    found = {f"{split}_loss": loss(output, targets)}
    if task.has_accuracy:
        found[f"{split}_accuracy"] = accuracy(output, targets, task.threshold)
    return found


def accuracy(output: Tensor, targets: Tensor, threshold: Threshold = None) -> Tensor:
    """The share of samples whose largest of outputs (N, C) is at the target's class (N,).

    With a ``threshold``: whose outputs (N, C) are all on the same side of it as the targets (N, C); none is right on it. Of
    two, the first is the outputs'.
    """
    if threshold is not None and targets.shape == output.shape:
        of_outputs, of_targets = threshold if isinstance(threshold, tuple) else (threshold, threshold)
        return ((output - of_outputs) * (targets - of_targets) > 0).all(-1).double().mean()
    if targets.is_floating_point() or targets.shape != output.shape[:-1]:
        raise ValueError(
            f"accuracy needs a class for each sample, not targets {tuple(targets.shape)} of {targets.dtype} for outputs "
            f"{tuple(output.shape)}: a task without classes has has_accuracy=False, or a threshold for its values"
        )
    return (output.argmax(-1) == targets).double().mean()


def tabulated(evaluations: Evaluations, clipped: Sequence[bool] | None = None) -> xr.Dataset:
    """Evaluations as a dataset on step; with ``clipped``, whether each step was, also the share between evaluations."""
    import xarray as xr

    steps = sorted(evaluations)
    columns = {name: [evaluations[s][name] for s in steps] for name in evaluations[steps[-1]]}
    if clipped is not None:
        shares = [float(np.mean(clipped[a:b])) for a, b in pairwise(steps)]
        columns["clip_fraction"] = [np.nan, *shares]
    with np.errstate(over="ignore"):  # a loss that left float32 is infinite there
        table = {
            name: ("step", np.asarray(column, np.float32), QUANTITIES[name].attrs())
            for name, column in columns.items()
        }
    return xr.Dataset(table, {"step": np.asarray(steps, np.int64)})


def clip(parameters: Sequence[Tensor], largest: float) -> bool:
    """Scale the gradients to the norm ``largest`` where all together exceed it (Pascanu et al. 2013); whether they did."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, largest)
    return bool(norm > largest)
