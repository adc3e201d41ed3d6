"""Probes of magnitude: how loud the rule speaks, and what learning rate that amounts to. The seed of alignlab."""

from __future__ import annotations

from torch import Tensor

from alignlab import measures
from alignlab.probes.observation import LayerObservation
from alignlab.probes.probe import Probe


class EffectiveLR(Probe):
    """How large the steps of each layer really are, beside plain gradient descent's.

    From the error signals: ``feedback_gain`` = ‖G_rule‖/‖G_bp‖, ``effective_lr`` = lr · gain, ``gradient_norm`` (of the
    rule), ``gradient_norm_bp``. From what the optimizer did to W: ``projected_lr`` = −⟨ΔW, G_bp⟩/‖G_bp‖², ``update_angle``
    = ∠(−ΔW, G_bp), ``applied_gain`` = ‖ΔW‖/(lr ‖G_bp‖), ``relative_update`` = ‖ΔW‖/‖W‖, ``angular_update`` = ∠(W, W + ΔW),
    ``update_norm``, ``weight_norm``. Defined for any optimizer, momentum and clipping included.
    """

    quantities = (
        "feedback_gain",
        "effective_lr",
        "gradient_norm",
        "gradient_norm_bp",
        "projected_lr",
        "update_angle",
        "applied_gain",
        "relative_update",
        "angular_update",
        "update_norm",
        "weight_norm",
    )
    needs_update = True

    def measure(self, layer: LayerObservation) -> dict[str, Tensor]:
        rule, _, bp = layer.products
        gain = measures.gain_from_products(rule, bp)
        found = {
            "feedback_gain": gain,
            "effective_lr": measures.effective_lr(layer.learning_rate, gain),
            "gradient_norm": rule.sqrt(),
            "gradient_norm_bp": bp.sqrt(),
        }
        if layer.update is None:
            return found | {"weight_norm": measures.frobenius(layer.weight.flatten(1))}
        return found | self._steps(layer, layer.update, bp)

    @staticmethod
    def _steps(layer: LayerObservation, update: Tensor, bp: Tensor) -> dict[str, Tensor]:
        weight, across, step = measures.weight_products(layer.weight.flatten(1), update.flatten(1))
        return {
            "projected_lr": measures.projected_lr_from_products(layer.update_product, bp),
            "update_angle": measures.update_angle_from_products(step, layer.update_product, bp),
            "applied_gain": measures.gain_from_products(step, layer.learning_rate**2 * bp),
            "relative_update": measures.gain_from_products(step, weight),
            "angular_update": measures.angular_update_from_products(weight, across, step),
            "update_norm": step.sqrt(),
            "weight_norm": weight.sqrt(),
        }
