"""A population: runs that differ in their seed alone, trained in step as one stacked network.

Every weight, bias and B of a layer gets a leading run dimension (K, out, in), and one batched product through the rules' own
Function takes the place of K small ones. Weights, batches, feedback draws and evaluations are those of each run by itself, so
that a member equals its sequential run but for rounding. What it takes: multilayer perceptrons by rules that hand errors from
layer to layer, unobserved (``record_every`` 0) and without graft or clipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from alignlab.rules import FeedbackLayer
from alignlab.rules.choosing import make_rules
from alignlab.rules.credit import Credit
from alignlab.rules.functions import LinearFunction
from alignlab.training import tasks
from alignlab.training.batches import batches
from alignlab.training.evaluation import scores
from alignlab.training.loop import Run, make_optimizer
from alignlab.training.spec import RunSpec, SpecError
from alignlab.training.tasks import Task

if TYPE_CHECKING:
    import xarray as xr

MEMBERS = 100  # of a pack: what an interrupt costs, and what is shared out among processes
RULES = (
    "bp",
    "fa",
    "rerandomised",
    "usf",
    "brsf",
    "frsf",
    "sign_sync",
)  # B is all that they change, and by refresh alone


def packs(specs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """Specs by what they have in common besides their seed, at most :data:`MEMBERS` together."""
    alike: dict[RunSpec, list[RunSpec]] = {}
    for spec in specs:
        alike.setdefault(spec.changed(seed=0), []).append(spec)
    return [own[i : i + MEMBERS] for own in alike.values() for i in range(0, len(own), MEMBERS)]


def train_population(specs: Sequence[RunSpec], *, task: Task | None = None) -> list[xr.Dataset]:
    """Train runs that differ in their seed alone; each one's dataset, as :func:`alignlab.training.train` returns it.

    Raises :class:`SpecError` for specs that cannot be one population, saying why.
    """
    check(specs)
    task = tasks.load(specs[0].task) if task is None else task
    with torch.random.fork_rng(devices=[]):
        return _Population([Run(spec, task, torch.device("cpu"), []) for spec in specs]).go()


def check(specs: Sequence[RunSpec]) -> None:
    """Raise :class:`SpecError` unless the specs can be one population."""
    first = specs[0]
    rules = make_rules(first.rule, **first.rule_args).values()
    refused = {
        "the specs differ in more than their seed": len({spec.changed(seed=0) for spec in specs}) > 1,
        f"model is {first.model}, populations are of mlps": first.model != "mlp",
        "probes see one run at a time: set record_every and record_log to 0": first.record_every > 0
        or first.record_log > 0,
        "a graft takes the step size of one run": first.graft is not None,
        "clipping takes the norm of one run": first.clip is not None,
        **{
            f"{rule.name} has no stacked form, the rules that do are {', '.join(RULES)}": rule.name
            not in RULES
            for rule in rules
        },
    }
    reasons = [reason for reason, applies in refused.items() if applies]
    if reasons:
        raise SpecError(f"no population: {'; '.join(reasons)}. Train these runs one by one (lockstep=False)")


class _Population:
    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs, self.task, self.loss = runs, runs[0].task, runs[0].loss
        self.spec, self.train, self.splits = runs[0].spec, runs[0].train, runs[0].splits
        self.model = _stacked_model([run.model for run in runs])
        self.layers = [layer for layer in self.model.modules() if isinstance(layer, StackedLinear)]
        self.optimizer = make_optimizer(self.spec, list(self.model.parameters()))
        self.found: dict[int, xr.Dataset] = {}

    def go(self) -> list[xr.Dataset]:
        for run in self.runs:
            run.recorder.attach()
        n = len(self.train)
        together = zip(*(batches(run.spec, n) for run in self.runs), strict=True)
        for step, rows in enumerate(together):
            if step in self.runs[0].due:
                self._evaluate(self._alive(), step)
            self._step(step, torch.stack(rows))
            if len(self.found) == len(self.runs):
                break
        self._end(self._alive(), self.spec.steps, "finished")
        return [self.found[k] for k in range(len(self.runs))]

    def _step(self, step: int, batch: Tensor) -> None:
        """One optimizer step of all, after those whose loss is not finite have ended; ``batch``: indices (K, N)."""
        self.optimizer.zero_grad()
        for layer in self.layers:
            layer.tick(step)
        losses = torch.func.vmap(self.loss)(self.model(self.train.inputs[batch]), self.train.targets[batch])
        if not bool(losses.isfinite().all()):
            bad = (~losses.isfinite()).nonzero().flatten().tolist()
            self._end([k for k in self._alive() if k in bad], step, "diverged")
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _alive(self) -> list[int]:
        return [k for k in range(len(self.runs)) if k not in self.found]

    def _end(self, members: Sequence[int], step: int, status: str) -> None:
        if members:
            self._evaluate(members, step)
        for k in members:
            self.runs[k].recorder.detach(status)
            self.found[k] = self.runs[k].dataset(step)

    @torch.no_grad()
    def _evaluate(self, members: Sequence[int], step: int) -> None:
        everyone = torch.func.vmap(scores, in_dims=(None, None, None, 0, None))
        found: dict[str, Tensor] = {}
        for name, split in self.splits.items():
            pieces = [self.model(x.expand(len(self.runs), *x.shape)) for x in torch.split(split.inputs, 4096)]
            found |= everyone(self.task, self.loss, name, torch.cat(pieces, 1), split.targets)
        values = {name: column.tolist() for name, column in found.items()}
        for k in members:
            self.runs[k].evaluations[step] = {name: column[k] for name, column in values.items()}


class StackedLinear(nn.Module):
    """The same layer of K networks, ``(K, N, in) → (K, N, out)``.

    Its parameters are stacks of the members'; the members' own become views of them. B is refreshed member by member, by the
    rule itself; ``lowest``: no signal passes through this layer, so that its B can stay.
    """

    def __init__(self, members: Sequence[FeedbackLayer], lowest: bool) -> None:
        super().__init__()
        self.members, self.credit = list(members), Credit()
        self.weight = _stacked([member.weight for member in members])
        self.bias = None if members[0].bias is None else _stacked([member.bias for member in members])
        self.feedback = self._carriers()
        self.changes = not lowest and members[0].rule.has_clock
        self.learns = self.weight.requires_grad or members[0].rule.every_forward

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = LinearFunction.apply(x, self.weight, self.bias, self.feedback, self.credit, True)
        return z

    @torch.no_grad()
    def tick(self, step: int) -> None:
        """What each member's own clock does at its forward pass: the weights, if they learn, changed once since the last."""
        if not self.changes or (step > 0 and not self.learns):
            return
        for member in self.members:
            vars(member)["clock"] = step  # what Module.__setattr__ does, without its search: there are many
            member.rule.refresh(member)
        self.feedback = self._carriers()

    def _carriers(self) -> Tensor | None:
        found = [member.feedback for member in self.members]
        return None if found[0] is None else torch.stack([b for b in found if b is not None])


def _stacked_model(models: Sequence[nn.Module]) -> nn.Sequential:
    """K multilayer perceptrons as one, for inputs with a leading run dimension."""
    layers: list[nn.Module] = []
    for modules in zip(*(model.children() for model in models), strict=True):
        members = [module for module in modules if isinstance(module, FeedbackLayer)]
        if members:
            layers.append(
                StackedLinear(members, lowest=not any(isinstance(x, StackedLinear) for x in layers))
            )
        else:
            layers.append(nn.Flatten(2) if isinstance(modules[0], nn.Flatten) else modules[0])
    return nn.Sequential(*layers)


def _stacked(parameters: Sequence[Tensor]) -> nn.Parameter:
    whole = nn.Parameter(torch.stack([p.detach() for p in parameters]), parameters[0].requires_grad)
    for parameter, row in zip(parameters, whole.detach(), strict=True):
        parameter.data = row
    return whole
