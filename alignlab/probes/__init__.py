"""Probes: attach them to any training run with a :class:`Recorder`. All hooks on models and optimizers live here."""

from alignlab.probes.angle_probes import GradientAngle, WeightAngle
from alignlab.probes.capture import Capture
from alignlab.probes.errors import ProbeError
from alignlab.probes.loss_probe import Loss
from alignlab.probes.observation import LayerObservation, Observation
from alignlab.probes.probe import Probe
from alignlab.probes.rate_probes import EffectiveLR
from alignlab.probes.recorder import Recorder
from alignlab.probes.schedule import every, log_spaced
from alignlab.probes.spectrum_probe import FeedbackSpectrum

__all__ = [
    "Capture",
    "EffectiveLR",
    "FeedbackSpectrum",
    "GradientAngle",
    "LayerObservation",
    "Loss",
    "Observation",
    "Probe",
    "ProbeError",
    "Recorder",
    "WeightAngle",
    "every",
    "log_spaced",
]
