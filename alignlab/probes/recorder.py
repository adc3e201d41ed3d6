"""The Recorder: attach probes to a training run without changing its loop.

``with Recorder(model, optimizer, probes, schedule, path):`` around any loop. Optimizer steps are counted through the
optimizer's own hook, at the price of one integer comparison a step; hooks on the model exist only during the steps that
are measured. What is recorded is the state just before the update (W_t, its batch's signals) and the update itself.
"""

from __future__ import annotations

import functools
import time
import uuid
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignlab.measures.precision import full_precision
from alignlab.probes import resuming
from alignlab.probes.answers import ask, ask_values
from alignlab.probes.capture import Capture
from alignlab.probes.compiled import tell_if_compiled, unwrapped
from alignlab.probes.errors import ProbeError
from alignlab.probes.metadata import run_attrs, run_coords
from alignlab.probes.observation import Observation
from alignlab.probes.observing import observe, observes_all, unscale, weights_of
from alignlab.probes.probe import Probe, checked
from alignlab.probes.recording import Recording
from alignlab.probes.schedule import NEVER, Schedule, consult, every, log_spaced
from alignlab.probes.selection import Replaced, Wanted, learning_rates, main_rate, select_layers

if TYPE_CHECKING:
    import xarray as xr

_at_work: weakref.WeakValueDictionary[str, Recorder] = weakref.WeakValueDictionary()


class Recorder:
    """Records what ``probes`` measure during a training run.

    ``model``: the module that the loop calls. ``optimizer``: the one that steps it; of several, each takes a
    recorder of its own with the ``layers`` that it steps, for what another does is NaN. ``probes``: what to measure.
    ``schedule``: at which optimizer steps, counted from 0: ``every(n)``, ``log_spaced(total, n)`` or any callable
    step → bool. ``path``: a folder to store the run in (``alignlab.open_runs`` reads it); None keeps it in memory.
    ``layers``: which layers to observe (of the kinds in ``geometry.KINDS``): module names or patterns (``"features.*"``), or a
    function (name, module) → bool; by default all. ``flush_every``: measured steps between two writes. ``attrs``: facts to
    store with the run. ``coords``: its coordinates (rule, lr, seed, task, arm, control). ``grad_scaler``: the loop's
    ``GradScaler``, if it has one, so that loss and norms are reported unscaled. ``run_id``: the run's name in its store; by
    default a new one.

    Steps, samples and time are counted from where it attaches. A run that goes on from a checkpoint is one run if its recorder
    does too: keep :meth:`state_dict` in the checkpoint, and give it to :meth:`load_state_dict` of the new recorder.

    The loop's results are bitwise those of a run without a recorder; not where the loop calls a compiled model, whose measured
    steps run uncompiled: they round otherwise, and dropout may draw other masks. Raises ``TypeError`` and ``ValueError`` for
    arguments that are none, and :class:`ProbeError` where a signal cannot be measured; it never records a guess.
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
        self.model, self.optimizer = model, optimizer
        self.probes = checked(probes)
        self.schedule: Schedule = every(1) if schedule is None else schedule
        self.layers = select_layers(model, layers)
        if not learning_rates(optimizer, self.layers):
            raise ValueError(
                f"the optimizer trains none of the observed layers ({', '.join(self.layers)}): is it the model's?"
            )
        self.step = 0
        self._made_with, self._named = resuming.made_with(self, path), run_id
        self._resumed: Mapping[str, Any] | None = None
        self._ended: float | None = None  # when it was detached
        self._recording = Recording(self.layers, path, run_id or uuid.uuid4().hex, flush_every)
        truth = any(probe.needs_truth for probe in self.probes)
        self._capture = Capture(model, self.layers, truth, optimizer)
        self._replaced = Replaced(model, optimizer, self.layers)
        self._attrs, self._coords, self._grad_scaler = dict(attrs or {}), dict(coords or {}), grad_scaler
        self._complete = observes_all(unwrapped(model), self.layers)
        self._update_wanted = any(probe.needs_update for probe in self.probes)
        self._before: dict[str, Tensor] | None = (
            None  # the weights before an update that is to be measured after it
        )
        self._count, self._next = 0, NEVER
        self._asked = getattr(self.schedule, "following", None) is None  # at every step
        self._counter: Any = None
        self._sentinel: Any = None  # the hook before a step, while armed

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``diverged`` or ``crashed``."""
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
        if self._counter is not None:
            raise RuntimeError("this recorder has been used: make a new one for another run")
        self._claim_probes()
        facts = run_coords(self.model, self.optimizer, self.layers) | self._coords
        attrs = run_attrs(self.model, self.optimizer) | self._attrs
        if self._resumed is not None:
            facts, attrs = resuming.labels(self._resumed, facts, attrs)
            self._recording.go_on(self._resumed["recording"], self._resumed["step"])
        self._recording.begin(facts, attrs)
        tell_if_compiled(self.model)
        self._start = time.perf_counter()
        self._counter = self.optimizer.register_step_post_hook(self._after_step)
        for probe in self.probes:
            probe.attach(self.model)
        if self._resumed is not None:
            resuming.go_on(self, self._resumed)
        self._plan()
        return self

    def _claim_probes(self) -> None:
        """A probe keeps what it has heard: of one run at a time."""
        key = uuid.uuid4().hex
        for probe in self.probes:
            user = _at_work.get(probe.user)
            if user is not None and user.status == "running" and user._counter is not None:
                raise ValueError(
                    f"{type(probe).__name__} is at work in another recorder: give each one probes of its own"
                )
            probe.user = key
        _at_work[key] = self

    def state_dict(self) -> dict[str, Any]:
        """What a new recorder needs to go on from here, for the checkpoint. Call it between two steps; it flushes first."""
        return resuming.state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the run of this ``state``, before attaching; the model and the optimizer are yours to load. What was
        recorded after it is dropped on attaching, to be recorded anew. Coordinates and attributes stay the run's own; versions
        and devices that changed are added. Errors: ``ValueError`` for a state of another recorder, ``RuntimeError`` where this
        one has attached, ``StoreError``, on attaching, where the store has not what the state tells of."""
        resuming.check_state(self, state)
        self._resumed = state

    def narrow(self, rows: Tensor) -> None:
        """The model and its optimizer, of several runs, go on with these ``rows`` of them alone. Between two steps.

        The others' values end here: NaN from the next step on.
        """
        self._disarm()
        self._recording.narrow(rows)
        self._plan()

    def detach(self, status: str = "finished") -> None:
        """Stop recording, write what is left, and note how the run ended. Calling it again does nothing."""
        if self._counter is None or self.status != "running":
            return
        self._disarm()
        self._ended = time.perf_counter()
        self._counter.remove()
        for probe in self.probes:
            probe.detach()
        self._note_progress()
        if self.step == 0 and status == "finished":
            warnings.warn(
                "nothing was recorded: the optimizer that the recorder was given took no step. Is it the one that the loop "
                "steps, by its step()?",
                stacklevel=3,
            )
        self._recording.end("diverged" if status == "finished" and not _finite(self.model) else status)

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

    def _plan(self) -> None:
        """Arm for the coming step if it is scheduled, rest otherwise; note when to ask the schedule again."""
        scheduled, self._next = consult(self.schedule, self.step)
        if scheduled:
            self._arm()
        elif self._sentinel is not None:
            self._disarm()

    def _arm(self) -> None:
        if self._sentinel is None:
            self._capture.arm()
            self._sentinel = self.optimizer.register_step_pre_hook(self._before_step)
        for probe in self.probes:
            probe.prepare()

    def _disarm(self) -> None:
        if self._sentinel is not None:
            self._sentinel.remove()
        self._sentinel, self._before = None, None
        self._capture.disarm()

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        has_closure = any(map(callable, (*args, *kwargs.values())))  # then the signals are still to come
        if self._update_wanted or has_closure:
            self._before = weights_of(self.layers, copy=True)
        else:
            self._measure(self.step, weights_of(self.layers, copy=False), updated=False)
        if not has_closure:
            return None
        self._capture.arrivals.forget_cleared()
        return tuple(map(self._watched, args)), {key: self._watched(value) for key, value in kwargs.items()}

    def _watched(self, value: Any) -> Any:
        """A closure that tells when the optimizer evaluates it; anything else as it is."""
        if not callable(value):
            return value

        @functools.wraps(value)
        def evaluated(*args: Any, **kwargs: Any) -> Any:
            with self._capture.arrivals.evaluation():
                return value(*args, **kwargs)

        return evaluated

    def _after_step(self, *_: Any) -> None:
        self.step += 1
        if self.step < self._next:
            return
        if self._asked and self._sentinel is None:  # at rest, as mostly: no more is called than the schedule
            if self.schedule(self.step):
                self._arm()
            return
        before, self._before = self._before, None
        try:
            if before is not None:
                self._measure(self.step - 1, before, updated=True)
        finally:  # a loop may go on after a full disk
            self._plan()

    def _measure(self, step: int, weights: dict[str, Tensor], updated: bool) -> None:
        self._replaced.check(self._capture.hears)
        taken = self._capture.take({id(p) for group in self.optimizer.param_groups for p in group["params"]})
        if not taken:
            raise ProbeError(
                f"step {step}: no error signal passed through the observed layers ({', '.join(self.layers)}). "
                "Was the loss computed from this model, and backward() called before optimizer.step()?"
            )
        self._replaced.check_layers(taken)
        scale = getattr(self._grad_scaler, "_scale", None)
        if scale is not None:
            unscale(taken, scale, self._capture.landed)
        self._recording.self_test.add(step, taken)
        used = ((name, uses[0].weight) for name, uses in taken.items())
        weights = weights | {name: weight for name, weight in used if weight is not None}
        rate = main_rate(self.optimizer, self.layers)
        due = [probe for probe in self.probes if probe.due(self._count)]
        self._count += 1
        device = next(iter(weights.values())).device.type
        with torch.no_grad(), torch.autocast(device, enabled=False), full_precision():
            layers = observe(
                taken, self.layers, self.optimizer, weights, updated, self._complete, self._capture.landed
            )
            seen = Observation(
                step, layers, rate, time.perf_counter() - self._start, self._capture.passes, scale
            )
            kept, by_layer, lead = [], {}, self._recording.lead
            for name, layer in layers.items():
                kept += [(p, name, ask(p, "keep", layer, of=name)) for p in due if p.in_two_stages]
                by_layer[name] = _merged(
                    ask_values(p, "measure", layer, of=name, lead=lead) for p in due if not p.in_two_stages
                )
                layer.forget()  # one layer's at a time: less memory
            by_step = _merged(ask_values(p, "measure_step", seen, lead=lead) for p in due)
            for layer in layers.values():
                layer.after = None  # the weight goes on: what is asked for later would be of another step
        self._recording.attrs |= _merged(ask(probe, "attrs") for probe in due) | self._capture.attrs
        facts = {"learning_rate": rate, "wall_time": seen.wall_time}
        self._recording.add(step, by_layer, facts | by_step, kept)


def _check(model: Any, optimizer: Any, schedule: Any, grad_scaler: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected an nn.Module")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is {type(optimizer).__name__}, expected a torch.optim.Optimizer")
    if isinstance(grad_scaler, type) or not (grad_scaler is None or hasattr(grad_scaler, "_scale")):
        raise TypeError(
            f"grad_scaler is {grad_scaler!r}, expected the torch.amp.GradScaler of the loop, or None"
        )
    if schedule is not None and (not callable(schedule) or schedule in (every, log_spaced)):
        way_out = "every(10), log_spaced(total, 50), or a function step -> bool"
        raise TypeError(f"schedule is {schedule!r}, expected {way_out}")


def _merged(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for part in found for key, value in part.items()}


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())
