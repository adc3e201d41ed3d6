"""What a control is: an intervention that removes one rival explanation, and the checks that it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from alignlab.audit.bench import Bench
from alignlab.audit.claim import Claim
from alignlab.audit.evidence import Check
from alignlab.audit.gathering import ControlSamples
from alignlab.training.spec import RunSpec


@dataclass(frozen=True)
class Contrast:
    """A row of the forest plot: seed-paired differences, > 0 where the first-named side is better.

    ``compares``: whether it sets the treatment against the baseline; else it favours neither.
    """

    label: str
    group: str
    differences: tuple[float, ...]
    compares: bool = True


WITHOUT, GIVEN = "treatment without it", "baseline given it"


@dataclass
class Finding:
    """What a control found. ``samples`` is None for pure validity checks. ``curves``: by group of runs, what a figure calls
    them beside both arms as claimed; those behind N and S are ``WITHOUT`` and ``GIVEN``."""

    samples: ControlSamples | None = None
    checks: list[Check] = field(default_factory=list)
    contrasts: list[Contrast] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, str] = field(default_factory=dict)


class Control:
    """Base of all controls. ``name`` as claims and verdicts use it.

    One of your own runs both arms under its intervention, and says what is left of the advantage: N, where the treatment is
    without the rival explanation, and S, where the baseline was given it (None: then it never explains alone).

    >>> class NoBias(Control):
    ...     name = "no_bias"
    ...     without = "without biases"
    ...     def apply(self, bench, treatment, baseline):
    ...         t, b = bench.claim.treatment, bench.claim.baseline
    ...         t_without = bench.outcomes("treatment, no bias", t, bias=False)  # fields of RunSpec that change
    ...         b_without = bench.outcomes("baseline, no bias", b, bias=False)
    ...         return Finding(self.samples(t_without - b_without, treatment - b_without))

    ``al.audit(claim, [NoBias(), al.controls.Placebo()])`` applies it; ``alignlab.audit.controls.ALL["no_bias"] = NoBias``
    makes it a name for claims and ``--controls``.
    """

    name: ClassVar[str]
    without: ClassVar[str] = ""  # how the verdict's sentence says N, "the treatment … is"
    given: ClassVar[str] = ""  # and S, "… the treatment stays ahead"
    explains: ClassVar[bool] = True  # whether it is about a rival explanation, or checks the audit itself

    def check(self, claim: Claim) -> None:
        """Refuse a claim that the control cannot be applied to, with a SpecError, before anything runs."""

    def foreseen(self, bench: Bench) -> list[RunSpec]:
        """The runs that :meth:`apply` is known to need, so that the audit can have them computed together with all others."""
        return []

    def samples(
        self, necessity: Any, sufficiency: Any = None, removed: Any = None, study_size: int | None = None
    ) -> ControlSamples:
        """The seed-paired differences N and S under the control's name and in its words; the others see there."""
        given, taken = (None if found is None else tuple(found) for found in (sufficiency, removed))
        return ControlSamples(self.name, tuple(necessity), given, taken, self.without, self.given, study_size)

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        """Run the intervention. ``treatment`` and ``baseline`` are the oriented outcomes as claimed, one a seed."""
        raise NotImplementedError
