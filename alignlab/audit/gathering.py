"""From seed-paired differences to the evidence table: at which level each interval stands, and how many seeds would tell.

The levels are those of the step-down over the controls (:mod:`alignlab.audit.multiplicity`); what the table holds:
:mod:`alignlab.audit.evidence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from alignlab.audit.evidence import Check, ControlEvidence, Evidence, explains
from alignlab.audit.multiplicity import stepdown_levels
from alignlab.audit.resampling import all_equal
from alignlab.audit.statistics import Interval, paired, seeds_needed, tost

__all__ = ["ControlSamples", "gather"]

Read = Callable[[Sequence[float], float], Interval]  # differences at a level


@dataclass(frozen=True)
class ControlSamples:
    """Seed-paired differences (n,) behind one control; `removed` defaults to total − necessity by
    seed; a control on other seeds than the claim's passes it, and so does one whose differences are means of `study_size`
    seeds each.
    """

    name: str
    necessity: Sequence[float]
    sufficiency: Sequence[float] | None = None
    removed: Sequence[float] | None = None
    without: str = ""
    given: str = ""
    study_size: int | None = None


def gather(
    total: Sequence[float],
    controls: Sequence[ControlSamples],
    smallest_effect: float,
    *,
    alpha: float = 0.05,
    checks: Sequence[Check] = (),
    caveats: Sequence[str] = (),
    max_seeds: int = 1000,
    continuous: bool = False,
) -> Evidence:
    """The evidence table from seed-paired differences, all oriented so that > 0 means "the treatment is
    better".

    T stands at alpha: only a claim that passes it has its controls read. The controls' intervals are
    Holm-corrected, stepping down on "k explains the effect" (see `multiplicity`): at alpha / K each until
    some control explains it, so the chance that any wrong control is named is at most alpha. `seeds_needed`
    comes from the widest contrast, and from those whose differences are all equal; where differences are of
    studies, it is that of whole studies of the same size. `continuous`: see `paired`.
    """
    if not (smallest_effect > 0 and math.isfinite(smallest_effect)):
        raise ValueError(f"smallest_effect is {smallest_effect}: say which effect > 0 would matter")
    read = partial(paired, continuous=continuous)
    levels = stepdown_levels([_explaining_at(samples, smallest_effect, read) for samples in controls], alpha)
    needed = _needed(controls, smallest_effect, alpha, max_seeds) if controls else None
    same = tost(total, smallest_effect, alpha)
    return Evidence(
        total=read(total, alpha),
        equivalent=same.equivalent,
        equivalence=same.interval,
        smallest_effect=float(smallest_effect),
        controls=tuple(_at_level(c, total, level, read) for c, level in zip(controls, levels, strict=True)),
        checks=tuple(checks),
        caveats=tuple(caveats),
        seeds_needed=needed,
    )


def _needed(controls: Sequence[ControlSamples], m: float, alpha: float, max_seeds: int) -> int | None:
    """The seeds that the most demanding contrast of a control asks for, in whole studies of the size that there is."""
    sizes = {c.study_size or 1 for c in controls}
    found = [
        _asked(
            [c for c in controls if (c.study_size or 1) == size], size, m, alpha / len(controls), max_seeds
        )
        for size in sizes
    ]
    known = [n for n in found if n is not None]
    whole = math.lcm(*sizes)
    return -(-max(known) // whole) * whole if len(known) == len(found) else None


def _asked(controls: Sequence[ControlSamples], size: int, m: float, alpha: float, most: int) -> int | None:
    """The seeds that the widest contrast asks for, and one whose differences are all equal, where each is of ``size`` seeds."""
    samples = [s for c in controls for s in (c.necessity, c.sufficiency) if s is not None]
    asking = [max(samples, key=lambda d: float(np.std(d, ddof=1)))]
    asking += [d for d in samples if all_equal(np.asarray(d, float))][:1]
    found = [seeds_needed(d, m, alpha, max_n=max(2, most // size)) for d in asking]
    known = [n for n in found if n is not None]
    return size * max(known) if len(known) == len(found) else None


def _explaining_at(samples: ControlSamples, m: float, read: Read) -> Callable[[float], bool]:
    def rejects(level: float) -> bool:
        given = None if samples.sufficiency is None else read(samples.sufficiency, level)
        return explains(read(samples.necessity, level), given, m)

    return rejects


def _at_level(samples: ControlSamples, total: Sequence[float], level: float, read: Read) -> ControlEvidence:
    removed = samples.removed
    if removed is None:
        if len(samples.necessity) != len(total):
            raise ValueError(
                f"control {samples.name!r} has {len(samples.necessity)} seeds and the claim {len(total)}: "
                "pass `removed` for the seeds that they share"
            )
        removed = (np.asarray(total, float) - np.asarray(samples.necessity, float)).tolist()
    given = None if samples.sufficiency is None else read(samples.sufficiency, level)
    necessity = read(samples.necessity, level)
    said = (samples.without, samples.given, samples.study_size)
    return ControlEvidence(samples.name, necessity, given, read(removed, level), *said)
