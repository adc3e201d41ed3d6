"""The optimizer steps of a recorder: which are measured, what is done before and after one, and what is measured at it.

Steps are counted through the optimizer's own hook, at the price of one integer comparison a step; hooks on the model exist
only during the steps that are measured. What is measured is the state just before the update (W_t, its batch's signals) and
the update itself.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.measures.precision import full_precision
from alignlab.probes.answers import ask, ask_values
from alignlab.probes.callers import outermost
from alignlab.probes.capture import Capture
from alignlab.probes.compiled import outside_graphs, unwrapped
from alignlab.probes.errors import ProbeError
from alignlab.probes.last_step import LastStep
from alignlab.probes.observation import Observation
from alignlab.probes.observing import observe, observes_all, weights_of
from alignlab.probes.probe import Probe
from alignlab.probes.recording import Recording
from alignlab.probes.resuming import RunState
from alignlab.probes.scaling import scale_of, unscale
from alignlab.probes.schedule import NEVER, Schedule, consult
from alignlab.probes.selection import Replaced, main_rate


class Steps:
    """Counts the steps of ``optimizer``, and has ``probes`` measure the scheduled ones into ``recording``."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        probes: Sequence[Probe],
        schedule: Schedule,
        layers: dict[str, nn.Module],
        recording: Recording,
        grad_scaler: Any,
    ) -> None:
        self.model, self.optimizer, self.probes, self.schedule = model, optimizer, probes, schedule
        self.layers = layers
        self.made = 0  # the number of the step that comes
        self.measured = 0
        self._recording, self._grad_scaler = recording, grad_scaler
        truth = any(probe.needs_truth for probe in probes)
        self._capture = Capture(model, layers, truth, optimizer)
        self._replaced = Replaced(model, optimizer, layers)
        self._last_step = LastStep(optimizer)
        self._complete = observes_all(unwrapped(model), layers)
        self._update_wanted = any(probe.needs_update for probe in probes)
        self._before: dict[str, Tensor] | None = (
            None  # the weights before an update that is to be measured after it
        )
        self._next = NEVER
        self._asked = getattr(schedule, "following", None) is None  # at every step
        self._start = 0.0
        self._end: float | None = None
        self._counter: Any = None
        self._sentinel: Any = None  # the hook before a step, while armed

    @property
    def has_begun(self) -> bool:
        """Whether it was ever attached."""
        return self._counter is not None

    @property
    def is_at_work(self) -> bool:
        """Whether the recording still goes on."""
        return self.has_begun and self._recording.status == "running"

    @property
    def elapsed(self) -> float:
        """Seconds since it began, until it ended."""
        return (self._end or time.perf_counter()) - self._start

    @property
    def elsewhere(self) -> list[str]:
        """The layers whose weights get other gradients too, as far as is known."""
        return list(self._capture.elsewhere)

    def begin(self) -> None:
        """Count from here on; nothing is measured before :meth:`plan`."""
        self._start = time.perf_counter()
        counted = outside_graphs(outermost(self._after_step, self.optimizer))
        self._counter = self.optimizer.register_step_post_hook(counted)
        for probe in self.probes:
            probe.attach(self.model)

    def go_on(self, state: RunState) -> None:
        """Be where another was, after beginning."""
        self.made, self.measured = state.step, state.count
        self._start -= state.elapsed
        self._capture.elsewhere.update(dict.fromkeys(state.elsewhere))
        for probe, own in zip(self.probes, state.probes, strict=True):
            probe.load_state_dict(own)

    def end(self) -> None:
        """Count no more."""
        self.disarm()
        self._end = time.perf_counter()
        self._counter.remove()
        for probe in self.probes:
            probe.detach()

    def tell_of_last(self, stacklevel: int) -> None:
        """Warn if the optimizer made no step, or if the loop went on with another."""
        self._last_step.tell(self.made, stacklevel + 1)

    def plan(self) -> None:
        """Arm for the coming step if it is scheduled, rest otherwise; note when to ask the schedule again."""
        scheduled, self._next = consult(self.schedule, self.made)
        if scheduled:
            self._arm()
        elif self._sentinel is not None:
            self.disarm()

    def _arm(self) -> None:
        if self._sentinel is None:
            self._capture.arm()
            hook = outermost(self._before_step, self.optimizer)
            self._sentinel = self.optimizer.register_step_pre_hook(hook)
        for probe in self.probes:
            probe.prepare()

    def disarm(self) -> None:
        """Stop listening; what was heard is dropped."""
        if self._sentinel is not None:
            self._sentinel.remove()
        self._sentinel, self._before = None, None
        self._capture.disarm()

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        has_closure = any(map(callable, (*args, *kwargs.values())))  # then the signals are still to come
        if self._update_wanted or has_closure:
            self._before = weights_of(self.layers, copy=True)
        else:
            self._measure(self.made, weights_of(self.layers, copy=False), updated=False)
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
        self.made += 1
        self._last_step.note()
        if self.made < self._next:
            return
        if self._asked and self._sentinel is None:  # at rest, as mostly: no more is called than the schedule
            if self.schedule(self.made):
                self._arm()
            return
        before, self._before = self._before, None
        try:
            if before is not None:
                self._measure(self.made - 1, before, updated=True)
        finally:  # a loop may go on after a full disk
            self.plan()

    def _measure(self, step: int, weights: dict[str, Tensor], updated: bool) -> None:
        self._replaced.check(self._capture.hears)
        taken = self._capture.take({id(p) for group in self.optimizer.param_groups for p in group["params"]})
        if not taken:
            raise ProbeError(
                f"step {step}: no error signal passed through the observed layers ({', '.join(self.layers)}). "
                "Was the loss computed from this model, and backward() called before optimizer.step()?"
            )
        self._replaced.check_layers(taken)
        if (scale := scale_of(self._grad_scaler)) is not None:
            unscale(taken, scale, self._capture.landed)
        self._recording.self_test.add(step, taken)
        used = ((name, uses[0].weight) for name, uses in taken.items())
        weights = weights | {name: weight for name, weight in used if weight is not None}
        rate = main_rate(self.optimizer, self.layers)
        due = [probe for probe in self.probes if probe.due(self.measured)]
        self.measured += 1
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


def _merged(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for part in found for key, value in part.items()}
