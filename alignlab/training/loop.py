"""The training loop: a spec in, a dataset out. Plain PyTorch with a Recorder around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignlab import rules
from alignlab.probes import (
    EffectiveLR,
    FeedbackSpectrum,
    GradientAngle,
    Loss,
    Probe,
    Recorder,
    WeightAngle,
    every,
    log_spaced,
)
from alignlab.probes.metadata import rule_name
from alignlab.probes.schedule import Schedule, Together
from alignlab.rules.randomness import random_states_kept
from alignlab.training import devices, fitting, models
from alignlab.training.arguments import learning, spec_of, task_of
from alignlab.training.batches import batches
from alignlab.training.errors import SpecError
from alignlab.training.evaluation import (
    EVALUATED_AT_ONCE,
    clip,
    due,
    loss_of,
    sample_losses,
    scores,
    tabulated,
)
from alignlab.training.graft import GradientGraft
from alignlab.training.naming import version
from alignlab.training.optimizers import learning_rate, make_optimizer
from alignlab.training.spec import STREAMS, RunSpec
from alignlab.training.step_sizes import SetSizes
from alignlab.training.task import Split, Task

if TYPE_CHECKING:
    import xarray as xr

Progress = Callable[[int], None]


def standard_probes(spectra_every: int = 4) -> list[Probe]:
    """What a run records unless told otherwise; without eigenvalues where ``spectra_every`` is 0."""
    spectra = [FeedbackSpectrum(every=spectra_every)] if spectra_every else []
    return [GradientAngle(), WeightAngle(), EffectiveLR(), *spectra, Loss()]


def train(
    spec: RunSpec,
    *,
    probes: list[Probe] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    task: Task | None = None,
) -> xr.Dataset:
    """Train one run and return what was recorded, with the evaluations, as a dataset on (step, layer, mode).

    Evaluations at step t are of the weights after t updates, as are the probes' values; ``last_step`` is the number of
    updates made. A run whose loss stops being finite ends there, with status ``diverged``, and is returned like any other.
    ``task`` replaces the one that the spec names; ``progress(1)`` is called after each step. The global random state is left
    as it was. On another ``device`` than the CPU a run begins at the same weights and feedback, and differs by rounding; what
    a rule draws there at its first pass (direct rules) or at every one are other numbers.

    Raises :class:`SpecError` where ``spec`` or ``task`` is something else, and for a device that is not to be had.
    """
    task, device = task_of(spec_of(spec), task), devices.present(device)
    probes = standard_probes(spec.spectra_every) if probes is None else probes
    with learning(task), random_states_kept(device):
        devices.seed(spec.stream("noise"), device)
        return Run(spec, task, device, probes).go(progress)


class Run:
    """One run: what its spec names, built, and trained by :meth:`go`."""

    def __init__(self, spec: RunSpec, task: Task, device: torch.device, probes: list[Probe]) -> None:
        self.spec, self.task, self.device = spec, task, device
        self.loss = loss_of(spec, task)
        self.train, self.splits = splits_of(spec, task, device)
        self.model = built(spec, task).to(device)
        self.needs_closure = any(m.rule.closure for m in rules.feedback_layers(self.model).values())
        fitting.check_numbers(spec, task, self.loss, self.needs_closure)
        self.optimizer = make_optimizer(spec, list(self.model.parameters()))
        self.recorder = Recorder(
            self.model,
            self.optimizer,
            probes,
            looks(spec),
            attrs=attrs_of(spec, task),
            coords=coords_of(spec, task, rule_name(self.model)),
            run_id=spec.digest(),
        )
        self.due = due(spec)
        self.evaluations: dict[int, dict[str, float]] = {}
        self.clipped: list[bool] | None = None if spec.clip is None else []

    def go(self, progress: Progress | None) -> xr.Dataset:
        """Train, and return what was recorded."""
        spec = self.spec
        graft = GradientGraft(self.model, spec.graft) if spec.graft is not None else None
        sizes = SetSizes(self.model, [spec], stacked=False) if spec.step_sizes is not None else None
        grafting = graft or sizes
        self.recorder.attach()
        status, step = "finished", 0
        try:
            for step, batch in enumerate(batches(spec, len(self.train))):
                if step in self.due:
                    self.evaluations[step] = self._evaluate()
                self.optimizer.param_groups[0]["lr"] = learning_rate(spec, step)
                if not self._step(batch.to(self.device), grafting):
                    status = "diverged"
                    break
                if progress is not None:
                    progress(1)
        except BaseException:
            self.recorder.detach("crashed")
            raise
        finally:
            if grafting is not None:
                grafting.close()
        self.recorder.detach(status)
        done = step if status == "diverged" else spec.steps
        self.evaluations[done] = self._evaluate()
        return self.dataset(done)

    def _step(self, batch: Tensor, grafting: GradientGraft | SetSizes | None) -> bool:
        """One optimizer step; False where the loss is not finite."""
        self.optimizer.zero_grad()
        x, y = self.train.inputs[batch], self.train.targets[batch]
        if self.needs_closure:
            loss = rules.backward(self.model, lambda: sample_losses(self.loss, self.model(x), y))
        else:
            loss = self.loss(self.model(x), y)
        if not math.isfinite(loss.item()):
            return False
        if not self.needs_closure:
            loss.backward()  # type: ignore[no-untyped-call]
        if grafting is not None:
            grafting.apply()
        if self.spec.clip is not None and self.clipped is not None:
            self.clipped.append(clip(list(self.model.parameters()), self.spec.clip))
        self.optimizer.step()
        return True

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        self.model.eval()
        found: dict[str, Tensor] = {}
        for name, split in self.splits.items():
            output = torch.cat([self.model(x) for x in torch.split(split.inputs, EVALUATED_AT_ONCE)])
            found |= scores(self.task, self.loss, name, output, split.targets)
        self.model.train()
        return {name: float(value) for name, value in found.items()}

    def dataset(self, last_step: int) -> xr.Dataset:
        """What was recorded and evaluated up to ``last_step``, the number of updates made."""
        evaluated = tabulated(self.evaluations, self.clipped)
        both = self.recorder.to_dataset().merge(evaluated, join="outer", combine_attrs="override")
        finite = all(map(math.isfinite, self.evaluations[last_step].values()))
        status = self.recorder.status if finite else "diverged"
        return both.assign_coords(status=status, last_step=last_step)


def built(spec: RunSpec, task: Task) -> nn.Module:
    """The spec's network with its rule, as it is before the first step; on the CPU, so that all devices begin alike."""
    model = models.build(spec, task)
    generator = torch.Generator().manual_seed(spec.stream("feedback"))
    try:
        rules.convert(model, spec.rule, generator=generator, **spec.rule_args)
    except ValueError as error:  # patterns are held against the layers only here
        raise SpecError(f"rule: {error}") from error
    return model


def looks(spec: RunSpec) -> Schedule:
    """The steps at which the spec's probes look."""
    evenly = (every(spec.record_every),) if spec.record_every else ()
    growing = (log_spaced(spec.steps, spec.record_log),) if spec.record_log else ()
    return Together((*evenly, *growing))


def attrs_of(spec: RunSpec, task: Task) -> dict[str, Any]:
    """What to remember of a run besides what can be told from its objects."""
    streams = {name: spec.stream(name) for name in STREAMS}
    return {
        "spec": spec.to_yaml(),
        "spec_hash": spec.digest(),
        "data_hash": task.fingerprint,
        "code_hash": version(spec, task),
        "seed_streams": str(streams),
    }


def coords_of(spec: RunSpec, task: Task, rule: str) -> dict[str, Any]:
    """The coordinates of a run."""
    return {
        "rule": rule,
        "lr": spec.lr,
        "seed": spec.seed,
        "task": task.name,
        "arm": rule,
        "control": _control(spec),
    }


def _control(spec: RunSpec) -> str:
    """What is done to the run's gradients, in a few words."""
    if spec.graft is not None:
        whole = ", as a whole" if spec.graft.scope == "global" else ""
        return f"{spec.graft.direction} direction, {spec.graft.magnitude} magnitude{whole}"
    if spec.step_sizes is not None:
        return "relative step sizes set" if spec.step_sizes.relative else "step sizes set"
    return "none"


def splits_of(spec: RunSpec, task: Task, device: torch.device) -> tuple[Split, dict[str, Split]]:
    """The task's training split, and those that the spec evaluates by name, on the device."""
    found = {name: getattr(task, name) for name in {"train", *spec.splits}}
    moved = {name: Split(split.inputs.to(device), split.targets.to(device)) for name, split in found.items()}
    return moved["train"], {name: moved[name] for name in spec.splits}
