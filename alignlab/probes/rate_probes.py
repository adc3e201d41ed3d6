"""Probes of magnitude: how loud the rule speaks, and what learning rate that amounts to. The seed of alignlab."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from alignlab import measures
from alignlab.probes.geometry import flat
from alignlab.probes.observation import LayerObservation
from alignlab.probes.probe import Probe


class EffectiveLR(Probe):
    """How large the steps of each layer really are, beside plain gradient descent's.

    From the error signals: ``feedback_gain`` = ‖G_rule‖/‖G_bp‖, ``effective_lr`` = lr · gain, ``gradient_norm`` (of the
    rule), ``gradient_norm_bp``. From what the optimizer did to W: ``projected_lr`` = −⟨ΔW, G_bp⟩/‖G_bp‖², ``update_angle``
    = ∠(−ΔW, G_bp), ``applied_gain`` = ‖ΔW‖/(lr ‖G_bp‖), ``relative_update`` = ‖ΔW‖/‖W‖, ``angular_update`` = ∠(W, W + ΔW),
    ``update_norm``, ``weight_norm``. Defined for any optimizer, momentum and clipping included.

    Where several processes train one model (DistributedDataParallel), ΔW is of the samples of all and G_bp of this one's: the
    three that compare them are left out.

    In float32 an ``update_angle`` of 0° or 180° is known to 0.2°, and to 1° where G_bp is what is left of samples that cancel,
    at the extreme to 4°. A step that leaves less than a thousandth of a weight has no ``angular_update``.
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

    def keep(self, layer: LayerObservation) -> dict[str, Tensor | float]:
        kept: dict[str, Tensor | float] = {"gradients": layer.tied_products, "lr": layer.learning_rate}
        if layer.update is None:
            kept["weight_norm"] = measures.frobenius(flat(layer.layer, layer.weight))
        else:
            weight, update = (flat(layer.layer, x) for x in (layer.weight, layer.update))
            kept["weights"] = measures.tied_weight_products(weight, update)
            if not layer.in_part:
                kept["along"] = layer.update_product
        return kept

    def finish(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rule, _, bp = measures.products_from_tied(kept["gradients"])
        gain = measures.gain_from_products(rule, bp)
        found = {
            "feedback_gain": gain,
            "effective_lr": measures.effective_lr(kept["lr"], gain),
            "gradient_norm": rule.sqrt(),
            "gradient_norm_bp": bp.sqrt(),
        }
        if "weights" in kept:
            return found | self._steps(kept, bp)
        return found | {"weight_norm": kept["weight_norm"]}

    @staticmethod
    def _steps(kept: Mapping[str, Tensor], bp: Tensor) -> dict[str, Tensor]:
        weight, across, step = measures.products_from_tied(kept["weights"])
        found = {
            "relative_update": measures.gain_from_products(step, weight),
            "angular_update": measures.angular_update_from_products(weight, across, step),
            "update_norm": step.sqrt(),
            "weight_norm": weight.sqrt(),
        }
        if "along" not in kept:
            return found
        return found | {
            "projected_lr": measures.projected_lr_from_products(kept["along"], bp),
            "update_angle": measures.update_angle_from_products(step, kept["along"], bp),
            "applied_gain": measures.gain_from_products(step, kept["lr"].to(bp.dtype).square() * bp),
        }
