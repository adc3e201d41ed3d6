"""The evidence table of an audit: the claimed effect, what each control leaves of it, and the validity
checks.

Every contrast is oriented so that > 0 means "the treatment is better". `gathering` makes the table from
seed-paired differences; nothing here concludes anything, that is `verdict`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from alignlab.audit.multiplicity import adjusted
from alignlab.audit.statistics import Interval, plain

__all__ = ["NOTHING", "Check", "ControlEvidence", "Evidence", "explains"]


NOTHING = "no difference that matters"


@dataclass(frozen=True)
class Check:
    """A validity check (placebo, spike-in, manipulation, grid edge, missing runs, budgets): how it went.

    `passed` is None where the check could not have failed: then it shows nothing either way.
    """

    name: str
    passed: bool | None
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether it was applied and did not pass."""
        return self.passed is not None and not self.passed


@dataclass(frozen=True)
class ControlEvidence:
    """What one control k shows.

    `necessity` N_k: the treatment without k against the baseline. `sufficiency` S_k: the treatment against
    the baseline given k; None where that was not run. `removed` T − N_k, paired by seed: what
    k accounts for. `without`, `given`: how a sentence says the two, for example "without its magnitudes".
    `study_size`: of how many seeds each difference is the mean, where the differences, and so n, are those of
    independent studies; None where they are those of seeds.
    """

    name: str
    necessity: Interval
    sufficiency: Interval | None
    removed: Interval
    without: str = ""
    given: str = ""
    study_size: int | None = None

    def __post_init__(self) -> None:
        """Say plainly what was not put into words."""
        object.__setattr__(self, "without", self.without or f"without {self.name}")
        object.__setattr__(self, "given", self.given or f"against a baseline given {self.name}")

    def intervals(self) -> tuple[Interval, ...]:
        """N_k, S_k and T − N_k, those that there are."""
        return tuple(i for i in (self.necessity, self.sufficiency, self.removed) if i is not None)


@dataclass(frozen=True)
class Evidence:
    """Everything the verdict is a function of. `controls` starts with the claim's primary control.

    `equivalent`: TOST finds the total effect within ±smallest_effect, that is `equivalence`, the interval at
    1 − 2 alpha, lies there. `seeds_needed`: the seeds, all told
    (not the additional ones), at which an effect of `smallest_effect` would be told from 0; None if unknown
    or out of reach.
    """

    total: Interval
    equivalent: bool
    smallest_effect: float
    controls: tuple[ControlEvidence, ...] = ()
    checks: tuple[Check, ...] = ()
    caveats: tuple[str, ...] = ()
    seeds_needed: int | None = None
    equivalence: Interval | None = None

    def __post_init__(self) -> None:
        """Refuse a table that no rule could be applied to."""
        if not (self.smallest_effect > 0 and math.isfinite(self.smallest_effect)):
            raise ValueError(f"smallest_effect is {self.smallest_effect}: say which effect > 0 would matter")
        names = [control.name for control in self.controls]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two controls share a name: {names}; a verdict could not say which one it means"
            )

    def intervals(self) -> tuple[Interval, ...]:
        """All contrasts there are: T, then N_k, S_k and T − N_k of each control."""
        return (self.total, *(i for c in self.controls for i in c.intervals()))

    def fewest_seeds(self) -> int:
        """The seeds behind the contrast with the fewest: n, or n studies times the seeds of each."""
        of_controls = (i.n * (c.study_size or 1) for c in self.controls for i in c.intervals())
        return min([self.total.n, *of_controls])

    def rows(self) -> list[dict[str, Any]]:
        """The table: one flat dict a contrast, with keys name, contrast, estimate, low, high, p, p_adjusted, n,
        alpha, reading, study_size.

        `alpha` is the level of the interval, that of the step-down over the controls; `p_adjusted` is p times the
        claim's alpha over it, so that p_adjusted ≤ the claim's alpha iff the interval excludes 0. `n` counts seeds, or
        studies of `study_size` seeds where that is not None.
        """
        found = [_row("total", "total", self.total, self.total.alpha, self._read_total())]
        for c in self.controls:
            for contrast, interval, read in (
                ("without", c.necessity, _read),
                ("given", c.sufficiency, _read),
                ("removed", c.removed, _read_removed),
            ):
                if interval is not None:
                    reading = read(interval, self.smallest_effect)
                    row = _row(c.name, contrast, interval, self.total.alpha, reading)
                    found.append(row | {"study_size": c.study_size})
        return found

    def _read_total(self) -> str:
        """As any interval, but for an equivalence that only the shorter one of the test shows."""
        own = _read(self.total, self.smallest_effect)
        if not self.equivalent or own == NOTHING:
            return own
        return f"{NOTHING} (two one-sided tests)"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings, fit for JSON."""
        data = asdict(self, dict_factory=plain)
        return data | {key: list(data[key]) for key in ("controls", "checks", "caveats")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evidence:
        """The inverse of `to_dict`."""
        lists = {
            "controls": tuple(_control_from_dict(control) for control in data["controls"]),
            "checks": tuple(Check(**check) for check in data["checks"]),
            "caveats": tuple(data["caveats"]),
        }
        equivalence = data.get("equivalence")
        intervals = {
            "total": Interval.from_dict(data["total"]),
            "equivalence": equivalence and Interval.from_dict(equivalence),
        }
        return cls(**(data | lists | intervals))


def explains(necessity: Interval, sufficiency: Interval | None, smallest_effect: float) -> bool:
    """Whether k explains the effect: neither without k nor given k is the treatment better by more than m."""
    return sufficiency is not None and max(necessity.high, sufficiency.high) <= smallest_effect


def _row(name: str, contrast: str, interval: Interval, alpha: float, reading: str) -> dict[str, Any]:
    return {
        "name": name,
        "contrast": contrast,
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "p": interval.p_value,
        "p_adjusted": adjusted(interval.p_value, interval.alpha, alpha),
        "n": interval.n,
        "alpha": interval.alpha,
        "reading": reading,
        "study_size": None,
    }


def _read(interval: Interval, m: float) -> str:
    """What an interval of an advantage says, strongest statement first."""
    statements = [
        (interval.high < -m, "worse by more than m"),
        (interval.low > m, "better by more than m"),
        (interval.within(m), NOTHING),
        (interval.high < 0, "worse"),
        (interval.low > 0, "better"),
        (interval.high <= m, "not better by more than m"),
    ]
    return next((text for holds, text in statements if holds), "undecided")


def _read_removed(interval: Interval, m: float) -> str:
    """What an interval of T − N_k says."""
    if interval.tied and interval.estimate == 0:
        return "changed no outcome"
    statements = [
        (interval.low > m, "accounts for more than m"),
        (interval.low > 0, "accounts for something"),
        (interval.high < 0, "hides some of the advantage"),
        (interval.high <= m, "accounts for no more than m"),
    ]
    return next((text for holds, text in statements if holds), "undecided")


def _control_from_dict(data: dict[str, Any]) -> ControlEvidence:
    given = data["sufficiency"]
    intervals = {
        "necessity": Interval.from_dict(data["necessity"]),
        "sufficiency": None if given is None else Interval.from_dict(given),
        "removed": Interval.from_dict(data["removed"]),
    }
    return ControlEvidence(**(data | intervals))
