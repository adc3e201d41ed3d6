"""What a recorder has measured so far: on the tape, in memory, and on disk where there is a folder for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from alignlab.probes.kept import Found
from alignlab.probes.selftest import LastLayers
from alignlab.probes.tape import Tape, Value
from alignlab.store import Segments, StoreError, check

if TYPE_CHECKING:
    import xarray as xr


class Recording:
    """One run's measurements over ``layers``, with coordinates (``facts``) and attributes; a segment a flush in ``path``."""

    def __init__(
        self, layers: Mapping[str, nn.Module], path: str | Path | None, run_id: str, flush_every: int
    ) -> None:
        if isinstance(flush_every, bool) or not isinstance(flush_every, int) or flush_every < 1:
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
        if self._segments is not None and self._segments.latest_status(run_id) is not None:
            raise StoreError(
                f"run {run_id!r} is in {path} already, and steps of two runs would be mixed: pass another run_id or path "
                "(where a run goes on from a checkpoint, Recorder's docstring says how to join its parts)"
            )

    @property
    def lead(self) -> tuple[int, ...]:
        """The shape of every value, before a mode: (runs,) where there are several."""
        return self._tape.lead

    def describe(self, facts: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
        """Set the coordinates and attributes; what cannot be stored is refused now, not after the run."""
        self.facts, self.attrs = dict(facts), dict(attrs)
        check(self._labelled(self._tape.flush()))

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
        if len(self._tape) >= self._flush_every:
            self.flush()

    def flush(self) -> None:
        """Move what was measured to the host, and to disk."""
        if len(self._tape):
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
        import xarray as xr

        self.flush()
        parts = self._parts or [self._tape.flush()]
        return self._labelled(xr.concat(parts, "step", data_vars="minimal", coords="minimal", join="outer"))

    def _write(self) -> None:
        self.self_test.check()
        part = self._tape.flush()
        if part.sizes["step"]:
            self._parts.append(part)
        if self._segments is not None:
            self._segments.append(self._labelled(part))

    def _labelled(self, dataset: xr.Dataset) -> xr.Dataset:
        own = {"run_id": self.run_id, "status": self.status, "last_step": self.last_step}
        return dataset.assign_coords(self.facts | own).assign_attrs(self.attrs)
