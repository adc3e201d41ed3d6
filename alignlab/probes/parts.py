"""The parts of a run that goes on: what a store has of it up to a state, and how a state itself holds a run in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from alignlab.probes.resuming import plainest
from alignlab.store import Segments, StoreError
from alignlab.store.pieces import Piece, trimmed

if TYPE_CHECKING:
    import xarray as xr

State = Mapping[str, Any]  # of a recording


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
            "attrs": plainest(v.attrs),
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
