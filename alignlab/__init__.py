"""alignlab finds out why a learning rule wins: probes, figures and interventional audits for PyTorch training runs.

>>> import alignlab as al
>>> sorted(al.rules.RULES)[:3]
['bp', 'brsf', 'dfa']

Attach probes to any training run (:class:`Recorder`), draw what was recorded (:mod:`alignlab.figures`), and audit a claim
about why a method wins (:func:`audit`). Names are loaded when first used, so importing alignlab is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# floor by floor: the public name and the module that has it
_PUBLIC = {
    "alignlab.rules": ("convert", "revert"),
    "alignlab.store": ("open_runs", "compact"),
    "alignlab.probes": (
        "Recorder",
        "Probe",
        "GradientAngle",
        "WeightAngle",
        "FeedbackSpectrum",
        "EffectiveLR",
        "Loss",
        "every",
        "log_spaced",
    ),
    "alignlab.training": ("RunSpec", "Graft", "train", "Sweep"),
    "alignlab.audit": ("Arm", "Claim", "controls", "Verdict"),
    "alignlab.study": ("Study", "grid"),
}
_MODULES = ("measures", "rules", "store", "probes", "training", "audit", "figures", "report", "testing")
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [  # noqa: RUF022 — grouped by floor
    "measures", "rules", "convert", "revert", "store", "open_runs", "compact", "probes", "Recorder", "Probe",
    "GradientAngle", "WeightAngle", "FeedbackSpectrum", "EffectiveLR", "Loss", "every", "log_spaced",
    "training", "RunSpec", "Graft", "train", "Sweep", "Arm", "Claim", "audit", "controls", "Verdict", "figures",
    "report", "Study", "grid",
]  # fmt: skip

if TYPE_CHECKING:
    from alignlab import figures, measures, probes, report, rules, store, training
    from alignlab.audit import Arm, Claim, Verdict, audit, controls
    from alignlab.probes import (
        EffectiveLR,
        FeedbackSpectrum,
        GradientAngle,
        Loss,
        Probe,
        Recorder,
        WeightAngle,
        every,
        log_spaced,
    )
    from alignlab.rules import convert, revert
    from alignlab.store import compact, open_runs
    from alignlab.study import Study, grid
    from alignlab.training import Graft, RunSpec, Sweep, train

    __version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _installed()
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"alignlab.{name}")
    raise AttributeError(f"module 'alignlab' has no attribute {name!r}")


def _installed() -> str:
    """The version that was installed, "unknown" where the package lies in a folder only."""
    from importlib import metadata

    try:
        return metadata.version("alignlab")
    except metadata.PackageNotFoundError:
        return "unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
