"""Figures of what was recorded: each function takes a dataset and returns a matplotlib Figure, on screen or off.

Nothing here opens a window or leaves pyplot state behind; a notebook shows a figure after ``%matplotlib inline``, and `save`
writes to disk. matplotlib is imported when the first of these names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignlab.figures.alignment import aligning
    from alignlab.figures.angle import angles
    from alignlab.figures.arrival import reaching
    from alignlab.figures.asking import Question, questions
    from alignlab.figures.audits import audit_figures, run_figures
    from alignlab.figures.boards import Shown, angle_panels, board
    from alignlab.figures.duration import durations
    from alignlab.figures.evidence import forest
    from alignlab.figures.gain import gains
    from alignlab.figures.learning import learning_curves
    from alignlab.figures.saving import save
    from alignlab.figures.spectrum import spectra
    from alignlab.figures.trend import Reference, reported, trends
    from alignlab.figures.tuning import loss_against_lr
    from alignlab.figures.widths import fitted

__all__ = [
    "Question",
    "Reference",
    "Shown",
    "aligning",
    "angle_panels",
    "angles",
    "audit_figures",
    "board",
    "durations",
    "fitted",
    "forest",
    "gains",
    "learning_curves",
    "loss_against_lr",
    "questions",
    "reaching",
    "reported",
    "run_figures",
    "save",
    "spectra",
    "trends",
]

_HOMES = {
    "Question": "asking",
    "Reference": "trend",
    "Shown": "boards",
    "aligning": "alignment",
    "angle_panels": "boards",
    "angles": "angle",
    "audit_figures": "audits",
    "board": "boards",
    "durations": "duration",
    "fitted": "widths",
    "forest": "evidence",
    "gains": "gain",
    "learning_curves": "learning",
    "loss_against_lr": "tuning",
    "questions": "asking",
    "reaching": "arrival",
    "reported": "trend",
    "run_figures": "audits",
    "save": "saving",
    "spectra": "spectrum",
    "trends": "trend",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
