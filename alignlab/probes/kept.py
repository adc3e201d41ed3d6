"""What two-stage probes kept at the steps, small tensors, until their formulas are applied to many steps at once.

A formula over a few numbers costs as much as one over a thousand, and a step has time for few. So a step copies what was
kept into one tensor; :meth:`Kept.finish` hands each probe its own, a row a step. That happens at a flush, or before what is
kept grows large, on the device that holds it: nothing waits for a device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from alignlab.probes.answers import ask_values, check_number
from alignlab.probes.probe import Probe

LIMIT = 1 << 16  # numbers

Kind = tuple[torch.device, torch.dtype]
Found = tuple[Probe, str, Mapping[str, Tensor | float]]  # whose, of which layer, what by which name


class Place(NamedTuple):
    """What a piece of a row is, and where: plain numbers are together, and the tensors of one kind."""

    probe: Probe
    layer: str
    name: str
    shape: torch.Size
    kind: Kind | None


@dataclass
class Row:
    """One step's."""

    index: int
    numbers: list[float]
    tensors: dict[Kind, Tensor]


class Kept:
    """What was kept of many rows (measured steps). ``lead``: the shape of every value in a row, before a mode."""

    def __init__(self, lead: tuple[int, ...]) -> None:
        self.lead = lead
        self._rows: dict[tuple[Place, ...], list[Row]] = {}
        self._held = 0

    @property
    def is_large(self) -> bool:
        """Whether it is time to finish."""
        return self._held > LIMIT

    def add(self, index: int, found: Sequence[Found]) -> None:
        """What probes kept of one step; copied."""
        places: list[Place] = []
        numbers: list[float] = []
        tensors: dict[Kind, list[Tensor]] = {}
        for probe, layer, kept in found:
            for name, value in kept.items():
                if isinstance(value, Tensor):
                    kind = value.device, value.dtype
                    tensors.setdefault(kind, []).append(value.detach().reshape(-1))
                    places.append(Place(probe, layer, name, value.shape, kind))
                else:
                    check_number(probe, "keep", layer, name, value)
                    numbers.append(float(value))
                    places.append(Place(probe, layer, name, torch.Size(), None))
        if places:
            row = Row(index, numbers, {kind: torch.cat(parts) for kind, parts in tensors.items()})
            self._rows.setdefault(tuple(places), []).append(row)
            self._held += sum(part.numel() for part in row.tensors.values())

    def finish(self) -> Iterator[tuple[list[int], str, Mapping[str, Tensor]]]:
        """Apply the formulas to everything and let go of it: for rows and a layer, the variables, a row each."""
        layouts, self._rows, self._held = self._rows, {}, 0
        for places, rows in layouts.items():
            indices = [row.index for row in rows]
            for (probe, layer), kept in _by_owner(places, rows).items():
                shape = (len(rows), *self.lead)
                yield indices, layer, ask_values(probe, "finish", kept, of=layer, lead=shape)


def _by_owner(places: Sequence[Place], rows: Sequence[Row]) -> dict[tuple[Probe, str], dict[str, Tensor]]:
    """What each probe kept of each layer, the rows along a new first dimension."""
    tables: dict[Kind | None, Tensor] = {
        kind: torch.stack([row.tensors[kind] for row in rows]) for kind in rows[0].tensors
    }
    home = next((table.device for table in tables.values()), torch.device("cpu"))
    wide = torch.float32 if home.type == "mps" else torch.float64
    numbers = torch.tensor(
        [row.numbers for row in rows], dtype=wide, device="cpu", pin_memory=home.type == "cuda"
    )
    tables[None] = numbers.to(home, non_blocking=True)  # from pinned memory, for which nothing waits
    taken: dict[Kind | None, int] = defaultdict(int)
    found: dict[tuple[Probe, str], dict[str, Tensor]] = defaultdict(dict)
    for place in places:
        start, size = taken[place.kind], place.shape.numel()
        taken[place.kind] += size
        piece = tables[place.kind][:, start : start + size]
        found[place.probe, place.layer][place.name] = piece.reshape(len(rows), *place.shape)
    return found
