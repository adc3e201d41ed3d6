"""Whether runs can work on a task of the user's own: seen before anything runs, where they would fail one by one.

One evaluation of an untrained network on every split that a run takes; alignlab's own tasks need none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from alignlab.rules.choosing import make_rules
from alignlab.rules.randomness import random_states_kept
from alignlab.training import models, tasks
from alignlab.training.arguments import learning
from alignlab.training.errors import SpecError
from alignlab.training.evaluation import EVALUATED_AT_ONCE, loss_of, losses_of_runs, sample_losses, scores
from alignlab.training.registry import beyond_data
from alignlab.training.spec import RunSpec
from alignlab.training.task import Loss, Split, Task, absolute_error, half_squared_error

PROBED, TOGETHER = 512, 8  # samples, and how many of them in a batch, on which a loss is held to be a mean
MEANS = (half_squared_error, absolute_error, cross_entropy)
SHAPING = ("task", "model", "hidden", "activation", "bias", "loss", "splits", "frozen")


def check(specs: Iterable[RunSpec]) -> None:
    """Raise :class:`SpecError` where the network or the loss of a run does not fit its task, which is one of the user's own."""
    alike: dict[Any, RunSpec] = {}
    for spec in specs:
        if tasks.TASKS.is_own(spec.task):
            key = (*(getattr(spec, name) for name in SHAPING), _by_samples(spec))
            alike.setdefault(key, spec)
    for spec in alike.values():
        task = tasks.load(spec.task)
        before = _held(task)
        _fits(spec, task)
        if _held(task) != before:
            raise SpecError(
                f"task {task.name}: its loss changes itself as it is called, so that a run would hang on those before it: "
                "let it compute from its two arguments alone"
            )


def check_numbers(spec: RunSpec, task: Task, loss: Loss, by_samples: bool) -> None:
    """Raise :class:`SpecError` where a run would end with wrong numbers and nothing would tell: a loss that is a sum, targets
    that are no class or have no dimension of outputs, one threshold for logits and bits; ``by_samples``, for a rule that
    compares forward passes: a loss that is no mean of single ones."""
    for name in dict.fromkeys(("train", *spec.splits)):
        _check_shape(task, name, getattr(task, name).targets)
        _check_classes(task, loss, name, getattr(task, name).targets)
    _check_threshold(task, loss)
    _check_mean(task, loss)
    if by_samples:
        check_samples(task, loss)


def _held(task: Task) -> str:
    try:
        return beyond_data(task)
    except SpecError:  # it cannot be told, which a sweep refuses by itself
        return ""


def takes_runs(spec: RunSpec) -> bool:
    """Whether the loss of a run can be taken of many runs at once, as populations do."""
    if not tasks.TASKS.is_own(spec.task):
        return True
    task = tasks.load(spec.task)
    return spec.loss == "absolute" or _takes_runs(task)


def _by_samples(spec: RunSpec) -> bool:
    return any(rule.closure for rule in make_rules(spec.rule, **spec.rule_args).values())


@lru_cache(maxsize=64)
def _takes_runs(task: Task) -> bool:
    loss, targets = task.loss, task.train.targets[:4]
    with learning(task):
        outputs = torch.randn(2, len(targets), task.n_out, generator=torch.Generator().manual_seed(0))
        try:
            found = losses_of_runs(loss, outputs, targets.expand(2, *targets.shape))
            alone = torch.stack([loss(output, targets) for output in outputs])
        except Exception:  # whatever a loss raises there, its runs are trained one by one
            return False
        return torch.allclose(found, alone, equal_nan=True)


def _fits(spec: RunSpec, task: Task) -> None:
    loss = loss_of(spec, task)
    for name in dict.fromkeys(("train", *spec.splits)):
        _check_inputs(task, name, getattr(task, name))
        _check_shape(task, name, getattr(task, name).targets)
        _check_type(task, name)
    with learning(task):
        model = models.build(spec, task)
        _check_gradient(task, loss, model(task.train.inputs[:2]), task.train.targets[:2])
        with torch.no_grad():
            for name in dict.fromkeys(("train", *spec.splits)):
                split = getattr(task, name)
                output = torch.cat([model(x) for x in torch.split(split.inputs, EVALUATED_AT_ONCE)])
                found = _scored(task, loss, name, output, split.targets)
                _check_targets(task, name, split.targets, found[f"{name}_loss"])
        check_numbers(spec, task, loss, _by_samples(spec))


def _check_inputs(task: Task, name: str, split: Split) -> None:
    if not split.inputs.is_floating_point():
        raise SpecError(
            f"task {task.name}: {name} inputs are {split.inputs.dtype}, expected floats: inputs.float()"
        )
    if not torch.isfinite(split.inputs).all():
        raise SpecError(
            f"task {task.name}: {name} inputs are not all finite: fill them in, or leave these samples out"
        )


def _check_shape(task: Task, name: str, targets: Tensor) -> None:
    if targets.is_floating_point() and targets.dim() == 1:
        raise SpecError(
            f"task {task.name}: {name} targets have shape {tuple(targets.shape)}, and (N, 1) outputs minus (N,) targets are "
            "N × N numbers: give values as (N, 1), targets[:, None], and classes as int64"
        )


def _check_targets(task: Task, name: str, targets: Tensor, found: Tensor) -> None:
    if targets.is_floating_point() and not (targets.isfinite().all() or found.isfinite()):
        raise SpecError(
            f"task {task.name}: {name} targets are not all finite, and the loss of them is {found.item()}: leave these "
            "samples out, or let the loss do so"
        )


def _check_classes(task: Task, loss: Loss, name: str, targets: Tensor) -> None:
    """Cross-entropy leaves samples of class -100 out of its mean; an accuracy, or a mean of single losses, does not."""
    if targets.is_floating_point() or not (
        loss is cross_entropy or (task.has_accuracy and task.threshold is None)
    ):
        return
    strange = targets[(targets < 0) | (targets >= task.n_out)]
    if len(strange):
        raise SpecError(
            f"task {task.name}: {len(strange)} {name} targets are no class ({strange[0].item()}), and classes are 0 to "
            f"{task.n_out - 1}: leave these samples out"
        )


def _check_threshold(task: Task, loss: Loss) -> None:
    if task.threshold is not None and task.train.targets.dtype == torch.bool:
        raise SpecError(
            f"task {task.name}: targets are true or false, expected bits as floats: targets.float()"
        )
    on_logits = loss is binary_cross_entropy_with_logits or isinstance(loss, nn.BCEWithLogitsLoss)
    if on_logits and task.has_accuracy and not isinstance(task.threshold, tuple):
        raise SpecError(
            f"task {task.name}: threshold is {task.threshold}, for outputs and targets alike, but to its loss outputs are "
            "logits, 0 where both bits are as likely: threshold=(0.0, 0.5), the outputs' and the targets'"
        )


def _check_mean(task: Task, loss: Loss) -> None:
    """A sum would be larger the larger a split is, and with it the steps the larger a batch."""
    if loss in MEANS:
        return
    targets = task.train.targets[:TOGETHER].cpu()
    output = torch.randn(len(targets), task.n_out, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), random_states_kept():
        try:
            once = float(loss(output, targets))
            twice = float(loss(output.repeat(2, 1), torch.cat([targets, targets])))
            grows = 0 < abs(once) < math.inf and math.isclose(twice, 2 * once, rel_tol=1e-4)
        except Exception:  # it takes no such outputs: what a network gives is tried as well
            return
    if grows:
        raise SpecError(
            f"task {task.name}: its loss of {len(targets)} samples is {once:.4g}, and of each of them twice {twice:.4g}, as of "
            "a sum: expected the mean over samples (reduction='mean'; .mean() for .sum(); no division by a fixed number)"
        )


def _check_type(task: Task, name: str) -> None:
    own, found = task.train.inputs.dtype, getattr(task, name).inputs.dtype
    if found != own:
        raise SpecError(
            f"task {task.name}: {name} inputs are {found} and train inputs {own}: give all splits one type"
        )


def _check_gradient(task: Task, loss: Loss, output: Tensor, targets: Tensor) -> None:
    found = _scored(task, loss, "train", output, targets)["train_loss"]
    if not isinstance(found, Tensor) or found.dim() or not found.requires_grad:
        raise SpecError(
            f"task {task.name}: its loss gives {_told(found)}, expected the mean over samples: a tensor without dimensions "
            "that has a gradient, made from the output by operations on tensors"
        )


def check_samples(task: Task, loss: Loss) -> None:
    """Raise :class:`SpecError` unless the loss of a batch is the mean of its samples' losses: rules that compare forward passes
    would make another one fall than the others do."""
    if loss in MEANS:
        return
    train, rows = task.train, _probed(task.train)
    batches = max(1, len(rows) // TOGETHER)
    generator = torch.Generator().manual_seed(0)
    for some in (rows[k::batches] for k in range(batches)):
        targets = train.targets[some].cpu()
        output = torch.randn(len(some), task.n_out, generator=generator)
        whole, mean = loss(output, targets).mean(), sample_losses(loss, output, targets).mean()
        if not torch.allclose(whole, mean, rtol=1e-3 if output.dtype.itemsize < 4 else 1e-4, equal_nan=True):
            raise SpecError(
                f"task {task.name}: its loss of {len(some)} samples is {whole:.4g}, and the mean of their single losses "
                f"{mean:.4g}: this rule needs them equal (no class weights, no sum, nothing between samples)"
            )


def _probed(split: Split) -> Tensor:
    """Samples from all over the split, whatever its order; each class among them, for a rare one may weigh most."""
    n, targets = len(split), split.targets
    rows = torch.linspace(0, n - 1, min(PROBED, n)).long()
    if targets.is_floating_point() or targets.dim() > 1:
        return rows
    _, first = np.unique(targets.cpu().numpy(), return_index=True)
    return torch.from_numpy(np.union1d(rows.numpy(), first))


def _told(found: Any) -> str:
    if not isinstance(found, Tensor):
        return f"a {type(found).__name__}"
    if found.dim():
        return f"a tensor of shape {tuple(found.shape)}"
    return "a tensor without a gradient"


def _scored(task: Task, loss: Loss, name: str, output: Tensor, targets: Tensor) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "error", "Using a target size"
            )  # torch's, of sizes that it then broadcasts
            return scores(task, loss, name, output, targets)
    except Exception as error:
        raise SpecError(
            f"task {task.name}: outputs {tuple(output.shape)} and {name} targets {tuple(targets.shape)} of {targets.dtype} do "
            f"not go together ({type(error).__name__}: {error!s:.200})"
        ) from error
