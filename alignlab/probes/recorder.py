"""The Recorder: attach probes to a training run without changing its loop.

``with Recorder(model, optimizer, probes, schedule, path):`` around any loop. Here a run begins, ends and goes on; what happens
at its steps is in :mod:`alignlab.probes.stepping`, what was measured in :mod:`alignlab.probes.recording`.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignlab.probes import resuming
from alignlab.probes.compiled import tell_if_compiled, unwrapped
from alignlab.probes.metadata import run_attrs, run_coords
from alignlab.probes.probe import Probe, checked
from alignlab.probes.recording import Recording
from alignlab.probes.resuming import RunState
from alignlab.probes.schedule import Schedule, every, log_spaced
from alignlab.probes.selection import Wanted, learning_rates, select_layers
from alignlab.probes.stepping import Steps
from alignlab.probes.unobserved import tell_of_unobserved
from alignlab.store.schema import STATUSES

if TYPE_CHECKING:
    import xarray as xr

_at_work: weakref.WeakValueDictionary[str, Steps] = weakref.WeakValueDictionary()


class Recorder:
    """Records what ``probes`` measure during a training run.

    ``model``: the module that the loop calls. ``optimizer``: the one that steps it; of several, each takes a
    recorder of its own with the ``layers`` that it steps, for what another does is NaN. ``probes``: what to measure.
    ``schedule``: at which optimizer steps, counted from 0: ``every(n)``, ``log_spaced(total, n)`` or any callable
    step → bool. ``path``: a folder to store the run in (``alignlab.open_runs`` reads it); None keeps it in memory.
    ``layers``: which layers to observe (of the kinds in ``geometry.KINDS``): module names or patterns (``"features.*"``), or a
    function (name, module) → bool; by default all. ``flush_every``: measured steps between two writes. ``coords``: the run's
    coordinates (rule, lr, seed, task, arm, control). ``attrs``: facts to store with it; where runs of one store differ in them,
    figures take them for coordinates. ``grad_scaler``: the loop's scaler, so that loss and norms are reported unscaled; a
    ``GradScaler`` that steps the optimizer is found without it. ``run_id``: the run's name in its store; by default a new one.

    Steps, samples and time are counted from where it attaches. A run that goes on from a checkpoint is one run if its recorder
    does too: keep :meth:`state_dict` in the checkpoint, and give it to :meth:`load_state_dict` of the new recorder.

    The loop's results are bitwise those of a run without a recorder; not where the loop calls a compiled model or optimizer,
    whose measured steps run uncompiled: they round otherwise, and dropout may draw other masks. Raises ``TypeError`` and
    ``ValueError`` for arguments that are none, and :class:`ProbeError` where a signal cannot be measured; it never records a
    guess.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        probes: Sequence[Probe],
        schedule: Schedule | None = None,
        path: str | Path | None = None,
        *,
        layers: Wanted = None,
        flush_every: int = 100,
        attrs: Mapping[str, Any] | None = None,
        coords: Mapping[str, Any] | None = None,
        grad_scaler: Any = None,
        run_id: str | None = None,
    ) -> None:
        _check(model, optimizer, schedule, grad_scaler)
        _check_facts(attrs=attrs, coords=coords)
        self.model, self.optimizer = model, optimizer
        self.probes = checked(probes, coords or {})
        self.schedule: Schedule = every(1) if schedule is None else schedule
        self.layers = select_layers(model, layers)
        if layers is None:
            tell_of_unobserved(unwrapped(model), optimizer, stacklevel=2)
        if not learning_rates(optimizer, self.layers):
            raise ValueError(
                f"the optimizer trains none of the observed layers ({', '.join(self.layers)}): is it the model's?"
            )
        self._made_with = resuming.made_with(self.probes, self.layers, self.schedule, path)
        self._named = run_id
        self._resumed: RunState | None = None
        self._attrs, self._coords = dict(attrs or {}), dict(coords or {})
        self._recording = Recording(self.layers, path, run_id or uuid.uuid4().hex, flush_every)
        self._steps = Steps(
            model, optimizer, self.probes, self.schedule, self.layers, self._recording, grad_scaler
        )

    @property
    def step(self) -> int:
        """How many steps the optimizer has made since it attached, or since the run's beginning where it goes on."""
        return self._steps.made

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``diverged`` (weights or the last loss measured are not finite) or ``crashed``."""
        return self._recording.status

    @property
    def run_id(self) -> str:
        """The name of the run in its store."""
        return self._recording.run_id

    def __enter__(self) -> Recorder:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.detach("finished" if error is None else "crashed")
        except Exception as second:
            if error is None:
                raise
            error.add_note(f"and the recorder could not write what was left: {second}")

    def attach(self) -> Recorder:
        """Start recording. ``with`` calls this; a recorder records once."""
        if self._steps.has_begun:
            raise RuntimeError("this recorder has been used: make a new one for another run")
        self._claim_probes()
        facts = run_coords(self.model, self.optimizer, self.layers) | self._coords
        attrs = run_attrs(self.model, self.optimizer) | self._attrs
        if self._resumed is not None:
            facts, attrs = self._resumed.labels(facts, attrs)
            self._recording.go_on(self._resumed.recording, self._resumed.step)
        self._recording.begin(facts, attrs)
        tell_if_compiled(self.model)
        self._steps.begin()
        if self._resumed is not None:
            self._steps.go_on(self._resumed)
        self._steps.plan()
        return self

    def _claim_probes(self) -> None:
        """A probe keeps what it has heard: of one run at a time."""
        key = uuid.uuid4().hex
        for probe in self.probes:
            user = _at_work.get(probe.user)
            if user is not None and user.is_at_work:
                raise ValueError(
                    f"{type(probe).__name__} is at work in another recorder: give each one probes of its own"
                )
            probe.user = key
        _at_work[key] = self._steps

    def state_dict(self) -> dict[str, Any]:
        """What a new recorder needs to go on from here, for the checkpoint. Call it between two steps; it flushes first."""
        steps, recording = self._steps, self._recording
        if not steps.has_begun:
            raise RuntimeError(
                "Recorder.state_dict: it has not attached yet and has no state; ask inside its with, or after it"
            )
        if recording.lead:
            raise RuntimeError("Recorder.state_dict: a recording of several runs at a time cannot be resumed")
        self.flush()
        return RunState(
            made_with=self._made_with,
            step=steps.made,
            count=steps.measured,
            elapsed=steps.elapsed,
            facts=resuming.identity(recording.facts),
            attrs=resuming.plainest(recording.attrs),
            environment=resuming.environment(run_attrs(self.model, self.optimizer)),
            elsewhere=steps.elsewhere,
            probes=[probe.state_dict() for probe in self.probes],
            recording=recording.state(),
        ).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the run of this ``state``, before attaching; the model and the optimizer are yours to load. What was
        recorded after it is dropped on attaching, to be recorded anew. Coordinates and attributes stay the run's own; versions
        and devices that changed are added. Errors: ``ValueError`` for a state of another recorder, ``RuntimeError`` where this
        one has attached, ``StoreError``, on attaching, where the store has not what the state tells of."""
        if self._steps.has_begun:
            raise RuntimeError(
                "Recorder.load_state_dict: it has attached already; load the state before its with"
            )
        self._resumed = RunState.from_dict(state, self._made_with, self._named)

    def narrow(self, rows: Tensor) -> None:
        """The model and its optimizer, of several runs, go on with these ``rows`` of them alone. Between two steps.

        The others' values end here: NaN from the next step on.
        """
        self._steps.disarm()
        self._recording.narrow(rows)
        self._steps.plan()

    def detach(self, status: str = "finished") -> None:
        """Stop recording, write what is left, and note how the run ended: "finished", "diverged" or "crashed". Calling it again
        does nothing. Raises ``ValueError`` for another status, and goes on recording."""
        if status not in STATUSES:
            raise ValueError(f"status is {status!r}, expected one of {', '.join(STATUSES)}")
        if not self._steps.is_at_work:
            return
        self._steps.end()
        self._note_progress()
        lost = self._recording.lost or not _finite(self.model)
        self._recording.end("diverged" if status == "finished" and lost else status)
        if status == "finished":
            self._steps.tell_of_last(stacklevel=3)  # after all is written: a warning may be an error

    def to_dataset(self) -> xr.Dataset:
        """Everything recorded so far, as an ``xarray.Dataset`` on (step, layer, mode) with the run's coordinates and attrs."""
        self._note_progress()
        return self._recording.to_dataset()

    def flush(self) -> None:
        """Move what was measured to the host, and to disk if there is a path."""
        self._note_progress()
        self._recording.flush()

    def _note_progress(self) -> None:
        self._recording.last_step = max(self._recording.last_step, self.step - 1)


def _check(model: Any, optimizer: Any, schedule: Any, grad_scaler: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected an nn.Module")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is {type(optimizer).__name__}, expected a torch.optim.Optimizer")
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):  # made without Optimizer.__init__
        raise TypeError(
            f"{type(optimizer).__name__} calls no hooks at its steps: give the recorder the optimizer that it is around "
            "(optimizer.optimizer), whose own steps are measured then"
        )
    is_scaler = isinstance(grad_scaler, torch.amp.GradScaler) or hasattr(grad_scaler, "_scale")
    if isinstance(grad_scaler, type) or not (grad_scaler is None or is_scaler):
        raise TypeError(
            f"grad_scaler is {grad_scaler!r}, expected the torch.amp.GradScaler of the loop, or None"
        )
    if schedule is not None and (not callable(schedule) or schedule in (every, log_spaced)):
        way_out = "every(10), log_spaced(total, 50), or a function step -> bool"
        raise TypeError(f"schedule is {schedule!r}, expected {way_out}")


def _check_facts(**given: Any) -> None:
    for name, facts in given.items():
        if not (facts is None or isinstance(facts, Mapping)):
            raise TypeError(
                f"{name} is {facts!r:.80}, expected values by name, {{'seed': 0}}; of a Namespace, vars(args)"
            )


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())
