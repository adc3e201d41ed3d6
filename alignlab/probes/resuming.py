"""Runs that go on from a checkpoint: what a recorder's state holds, and whether a recorder is one that it tells of.

A state is plain numbers, texts, tensors, lists and dicts, so that ``torch.load(weights_only=True)`` reads it. Of a run in a
store it tells how much was there; of one in memory it holds everything. How often the recording has tested itself is no part
of it: a new process may have other hooks, and tests anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from alignlab.probes.probe import Probe
from alignlab.probes.schedule import Every, Listed, Together
from alignlab.store.pieces import IDENTITY
from alignlab.store.schema import plain

VERSION = 1
ENVIRONMENT = ("alignlab_version", "torch_version", "numpy_version", "device")


@dataclass(frozen=True)
class RunState:
    """All that is resumed of a run: a recorder gives one, and another takes it up."""

    made_with: dict[str, Any]
    step: int  # how many steps the optimizer has made
    count: int  # how many of them were measured
    elapsed: float
    facts: dict[str, Any]
    attrs: dict[str, Any]
    environment: dict[str, Any]
    elsewhere: list[str]  # the layers whose weights get other gradients too, as far as is known
    probes: list[dict[str, Any]]
    recording: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return {"version": VERSION} | {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], own: Mapping[str, Any], run_id: str | None) -> RunState:
        """The inverse, for a recorder that was ``made_with`` its ``own`` and perhaps given a ``run_id``.

        Raises ``ValueError`` where it cannot go on from there, as far as that is known before it attaches.
        """
        names = [field.name for field in fields(cls)]
        version = state.get("version") if isinstance(state, Mapping) else None
        if version is None or (version == VERSION and not state.keys() >= set(names)):
            raise ValueError(f"state is {_short(state)}, expected what Recorder.state_dict() gave")
        if version != VERSION:
            raise ValueError(
                f"state is of version {version!r}, and this alignlab knows {VERSION}: resume with the alignlab that saved it"
            )
        found = cls(**{name: state[name] for name in names})
        for name, value in own.items():
            _check_same(name, found.made_with[name], value)
        held = found.recording["run_id"]
        if run_id is not None and run_id != held:
            raise ValueError(
                f"run_id is {run_id!r}, but the state is of run {held!r}: pass run_id={held!r}, or none"
            )
        return found

    def labels(self, facts: dict[str, Any], attrs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Coordinates and attributes of the run that goes on: its beginning's, and what is another's in the environment."""
        facts = facts | {"lr": self.facts["lr"]}  # a schedule may have changed it since
        for name, before in self.facts.items():
            now = plainest(facts[name]) if name in facts else "not there"
            if name != "lr" and repr(now) != repr(before):  # as text NaN equals itself
                raise ValueError(
                    f"{name}: {now!r} here, but the state is of a run with {before!r}; convert the model and pass coords as "
                    "before, or record a run of its own without load_state_dict"
                )
        changed = {
            key: f"{self.attrs[key]}; from step {self.step}: {attrs[key]}"
            for key, before in self.environment.items()
            if attrs[key] != before
        }
        return facts, attrs | self.attrs | changed


def made_with(
    probes: Sequence[Probe], layers: Mapping[str, object], schedule: object, path: object
) -> dict[str, Any]:
    """What a recorder's arguments are, as far as a run depends on them; as text where they are no text."""
    return {
        "probes": [_told(probe) for probe in probes],
        "layers": list(layers),
        "schedule": _schedule(schedule),
        "path": "None" if path is None else "a folder",
    }


def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's coordinates those that tell it from others."""
    return {key: plainest(facts[key]) for key in IDENTITY if key in facts}


def environment(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's attributes those that a new process may have others of."""
    return {key: attrs[key] for key in ENVIRONMENT}


def plainest(value: Any) -> Any:
    """Of the plainest types: a text of a class of its own is none that ``torch.load(weights_only=True)`` reads."""
    return json.loads(json.dumps(plain(value)))


def _told(probe: Probe) -> str:
    settings = {k: v for k, v in vars(probe).items() if not k.startswith("_") and k != "user"}
    told = (
        f"{k}={v!r}" if v is None or isinstance(v, bool | int | float | str) else f"{k}={type(v).__name__}"
        for k, v in settings.items()
    )
    return f"{type(probe).__name__}({', '.join(told)})"


def _schedule(schedule: object) -> str:
    return repr(schedule) if isinstance(schedule, Every | Listed | Together) else "a function"


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
