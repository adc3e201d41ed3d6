"""Audits: a claim about why a method wins, interventions on the rival explanations, and a verdict with its evidence.

The package is called as the function in it: ``al.audit(claim, [al.controls.Magnitude()], store="runs", workers=2)``; see
``help(al.audit.audit)``.
"""

import sys
from types import ModuleType
from typing import Any

from alignlab.audit import controls
from alignlab.audit.claim import Arm, Claim
from alignlab.audit.evidence import Check, ControlEvidence, Evidence
from alignlab.audit.result import AuditResult
from alignlab.audit.running import audit
from alignlab.audit.statistics import Interval, paired
from alignlab.audit.verdict import Verdict, decide

__all__ = [
    "Arm",
    "AuditResult",
    "Check",
    "Claim",
    "ControlEvidence",
    "Evidence",
    "Interval",
    "Verdict",
    "audit",
    "controls",
    "decide",
    "paired",
]


class _Callable(ModuleType):
    """``alignlab.audit`` names both this package and what it is for: ``al.audit(claim)`` works once it is imported."""

    def __call__(self, *args: Any, **kwargs: Any) -> AuditResult:
        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
