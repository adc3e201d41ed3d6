"""The verdict: one pure function of the evidence table, seven rules asked in order, the first that holds
answers.

T is the treatment's advantage as claimed, N_k what is left of it without k, S_k what is left against a
baseline that was given k, m the smallest effect that matters; > 0 means "the treatment is better", bounds are
those of the intervals.

1. invalid            a validity check failed
2. not_reproduced     T's interval is not above 0, or T is equivalent to 0 within ±m
3. explained_by       upper(N_k) ≤ m and upper(S_k) ≤ m
4. reversed_under     upper(N_k) < −m (but S_k does not hold)
5. partly_explained   lower(T − N_k) > m (whatever is left: k may remove all, and yet not explain it alone)
6. supported          lower(N_k) > 0 for every k, and there is at least one k
7. inconclusive       otherwise
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from alignlab.audit import wording
from alignlab.audit.evidence import Check, ControlEvidence, Evidence, explains

__all__ = ["Check", "ControlEvidence", "Evidence", "Kind", "Verdict", "decide"]

Kind = Literal[
    "invalid",
    "not_reproduced",
    "explained_by",
    "reversed_under",
    "partly_explained",
    "supported",
    "inconclusive",
]


@dataclass(frozen=True)
class Verdict:
    """What the evidence says: its kind, the checks or controls it names, and why, in a sentence or two.

    `rule` is the number (1–7) of the rule that answered; `more_seeds` how many further seeds an inconclusive
    audit would need for a power of .8, None where unknown or where more seeds are not what is missing. Whoever
    adds them looks again: followed up to four times from 8 seeds, wrong verdicts rose from 4 to 7 %, at an alpha
    of 5 % and with every true effect on the edge of a rule. `str()` is the short
    form, for example `explained_by:magnitude,tuning` or `inconclusive (+12 seeds)`.
    """

    kind: Kind
    by: tuple[str, ...]
    text: str
    caveats: tuple[str, ...]
    rule: int
    more_seeds: int | None = None

    def __str__(self) -> str:
        """The short form."""
        named = f":{','.join(self.by)}" if self.by else ""
        seeds = f" (+{self.more_seeds} seeds)" if self.more_seeds else ""
        return f"{self.kind}{named}{seeds}"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, fit for JSON."""
        return asdict(self) | {"by": list(self.by), "caveats": list(self.caveats)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Verdict:
        """The inverse of `to_dict`."""
        return cls(**(data | {"by": tuple(data["by"]), "caveats": tuple(data["caveats"])}))


def decide(evidence: Evidence) -> Verdict:
    """The verdict of the first rule that holds; a pure, total function of the evidence table."""
    rules: tuple[Callable[[Evidence], Verdict | None], ...] = (
        _invalid,
        _not_reproduced,
        _explained_by,
        _reversed_under,
        _partly_explained,
        _supported,
    )
    verdicts = (rule(evidence) for rule in rules)
    return next((verdict for verdict in verdicts if verdict is not None), None) or _inconclusive(evidence)


def _invalid(e: Evidence) -> Verdict | None:
    failed = [check for check in e.checks if check.failed]
    if not failed:
        return None
    names = tuple(check.name for check in failed)
    return Verdict("invalid", names, wording.invalid(failed), _caveats(e), rule=1)


def _not_reproduced(e: Evidence) -> Verdict | None:
    if e.total.low > 0 and not e.equivalent:
        return None
    return Verdict("not_reproduced", (), wording.not_reproduced(e), _caveats(e), rule=2)


def _explained_by(e: Evidence) -> Verdict | None:
    found = [c for c in e.controls if explains(c.necessity, c.sufficiency, e.smallest_effect)]
    return _naming("explained_by", found, wording.explained_by, e, rule=3)


def _reversed_under(e: Evidence) -> Verdict | None:
    found = [c for c in e.controls if c.necessity.high < -e.smallest_effect]
    return _naming("reversed_under", found, wording.reversed_under, e, rule=4)


def _partly_explained(e: Evidence) -> Verdict | None:
    found = [c for c in e.controls if c.removed.low > e.smallest_effect]
    return _naming("partly_explained", found, wording.partly_explained, e, rule=5)


def _supported(e: Evidence) -> Verdict | None:
    if not e.controls or any(c.necessity.low <= 0 for c in e.controls):
        return None  # over no controls the rule would hold vacuously: an effect unquestioned is not supported
    return Verdict("supported", (), wording.supported(e), _caveats(e), rule=6)


def _inconclusive(e: Evidence) -> Verdict:
    more = (e.seeds_needed or 0) - e.fewest_seeds()
    open_to_seeds = any(_noisy(c, e.smallest_effect) for c in e.controls)
    more_seeds = more if more > 0 and open_to_seeds else None
    return Verdict("inconclusive", (), wording.inconclusive(e, more_seeds), _caveats(e), 7, more_seeds)


def _noisy(c: ControlEvidence, m: float) -> bool:
    """Whether seeds could decide on k: not if N_k is settled, and S_k missing or settled too."""
    given = c.sufficiency
    return c.necessity.low <= 0 and (c.necessity.high > m or (given is not None and given.low <= m))


def _naming(
    kind: Kind,
    found: list[ControlEvidence],
    word: Callable[[Evidence, list[ControlEvidence]], str],
    e: Evidence,
    rule: int,
) -> Verdict | None:
    """The verdict that names these controls, if any, in the table's order: the primary one first."""
    if not found:
        return None
    return Verdict(kind, tuple(c.name for c in found), word(e, found), _caveats(e), rule)


def _caveats(e: Evidence) -> tuple[str, ...]:
    """The audit's own caveats, and those that the table itself gives reason for."""
    own = [*e.caveats]
    if all(check.passed is None for check in e.checks):
        own.append("No validity check was run: nothing shows that this audit would notice its own failure.")
    idle = [c for c in e.controls if c.removed.tied and c.removed.estimate == 0]
    own += [
        f"{c.name} changed no outcome on any seed: its search chose what was claimed, the arms do not differ in it, it does "
        "not reach the runs, or all runs end at one outcome (an accuracy of 1). What it accounts for is 0, without an interval "
        "that tells of other seeds."
        for c in idle
    ]
    told = {id(c.removed) for c in idle}
    if any(interval.tied and id(interval) not in told for interval in e.intervals()):
        own.append(
            "In some contrast all seeds gave exactly the same difference: check that they reach the runs. Its interval has "
            "no width, or no ends, and leaves out whatever other seeds may show."
        )
    return tuple(dict.fromkeys(own))
