"""The sentences of a verdict, for a scientist: which control, which contrast, its interval, and the m it was
held to.

Numbers appear as `estimate [low, high]`. Only statements that the intervals bear are made; m is the smallest
effect that matters, and "explained" never means more than "no advantage above m is left".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignlab.audit.evidence import Check, ControlEvidence, Evidence
from alignlab.audit.multiplicity import coverage
from alignlab.audit.statistics import Interval

__all__ = [
    "explained_by",
    "inconclusive",
    "invalid",
    "not_reproduced",
    "partly_explained",
    "reversed_under",
    "supported",
]


def invalid(failed: Sequence[Check]) -> str:
    """Rule 1: which checks failed."""
    reasons = [f"{check.name} ({check.detail})" if check.detail else check.name for check in failed]
    return f"The audit cannot be read, because a validity check failed: {_and(reasons)}."


def not_reproduced(e: Evidence) -> str:
    """Rule 2: worse, too small to matter, absent, or not told from 0."""
    total, m = f"T = {_span(e.total)}", e.smallest_effect
    less = f", but by less than the m = {m:g} that matters{_tested(e)}" if e.equivalent else ""
    if e.total.high < 0:
        return f"Not reproduced: as claimed, the treatment does worse than the baseline, {total}{less}."
    if e.equivalent and e.total.low > 0:
        return f"Not reproduced: the treatment does better, {total}{less}."
    if e.equivalent:
        return f"Not reproduced: {total}, and treatment and baseline are equivalent within m = {m:g}{_tested(e)}."
    text = f"Not reproduced: the advantage {total} is not told from 0."
    if e.total.high > m:
        return f"{text} Nor is one above m = {m:g} excluded: {e.total.n} seeds leave it open."
    return f"{text} One above m = {m:g} is excluded."


def explained_by(e: Evidence, found: Sequence[ControlEvidence]) -> str:
    """Rule 3: what is left without k and against k, and whether the treatment is worse without it."""
    m = e.smallest_effect
    left = [
        f"{c.without} it is N = {_span(c.necessity)}, {c.given} S = {_span(c.sufficiency)}"
        for c in found
        if c.sufficiency is not None
    ]
    text = (
        f"The advantage T = {_span(e.total)} is explained by {_and([c.name for c in found])}: "
        f"{'; '.join(left)}; no upper bound exceeds m = {m:g}."
    )
    worse = [c.without for c in found if c.necessity.high < -m]
    return f"{text} {_sentence(_and(worse))} the treatment is worse than the baseline." if worse else text


def reversed_under(e: Evidence, found: Sequence[ControlEvidence]) -> str:
    """Rule 4: the sign turns without k, yet k alone was not shown to make the advantage."""
    m = e.smallest_effect
    worse = [f"{c.without} the treatment is worse than the baseline, N = {_span(c.necessity)}" for c in found]
    why = [_why_not_sufficient(c, m) for c in found]
    return (
        f"The advantage T = {_span(e.total)} turns into its opposite: {_and(worse)} "
        f"(upper bound below −m = {-m:g}). {_sentence('; '.join(why))}."
    )


def partly_explained(e: Evidence, found: Sequence[ControlEvidence]) -> str:
    """Rule 5: how much k takes away, and what may be left; or why k does not explain it though nothing is."""
    m = e.smallest_effect
    parts = [f"{c.name} accounts for T − N = {_span(c.removed)} (lower bound above m = {m:g})" for c in found]
    rest = [_rest(c, m) for c in found]
    return f"Of the advantage T = {_span(e.total)}, {_and(parts)}. {_sentence('; '.join(rest))}."


def supported(e: Evidence) -> str:
    """Rule 6: what is left under every control, and where that is less than matters."""
    m = e.smallest_effect
    left = [f"{c.without} N = {_span(c.necessity)}" for c in e.controls]
    text = f"The advantage T = {_span(e.total)} stays above 0 under every control: {'; '.join(left)}."
    small = [c.without for c in e.controls if c.necessity.high <= m]
    return f"{text} {_sentence(_and(small))}, though, no more than m = {m:g} is left." if small else text


def inconclusive(e: Evidence, more_seeds: int | None) -> str:
    """Rule 7: which controls are undecided, and whether seeds would settle it."""
    m, total = e.smallest_effect, f"T = {_span(e.total)}"
    if not e.controls:
        return f"The advantage {total} is reproduced, but no intervention questioned it, so its source is unknown."
    undecided = [_why_undecided(c, m) for c in e.controls if c.necessity.low <= 0]
    text = f"The advantage {total} is reproduced, but its source is open: {'; '.join(undecided)}."
    if more_seeds is None:
        return text
    return (
        f"{text} At the observed spread {more_seeds} more seeds{_in_studies(e, more_seeds)} would tell an effect of "
        f"m = {m:g} from none in four audits of five; a verdict that is asked for again is wrong somewhat more often than one "
        "that was not."
    )


def _in_studies(e: Evidence, more_seeds: int) -> str:
    """Seeds alone would not tell of other choices: they come with studies of their own."""
    size = max((c.study_size or 0 for c in e.controls), default=0)
    if not size:
        return ""
    each = "one seed" if size == 1 else f"{size} seeds"
    return f", in {-(-more_seeds // size)} more studies (tuning_studies) of {each} each,"


def _tested(e: Evidence) -> str:
    """By which test they are equivalent, and on which interval, which is shorter than that of T."""
    i = e.equivalence
    if i is None:
        return ""
    return f" (two one-sided tests: the {coverage(i.alpha)} interval [{i.low:+.3g}, {i.high:+.3g}] lies within ±m)"


def _rest(c: ControlEvidence, m: float) -> str:
    left = f"{c.without} N = {_span(c.necessity)}"
    if c.necessity.high <= m:
        return f"{left} is no more than m, but {_why_not_sufficient(c, m)}"
    if c.necessity.low > 0:
        return f"{left} is left"
    if c.necessity.tied:
        return f"{left}, so that it stays open whether more is left than that"
    return f"{left} may be left, and is not told from 0"


def _why_not_sufficient(c: ControlEvidence, m: float) -> str:
    if c.sufficiency is None:
        return f"whether {c.name} alone makes the advantage was not measured"
    if c.sufficiency.low > m:
        ahead = f"{c.given} the treatment stays ahead, S = {_span(c.sufficiency)}"
        return f"{ahead}, so {c.name} alone does not make the advantage"
    return f"whether {c.name} alone makes the advantage is open: {c.given} S = {_span(c.sufficiency)}"


def _why_undecided(c: ControlEvidence, m: float) -> str:
    text = f"{c.without} N = {_span(c.necessity)}"
    if c.necessity.high > m:
        return f"{text}, which excludes neither 0 nor more than m = {m:g}"
    return f"{text}, no more than m = {m:g}, but {_why_not_sufficient(c, m)}"


def _span(i: Interval) -> str:
    if i.tied and i.unbounded:
        enough = math.ceil(1 - math.log2(i.alpha))  # 2^(1 − n) ≤ alpha, see statistics.paired
        return (
            f"{i.estimate:+.3g} (all {i.n} differences are equal, and so few seeds cannot tell: {enough} can)"
        )
    return f"{i:+.3g}"


def _and(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
