"""What a recorder has measured so far: on the tape, in memory, and on disk where there is a folder for it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from alignlab.checks import is_whole
from alignlab.probes.kept import Found
from alignlab.probes.parts import decoded, encoded, stored_parts
from alignlab.probes.selftest import LastLayers
from alignlab.probes.tape import Tape, Value
from alignlab.store import ContractError, Segments, StoreError, check
from alignlab.store.schema import check_free

if TYPE_CHECKING:
    import xarray as xr


class Recording:
    """One run's measurements over ``layers``, with coordinates (``facts``) and attributes; a segment a flush in ``path``."""

    def __init__(
        self, layers: Mapping[str, nn.Module], path: str | Path | None, run_id: str, flush_every: int
    ) -> None:
        if not is_whole(flush_every):
            raise ValueError(
                f"flush_every is {flush_every!r}, expected a whole number of measured steps, at least 1"
            )
        self.facts: dict[str, Any] = {}
        self.attrs: dict[str, Any] = {}
        self.run_id, self.status, self.last_step = run_id, "running", -1
        self.self_test = LastLayers()
        self._flush_every = flush_every
        self._tape, self._parts = Tape(layers), list["xr.Dataset"]()
        self._segments = None if path is None else Segments(path).prepare(str(run_id))
        self._unwritten = list["xr.Dataset"]()  # what a full disk did not take
        self._number = 0  # of the next segment
        self._tokens = [uuid.uuid4().hex[:12]]  # of those who recorded the run, this recording's last
        self._goes_on = False
        self._loss: Value = 0.0  # of the last step that had one

    @property
    def lost(self) -> bool:
        """Whether the last loss that was measured, of one run, is not finite."""
        several = isinstance(self._loss, Tensor) and self._loss.dim()
        return not several and not math.isfinite(self._loss)

    @property
    def lead(self) -> tuple[int, ...]:
        """The shape of every value, before a mode: (runs,) where there are several."""
        return self._tape.lead

    def begin(self, facts: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
        """Set the coordinates and attributes; what cannot be stored is refused now, not after the run.

        Where the run goes on, a segment without steps tells from where: what the store has beyond counts no more.
        """
        check_free(facts)
        if taken := self._own.keys() & facts.keys():
            raise ContractError(f"{min(taken)}: the recorder's own coordinate; expected another name")
        self.facts, self.attrs = dict(facts), dict(attrs)
        empty = self._labelled(self._tape.flush())
        check(empty)
        if self._segments is None:
            return
        if self._goes_on:
            if self._number:
                self._append(empty)
        elif self._segments.latest_status(self.run_id) is not None:
            raise StoreError(
                f"run {self.run_id!r} is in {self._segments.path} already, and steps of two runs would be mixed: pass another "
                "run_id or path; where it goes on from a checkpoint, call load_state_dict before attaching"
            )

    @property
    def is_stored(self) -> bool:
        """Whether it has a folder."""
        return self._segments is not None

    def state(self) -> dict[str, Any]:
        """What :meth:`go_on` needs, after a flush; in memory everything, else how much there is in the store."""
        parts = [] if self.is_stored else [encoded(part) for part in self._parts]
        measured = sum(part.sizes["step"] for part in self._parts)
        told = {"measured": measured, "segments": self._number, "tokens": [*self._tokens], "parts": parts}
        return {"run_id": str(self.run_id), **told}

    def go_on(self, state: Mapping[str, Any], steps: int) -> None:
        """Take the run up again where it was at a ``state``, after ``steps`` optimizer steps. Writes nothing yet."""
        self._goes_on, self.run_id, self.last_step = True, state["run_id"], steps - 1
        if self._segments is None:
            self._parts = [decoded(part) for part in state["parts"]]
        else:
            self._parts, self._number, tokens = stored_parts(self._segments, state, steps)
            self._tokens = tokens + self._tokens

    def add(
        self,
        step: int,
        by_layer: Mapping[str, Mapping[str, Value]],
        by_step: Mapping[str, Value],
        kept: Sequence[Found] = (),
    ) -> None:
        """One step's measurements, and what two-stage probes kept."""
        self._tape.add(step, by_layer, by_step, kept)
        self.last_step = max(step, self.last_step)
        self._loss = by_step.get("loss", self._loss)
        if len(self._tape) >= self._flush_every:
            self.flush()

    def flush(self) -> None:
        """Move what was measured to the host, and to disk."""
        if len(self._tape) or self._unwritten:
            self._write()

    def narrow(self, rows: Tensor) -> None:
        """Flush; what comes from here on is of these ``rows`` of the runs alone."""
        self.flush()
        self._tape.narrow(rows)

    def end(self, status: str) -> None:
        """Flush, and note how the run ended, even where nothing was measured since the last flush."""
        self.status = status
        if len(self._tape) or self._segments is not None:
            self._write()

    def to_dataset(self) -> xr.Dataset:
        """Everything up to now."""
        self.flush()
        return self._labelled(_joined(self._parts or [self._tape.flush()]))

    def _write(self) -> None:
        self.self_test.check()
        part = self._tape.flush()
        if part.sizes["step"]:
            self._parts.append(part)
        if self._segments is not None:
            self._unwritten.append(part)
            parts = [p for p in self._unwritten if p.sizes["step"]] or [part]
            self._append(self._labelled(_joined(parts) if len(parts) > 1 else parts[0]))
            self._unwritten.clear()

    def _append(self, segment: xr.Dataset) -> None:
        assert self._segments is not None
        try:
            self._segments.append(segment, number=self._number, tokens=self._tokens)
        except StoreError:
            raise
        except BaseException:
            if self._segments.is_by(self._tokens, self.run_id, self._number):  # interrupted when it was there
                self._number += 1
            raise
        self._number += 1

    @property
    def _own(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "status": self.status, "last_step": self.last_step}

    def _labelled(self, dataset: xr.Dataset) -> xr.Dataset:
        return dataset.assign_coords(self.facts | self._own).assign_attrs(self.attrs)


def _joined(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    import xarray as xr

    return xr.concat(parts, "step", data_vars="minimal", coords="minimal", join="outer")
