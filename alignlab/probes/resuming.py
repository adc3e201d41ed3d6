"""Runs that go on from a checkpoint: what a recorder's state holds, and whether recorder and store are those that it tells of.

A state is plain numbers, texts, tensors, lists and dicts, so that ``torch.load(weights_only=True)`` reads it. Of a run in a
store it tells how much was there; of one in memory it holds everything. How often the recording has tested itself is no part
of it: a new process may have other hooks, and tests anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from alignlab.probes.metadata import run_attrs
from alignlab.probes.probe import Probe
from alignlab.probes.schedule import Every, Listed, Together
from alignlab.store import Segments, StoreError
from alignlab.store.pieces import IDENTITY, Piece, trimmed
from alignlab.store.schema import plain

if TYPE_CHECKING:
    import xarray as xr

    from alignlab.probes.recorder import Recorder

VERSION = 1
ENVIRONMENT = ("alignlab_version", "torch_version", "numpy_version", "device")
KEYS = {
    "made_with",
    "step",
    "count",
    "elapsed",
    "facts",
    "attrs",
    "environment",
    "elsewhere",
    "probes",
    "recording",
}
State = Mapping[str, Any]


def made_with(recorder: Recorder, path: object) -> dict[str, Any]:
    """What a recorder's arguments are, as far as a run depends on them; as text where they are no text."""
    return {
        "probes": [_told(probe) for probe in recorder.probes],
        "layers": list(recorder.layers),
        "schedule": _schedule(recorder.schedule),
        "path": "None" if path is None else "a folder",
    }


def _told(probe: Probe) -> str:
    settings = {k: v for k, v in vars(probe).items() if not k.startswith("_") and k != "user"}
    told = (
        f"{k}={v!r}" if v is None or isinstance(v, bool | int | float | str) else f"{k}={type(v).__name__}"
        for k, v in settings.items()
    )
    return f"{type(probe).__name__}({', '.join(told)})"


def _schedule(schedule: object) -> str:
    return repr(schedule) if isinstance(schedule, Every | Listed | Together) else "a function"


def state_of(recorder: Recorder) -> dict[str, Any]:
    """The state of a recorder that has attached; flushes it."""
    if recorder._counter is None:
        raise RuntimeError(
            "Recorder.state_dict: it has not attached yet and has no state; ask inside its with, or after it"
        )
    recording = recorder._recording
    if recording.lead:
        raise RuntimeError("Recorder.state_dict: a recording of several runs at a time cannot be resumed")
    recorder.flush()
    attrs = run_attrs(recorder.model, recorder.optimizer)
    return {
        "version": VERSION,
        "made_with": recorder._made_with,
        "step": recorder.step,
        "count": recorder._count,
        "elapsed": (recorder._ended or time.perf_counter()) - recorder._start,
        "facts": {key: _plain(recording.facts[key]) for key in IDENTITY if key in recording.facts},
        "attrs": _plain(recording.attrs),
        "environment": {key: attrs[key] for key in ENVIRONMENT},
        "elsewhere": list(recorder._capture.elsewhere),
        "probes": [probe.state_dict() for probe in recorder.probes],
        "recording": recording.state(),
    }


def _plain(value: Any) -> Any:
    """Of the plainest types: a text of a class of its own is none that ``torch.load(weights_only=True)`` reads."""
    return json.loads(json.dumps(plain(value)))


def check_state(recorder: Recorder, state: State) -> None:
    """Raise where a recorder cannot go on from a state, as far as that is known before it attaches."""
    if recorder._counter is not None:
        raise RuntimeError(
            "Recorder.load_state_dict: it has attached already; load the state before its with"
        )
    version = state.get("version") if isinstance(state, Mapping) else None
    if version is None or (version == VERSION and not state.keys() >= KEYS):
        raise ValueError(f"state is {_short(state)}, expected what Recorder.state_dict() gave")
    if version != VERSION:
        raise ValueError(
            f"state is of version {version!r}, and this alignlab knows {VERSION}: resume with the alignlab that saved it"
        )
    for name, own in recorder._made_with.items():
        _check_same(name, state["made_with"][name], own)
    given, held = recorder._named, state["recording"]["run_id"]
    if given is not None and given != held:
        raise ValueError(
            f"run_id is {given!r}, but the state is of run {held!r}: pass run_id={held!r}, or none"
        )


def _check_same(name: str, before: Any, now: Any) -> None:
    if before == now:
        return
    if isinstance(now, list) and len(before) == len(now):
        before, now = next((a, b) for a, b in zip(before, now, strict=True) if a != b)
    raise ValueError(
        f"{name}: {_short(now)} here, but the state is of a recorder with {_short(before)}; make it with the same "
        "arguments, or record a run of its own without load_state_dict"
    )


def _short(value: Any) -> str:
    text = (
        value
        if isinstance(value, str)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else repr(value)
    )
    return text if len(text) < 200 else text[:200] + "…"


def labels(
    state: State, facts: dict[str, Any], attrs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Coordinates and attributes of the run that goes on: those of its beginning, with what is another's in the environment."""
    facts = facts | {"lr": state["facts"]["lr"]}  # a schedule may have changed it since
    for name, before in state["facts"].items():
        now = _plain(facts[name]) if name in facts else "not there"
        if name != "lr" and repr(now) != repr(before):  # as text NaN equals itself
            raise ValueError(
                f"{name}: {now!r} here, but the state is of a run with {before!r}; convert the model and pass coords as "
                "before, or record a run of its own without load_state_dict"
            )
    changed = {
        key: f"{state['attrs'][key]}; from step {state['step']}: {attrs[key]}"
        for key, before in state["environment"].items()
        if attrs[key] != before
    }
    return facts, attrs | state["attrs"] | changed


def go_on(recorder: Recorder, state: State) -> None:
    """Put a recorder that has just attached where the other was."""
    recorder.step, recorder._count = state["step"], state["count"]
    recorder._start -= state["elapsed"]
    recorder._capture.elsewhere.update(dict.fromkeys(state["elsewhere"]))
    for probe, own in zip(recorder.probes, state["probes"], strict=True):
        probe.load_state_dict(own)


def stored_parts(segments: Segments, state: State, steps: int) -> tuple[list[xr.Dataset], int, list[str]]:
    """What a store has of a run up to a state, which is after ``steps`` steps; the number of the run's next segment, and the
    tokens of those who recorded it.

    Raises :class:`StoreError` where it has not all of it, or another recording, or where the run was taken up again from an
    earlier step.
    """
    run_id, known = state["run_id"], state["segments"]
    told = segments.pieces(run_id)
    tokens = _tokens(told, state, segments)
    for piece in told:
        if _number(piece) >= known and piece.last_step < steps - 1:
            raise StoreError(
                f"run {run_id!r} in {segments.path} was taken up again after step {piece.last_step}, so that what this state, "
                f"which is after step {steps - 1}, tells of was dropped: resume from a checkpoint made since"
            )
    held = [piece.until(steps - 1) for piece in trimmed(told) if _number(piece) < known] if told else []
    found = sum(piece.record.fields["step"].data.size for piece in held)
    if found != state["measured"]:
        raise StoreError(
            f"run {run_id!r} has {found} measured steps before step {steps} in {segments.path}, but the state tells of "
            f"{state['measured']}: pass the path that it was recorded in, and put back segments that were moved"
        )
    parts = [_bare(piece) for piece in held if piece.record.fields["step"].data.size]
    return parts, max(map(_number, told), default=-1) + 1, tokens


def _tokens(told: Sequence[Piece], state: State, segments: Segments) -> list[str]:
    """Of all who recorded the run, as far as store and state know them."""
    stored = next((piece.tokens for piece in reversed(told) if piece.tokens), [])
    known = list(state.get("tokens", []))  # not of a state of older versions
    if any(a != b for a, b in zip(stored, known, strict=False)):
        raise StoreError(
            f"run {state['run_id']!r} in {segments.path} is not the recording that this state is of, but another under the "
            "same run_id, or went on elsewhere from one of its checkpoints: pass the path that it was recorded in"
        )
    return max(stored, known, key=len)


def _number(piece: Piece) -> int:
    number: int = piece.record.notes["sequence"]
    return number


def _bare(piece: Piece) -> xr.Dataset:
    """A piece without what is true of the whole run."""
    found = piece.record.to_dataset()
    return found.drop_vars([name for name, c in found.coords.items() if not c.dims]).drop_attrs(deep=False)


def encoded(part: xr.Dataset) -> dict[str, dict[str, Any]]:
    """A part of a run in memory, as a state holds it."""
    return {
        str(name): {
            "dims": list(map(str, v.dims)),
            "values": v.values.tolist() if v.dtype.kind == "U" else torch.from_numpy(v.values.copy()),
            "attrs": _plain(v.attrs),
            "is_coord": name in part.coords,
        }
        for name, v in part.variables.items()
    }


def decoded(part: Mapping[str, Mapping[str, Any]]) -> xr.Dataset:
    """The part that was :func:`encoded`."""
    import xarray as xr

    variables = {name: (v["dims"], _array(v["values"]), v["attrs"]) for name, v in part.items()}
    coords = {name: variables[name] for name, v in part.items() if v["is_coord"]}
    return xr.Dataset({k: v for k, v in variables.items() if k not in coords}, coords)


def _array(values: Any) -> np.ndarray[Any, Any]:
    """On the host, wherever ``torch.load`` has put it."""
    return values.numpy(force=True) if isinstance(values, torch.Tensor) else np.asarray(values, dtype=str)
