"""Controls: interventions on rival explanations. A new one is a file of its own and a line here."""

from alignlab.audit.controls.control import Contrast, Control, Finding
from alignlab.audit.controls.magnitude import Magnitude
from alignlab.audit.controls.placebo import Placebo
from alignlab.audit.controls.spike_in import SpikeIn
from alignlab.audit.controls.tuning import Tuning

ALL: dict[str, type[Control]] = {control.name: control for control in (Magnitude, Tuning, Placebo, SpikeIn)}

__all__ = ["ALL", "Contrast", "Control", "Finding", "Magnitude", "Placebo", "SpikeIn", "Tuning"]
