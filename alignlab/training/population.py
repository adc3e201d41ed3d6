"""A population: runs of one shape, trained in step as one stacked network.

Every weight, bias and B of a layer gets a leading run dimension (K, out, in), and one batched product through the rules' own
Function takes the place of K small ones. Weights, batches, feedback draws, learning rates and evaluations are those of each
run by itself, so that a member equals its sequential run but for rounding. What members may differ in is
:data:`alignlab.training.stacking.OWN`. What it takes: any of the models, by any rule but one of a user's
own that acts on single runs alone (``Rule.stacks``). Probes see the stacked network: the same code, whose values have
a dimension of runs.

Members whose loss is not finite have ended. They are carried along until enough of them have, and then the others go on in a
smaller network (:meth:`Population.narrow`), with all that is theirs: who stands beside a member changes its numbers as rounding
does, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignlab import rules
from alignlab.probes import Recorder
from alignlab.probes.metadata import rule_name, run_attrs
from alignlab.rules.randomness import random_states_kept
from alignlab.training import devices, fitting, stacking
from alignlab.training.apart import Apart
from alignlab.training.arguments import learning, specs_of, task_of
from alignlab.training.batches import blocks
from alignlab.training.errors import SpecError
from alignlab.training.evaluation import (
    EVALUATED_AT_ONCE,
    due,
    loss_of,
    losses_of_runs,
    sample_losses,
    scores_of_runs,
    tabulated,
)
from alignlab.training.graft import GradientGraft
from alignlab.training.loop import (
    attrs_of,
    built,
    coords_of,
    looks,
    splits_of,
    standard_probes,
)
from alignlab.training.optimizers import STACKED, clip_each, learning_rates, make_optimizer
from alignlab.training.spec import RunSpec
from alignlab.training.step_sizes import SetSizes
from alignlab.training.task import Task

if TYPE_CHECKING:
    import xarray as xr

ENDED = 0.25  # share of those carried that have ended, from which on the others go on without them
SMALLEST = 64  # samples of each run that are evaluated at once


def alone(spec: RunSpec) -> list[str]:
    """Why a run cannot be a member of a population; nothing where it can."""
    reasons = [] if stacking.family(spec) else [f"{spec.rule_name} acts on single runs alone"]
    if not fitting.takes_runs(spec):
        reasons.append(f"the loss of {spec.task} cannot be taken of many runs at once")
    return reasons


def train_population(
    specs: Iterable[RunSpec], *, task: Task | None = None, device: str | torch.device = "cpu"
) -> list[xr.Dataset]:
    """Train runs of one shape together, on one device; each one's dataset, as :func:`alignlab.training.train` returns it.

    Raises :class:`SpecError` for specs that cannot be one population, saying why, and for a device that is not to be had.
    """
    specs = specs_of(specs)
    check(specs)
    task, device = task_of(specs[0], task), devices.present(device)
    with learning(task), random_states_kept(device):
        return Population(specs, task, device).go()


def check(specs: Sequence[RunSpec]) -> None:
    """Raise :class:`SpecError` unless the specs can be one population."""
    reasons = list(dict.fromkeys(reason for spec in specs for reason in alone(spec)))
    first, common = specs[0], stacking.shared(specs[0])
    for spec in specs:
        own = stacking.shared(spec)
        fields = [name for name in RunSpec.model_fields if getattr(own, name) != getattr(common, name)]
        if fields:
            differ = ", ".join(
                f"{name} ({getattr(first, name)!r}, {getattr(spec, name)!r})" for name in fields
            )
            reasons.append(f"members must share all but {', '.join(stacking.OWN)}; they differ in {differ}")
            break
    if not reasons and len({stacking.family(spec) for spec in specs}) > 1:
        names = ", ".join(sorted({spec.rule_name for spec in specs}))
        reasons.append(f"these rules, or their settings, cannot stand side by side: {names}")
    if reasons:
        raise SpecError(f"no population: {'; '.join(reasons)}. Train these runs one by one (lockstep=False)")


class Population:
    """``specs`` as members, in the order of their lanes; ``places``: where each stood in what was given."""

    def __init__(self, specs: Sequence[RunSpec], task: Task, device: torch.device) -> None:
        self.places = sorted(range(len(specs)), key=lambda i: stacking.lane(specs[i]))
        self.specs, self.task, self.loss = [specs[i] for i in self.places], task, loss_of(specs[0], task)
        self.spec, self.due, self.device = specs[0], due(specs[0]), device
        members = [built(spec, task).to(device) for spec in self.specs]
        self.about = [_described(spec, task, model) for spec, model in zip(self.specs, members, strict=True)]
        self.model = stacking.stacked_model(members)
        self.needs_closure = any(m.rule.closure for m in rules.feedback_layers(self.model).values())
        fitting.check_numbers(self.spec, task, self.loss, self.needs_closure)
        self.parameters = list(self.model.parameters())
        self.optimizer = STACKED[self.spec.optimizer](self.parameters, self.specs)
        self.train, self.splits = splits_of(self.spec, task, device)
        self.rates = learning_rates(self.specs, self.parameters[0].dtype).to(device)
        self.largest = torch.tensor([float("inf") if s.clip is None else s.clip for s in self.specs]).to(
            self.parameters[0]
        )
        self._ones = torch.ones_like(self.largest)
        self.clips = any(spec.clip is not None for spec in self.specs)
        self.clipped = torch.zeros(self.spec.steps * self.clips, len(specs), dtype=torch.bool, device=device)
        self.carried = list(range(len(specs)))
        # the same where the losses are, so that no read makes a GPU wait
        self.here = torch.tensor(self.carried, device=device)
        grafts = [spec.graft for spec in self.specs]
        self.interventions: list[GradientGraft | SetSizes] = []
        if any(grafts):
            self.interventions.append(GradientGraft(self.model, grafts))
        if any(spec.step_sizes for spec in self.specs):
            self.interventions.append(SetSizes(self.model, self.specs))
        self.recorder = Recorder(
            self.model, self.optimizer, standard_probes(self.spec.spectra_every), looks(self.spec)
        )
        self.evaluations: list[dict[int, dict[str, float]]] = [{} for _ in specs]
        self.ended: dict[int, tuple[int, str]] = {}  # last step and status

    def go(self) -> list[xr.Dataset]:
        """Train; the datasets in the order of the specs."""
        self.recorder.attach()
        status = "crashed"
        try:
            self._train()
            status = "diverged" if len(self.ended) == len(self.specs) else "finished"
        finally:
            self.recorder.detach(status)
            for intervention in self.interventions:
                intervention.close()
        self._end(self._alive(), self.spec.steps, "finished")
        recorded = Apart(self.recorder.to_dataset())
        order = sorted(range(len(self.specs)), key=self.places.__getitem__)
        return [self._dataset(k, recorded) for k in order]

    def _train(self) -> None:
        for step, rows in enumerate(self.batches()):
            if step in self.due:
                self._evaluate(self._alive(), step)
            self.step(step, rows)
            if len(self.ended) == len(self.specs):
                break
            if len(self.ended) - (len(self.specs) - len(self.here)) >= ENDED * len(self.here):
                self.narrow(self._alive())

    def batches(self) -> Iterator[Tensor]:
        """The indices (K, N) of each step, of those who are carried then."""
        streams = [blocks(spec, len(self.train)) for spec in self.specs]
        while True:
            here = self.here
            together = [block for k in self.carried if (block := next(streams[k], None)) is not None]
            if not together:
                return
            for rows in torch.stack(together, 1).to(self.device):
                yield rows if here is self.here else rows[torch.searchsorted(here, self.here)]

    def narrow(self, members: Sequence[int]) -> None:
        """Go on with these members alone, who are carried; between two steps."""
        carried = torch.tensor(members, device=self.device)
        rows, self.here, self.carried = torch.searchsorted(self.here, carried), carried, list(members)
        for layer in stacking.stacked_layers(self.model):
            layer.narrow(rows)
        self.parameters = list(self.model.parameters())
        self.optimizer.narrow(rows, self.parameters)
        self.rates, self.largest = self.rates[:, rows], self.largest[rows]
        for intervention in self.interventions:
            intervention.narrow(rows)
        self.recorder.narrow(rows)

    def step(self, step: int, batch: Tensor) -> None:
        """One optimizer step of those carried, after those whose loss is not finite have ended; ``batch``: indices (K, N)."""
        for parameter in self.parameters:
            parameter.grad = None
        self.optimizer.param_groups[0]["lr"] = self.rates[step]
        losses = self._losses(_at(self.train.inputs, batch), _at(self.train.targets, batch))
        if not math.isfinite(losses.detach().sum()):  # one number to read; large losses may sum to infinity
            bad = [k for k in self.here[~losses.isfinite()].tolist() if k not in self.ended]
            if bad:
                self._end(bad, step, "diverged")
            if len(self.ended) == len(self.specs):
                return
        if not self.needs_closure:
            losses.backward(self._ones[: len(losses)])  # type: ignore[no-untyped-call]
        for intervention in self.interventions:
            intervention.apply()
        if self.clips:
            self.clipped[step, self.here] = clip_each(self.parameters, self.largest)
        self.optimizer.step()

    def _losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Each run's loss, (K,); where the rule takes a closure, its backward pass has been."""
        if not self.needs_closure:
            return losses_of_runs(self.loss, self.model(x), y)
        return rules.backward(self.model, lambda: sample_losses(self.loss, self.model(x), y, runs=True))

    def _alive(self) -> list[int]:
        return [k for k in self.carried if k not in self.ended]

    def _end(self, members: Sequence[int], step: int, status: str) -> None:
        if members:
            self._evaluate(members, step)
        finite = torch.stack([p.detach().isfinite().flatten(1).all(1) for p in self.parameters]).all(0)
        broken = set(self.here[~finite].tolist())
        for k in members:
            self.ended[k] = step, "diverged" if k in broken else status

    @torch.no_grad()
    def _evaluate(self, members: Sequence[int], step: int) -> None:
        found: dict[str, Tensor] = {}
        maps = self.spec.model != "mlp"  # so large that a few runs' leave the cache
        at_once = max(SMALLEST, EVALUATED_AT_ONCE // len(self.here)) if maps else EVALUATED_AT_ONCE
        for name, split in self.splits.items():
            pieces = [
                self.model(x.expand(len(self.here), *x.shape)) for x in torch.split(split.inputs, at_once)
            ]
            found |= scores_of_runs(self.task, self.loss, name, torch.cat(pieces, 1), split.targets)
        values = {name: column.tolist() for name, column in found.items()}
        place = {k: i for i, k in enumerate(self.carried)}
        for k in members:
            self.evaluations[k][step] = {name: column[place[k]] for name, column in values.items()}

    def _dataset(self, k: int, recorded: Apart) -> xr.Dataset:
        """A member's run out of what was ``recorded`` of all."""
        (coords, attrs), (last_step, status) = self.about[k], self.ended[k]
        clipped = None if self.specs[k].clip is None else self.clipped[:last_step, k].tolist()
        finite = all(map(math.isfinite, self.evaluations[k][last_step].values()))
        end = {"status": status if finite else "diverged", "last_step": last_step}
        return recorded.run(k, last_step, tabulated(self.evaluations[k], clipped), coords | end, attrs)


def _at(x: Tensor, batch: Tensor) -> Tensor:
    """``x[batch]``, in half the time."""
    return x.index_select(0, batch.flatten()).view(*batch.shape, *x.shape[1:])


def _described(
    spec: RunSpec, task: Task, model: torch.nn.Module
) -> tuple[dict[str, object], dict[str, object]]:
    """The coordinates and attributes of a member, as a recorder of it alone would note them."""
    optimizer = make_optimizer(spec, model.parameters())
    coords = coords_of(spec, task, rule_name(model)) | {"run_id": spec.digest()}
    return coords, run_attrs(model, optimizer) | attrs_of(spec, task)
