"""What a contrast's statistics come to: an estimate with its interval, and whether an effect is as good as none."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from alignlab.audit.multiplicity import check_level


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval at 1 − alpha, from n seeds.

    `p_value` tests "no effect" by the `method` of the interval: "t", "bootstrap-t" (with t), "degenerate" (all
    differences equal) or "wilson"; but for the last, p ≤ alpha iff the interval excludes 0. Both ends are
    infinite where so few seeds exclude nothing. `p_sign_flip` assumes nothing but symmetry, and cannot fall
    below 2^(1−n).
    """

    estimate: float
    low: float
    high: float
    se: float
    n: int
    p_value: float
    method: str
    alpha: float
    p_sign_flip: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no comparison could read: a NaN would silently answer every question with no."""
        check_level(self.alpha)
        ends = () if self.unbounded else (self.low, self.high)
        if not all(map(math.isfinite, (self.estimate, *ends, self.se, self.p_value))):
            raise ValueError(
                f"not a finite interval: {asdict(self)}; check the outcomes that it was made from"
            )
        if self.low > self.high:
            raise ValueError(f"an interval from {self.low} to {self.high} is upside down: low must be ≤ high")

    @property
    def unbounded(self) -> bool:
        """Whether it excludes nothing: from minus to plus infinity."""
        return (self.low, self.high) == (-math.inf, math.inf)

    @property
    def tied(self) -> bool:
        """Whether all differences behind it are equal."""
        return self.method == "degenerate"

    def within(self, margin: float) -> bool:
        """Whether it lies wholly inside ±margin, ends included."""
        return -margin <= self.low and self.high <= margin

    def __format__(self, spec: str) -> str:
        """Estimate and ends in the format of numbers that ``spec`` is: ``+0.25 [+0.11, +0.39]`` for ``+.2f``."""
        if not spec:
            return str(self)
        return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, fit for JSON, which has no infinity: an open end is None."""
        return asdict(self, dict_factory=plain)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Interval:
        """The inverse of `to_dict`."""
        ends: dict[str, Any] = {"low": -math.inf, "high": math.inf}
        return cls(**{key: ends[key] if key in ends and v is None else v for key, v in data.items()})


def plain(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict factory for `dataclasses.asdict` that makes infinite numbers None."""
    return {key: None if isinstance(v, float) and math.isinf(v) else v for key, v in fields}


@dataclass(frozen=True)
class Equivalence:
    """Outcome of a test that an effect lies within ±margin; `equivalent` where p_value ≤ the test's alpha.

    `interval`: that at 1 − 2 alpha, which lies within ±margin iff the test says so.
    """

    p_value: float
    equivalent: bool
    margin: float
    interval: Interval
