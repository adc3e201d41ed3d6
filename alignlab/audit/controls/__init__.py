"""Controls: interventions on rival explanations. A new one is a file of its own and a line here."""

from alignlab.audit.controls.alignment import Alignment
from alignlab.audit.controls.control import Contrast, Control, Finding
from alignlab.audit.controls.feedback_scale import FeedbackScale
from alignlab.audit.controls.frozen_hidden import FrozenHidden
from alignlab.audit.controls.global_magnitude import GlobalMagnitude
from alignlab.audit.controls.gradient_clipping import GradientClipping
from alignlab.audit.controls.init_scale import InitScale
from alignlab.audit.controls.magnitude import Magnitude
from alignlab.audit.controls.placebo import Placebo
from alignlab.audit.controls.replayed_magnitude import ReplayedMagnitude
from alignlab.audit.controls.spike_in import SpikeIn
from alignlab.audit.controls.tuning import Tuning
from alignlab.audit.controls.weight_norm import WeightNorm

ALL: dict[str, type[Control]] = {
    control.name: control
    for control in (
        Magnitude,
        GlobalMagnitude,
        ReplayedMagnitude,
        WeightNorm,
        FeedbackScale,
        Alignment,
        Tuning,
        InitScale,
        GradientClipping,
        FrozenHidden,
        Placebo,
        SpikeIn,
    )
}

__all__ = [
    "ALL",
    "Alignment",
    "Contrast",
    "Control",
    "FeedbackScale",
    "Finding",
    "FrozenHidden",
    "GlobalMagnitude",
    "GradientClipping",
    "InitScale",
    "Magnitude",
    "Placebo",
    "ReplayedMagnitude",
    "SpikeIn",
    "Tuning",
    "WeightNorm",
]
