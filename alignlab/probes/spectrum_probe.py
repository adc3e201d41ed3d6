"""The probe of spectra: where the eigenvalues of W Bᵀ lie, and whether the errors that occur are sent downhill."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alignlab.checks import is_whole
from alignlab.measures.blocks import block_spectrum
from alignlab.measures.descent import descent_fraction_from_signals
from alignlab.probes.observation import LayerObservation
from alignlab.probes.probe import Probe


class FeedbackSpectrum(Probe):
    """The eigenvalues of W Bᵀ and of its symmetric part, for layers whose feedback is in use.

    Records ``spectrum_real``, ``spectrum_imag`` (dim ``mode``, by descending modulus), ``spectrum_positive_fraction``,
    ``symmetric_min``, ``symmetric_max``, ``symmetric_error`` (of these two: 0 where exact), ``symmetric_positive_fraction``,
    ``spectrum_trace``, ``chance_radius`` (of the disc that the eigenvalues of a B unrelated to W fill; of several maps the
    widest); and ``descent_fraction``, the share of the batch's own errors with eᵀ W Bᵀ e > 0 (Lillicrap et al. 2016), at every
    scheduled step. Under a direct rule W is the product of the forward weights above the layer and e the error of the output;
    ``drtp``, which sends no error down, has no ``descent_fraction``.

    Eigenvalues are costly and change slowly: they are taken at every ``every``-th scheduled step, the first included.
    A layer of several maps (groups, the positions of an untied convolution) has the union of their spectra.
    Exact up to matrices of ``exact_limit``; beyond, the ``largest`` by Arnoldi and the symmetric part by stochastic Lanczos.
    """

    quantities = (
        "spectrum_real",
        "spectrum_imag",
        "spectrum_positive_fraction",
        "symmetric_min",
        "symmetric_max",
        "symmetric_error",
        "symmetric_positive_fraction",
        "spectrum_trace",
        "chance_radius",
        "descent_fraction",
    )
    needs_truth = False

    def __init__(self, every: int = 10, exact_limit: int = 1024, largest: int = 32) -> None:
        for name, value in (("every", every), ("exact_limit", exact_limit), ("largest", largest)):
            if not is_whole(value):
                raise ValueError(
                    f"FeedbackSpectrum: {name} is {value!r}, expected a whole number, at least 1"
                )
        self.every, self.exact_limit, self.largest = every, exact_limit, largest
        self._spectra_due = False
        self._methods: dict[str, str] = {}

    def attach(self, model: nn.Module) -> None:
        self._methods = {}

    def due(self, count: int) -> bool:
        self._spectra_due = count % self.every == 0
        return True

    def measure(self, layer: LayerObservation) -> dict[str, Tensor]:
        if layer.matrices is None:
            return {}
        found = {}
        if layer.carried is not None:
            by_feedback, by_weight = layer.carried
            found["descent_fraction"] = descent_fraction_from_signals(by_weight, by_feedback)
        return found | self._spectrum(layer) if self._spectra_due else found

    def _spectrum(self, layer: LayerObservation) -> dict[str, Tensor]:
        assert layer.blocks is not None
        W, B = layer.blocks
        if W.dim() == 4:  # of several runs
            alone = [self._of_blocks(layer, *pair) for pair in zip(W, B, strict=True)]
            return {name: torch.stack([one[name] for one in alone]) for name in alone[0]}
        return self._of_blocks(layer, W, B)

    def _of_blocks(self, layer: LayerObservation, W: Tensor, B: Tensor) -> dict[str, Tensor]:
        spectrum = block_spectrum(W, B, exact_limit=self.exact_limit, k=self.largest)
        self._methods[layer.name] = spectrum.method
        return {
            "spectrum_real": spectrum.real,
            "spectrum_imag": spectrum.imag,
            "spectrum_positive_fraction": spectrum.positive_fraction,
            "symmetric_min": spectrum.symmetric_min,
            "symmetric_max": spectrum.symmetric_max,
            "symmetric_error": spectrum.symmetric_error,
            "symmetric_positive_fraction": spectrum.symmetric_positive_fraction,
            "spectrum_trace": spectrum.trace,
            "chance_radius": spectrum.chance_radius,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"methods": dict(self._methods)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._methods = dict(state["methods"])

    def attrs(self) -> dict[str, object]:
        settings = f"exact up to {self.exact_limit}, else the {self.largest} largest"
        methods = ", ".join(f"{name}: {method}" for name, method in self._methods.items())
        return {"spectrum_settings": settings, "spectrum_method": methods}  # text: netCDF takes no dict
