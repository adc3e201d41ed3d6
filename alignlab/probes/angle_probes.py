"""Probes of direction: does the rule's gradient point where backprop's does, and does B point where W does?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alignlab import measures
from alignlab.probes.observation import LayerObservation
from alignlab.probes.probe import Probe


class GradientAngle(Probe):
    """∠(G_rule, G_bp) of the whole minibatch, and the angles of the single samples' errors.

    Records ``gradient_angle``; ``delta_angle``, ``delta_angle_std``, ``zero_fraction`` (Lillicrap et al. 2016); and
    ``local_angle``, which isolates this layer's feedback from all above. Degrees. Under a layerwise rule the last layer's
    angle is 0 by construction. ``local_angle`` is absent under direct rules, and where nothing below the layer learns. Where
    the rule has no errors at the units but only a weight gradient (weight perturbation), ``gradient_angle`` alone is recorded.

    ``samples=False`` leaves the angles of single samples out, and with them about half of the price: ``local_angle`` takes a
    product with W, as large as the layer's own backward pass.
    """

    quantities: tuple[str, ...] = (
        "gradient_angle",
        "delta_angle",
        "delta_angle_std",
        "zero_fraction",
        "local_angle",
    )

    samples = True  # also of a subclass with an __init__ of its own

    def __init__(self, *, samples: bool = True) -> None:
        if not isinstance(samples, bool):
            raise TypeError(f"GradientAngle: samples is {samples!r}, expected True or False")
        self.samples = samples
        if not samples:
            self.quantities = ("gradient_angle",)

    def keep(self, layer: LayerObservation) -> dict[str, Tensor | float]:
        kept: dict[str, Tensor | float] = {"gradients": layer.tied_products}
        if self.samples and layer.landed is None:
            kept["deltas"] = measures.delta_products(*layer.deltas)
            if not layer.direct and layer.carried is not None:
                kept["carried"] = measures.delta_products(*layer.carried)
        return kept

    def finish(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        products = measures.products_from_tied(kept["gradients"])
        found = {"gradient_angle": measures.angle_from_products(*products)}
        if "deltas" in kept:
            names = ("delta_angle", "delta_angle_std", "zero_fraction")
            found |= zip(names, measures.delta_angle_from_products(kept["deltas"]), strict=True)
        if "carried" in kept:
            found["local_angle"] = measures.delta_angle_from_products(kept["carried"])[0]
        return found


class WeightAngle(Probe):
    """∠(B, W) in degrees and ‖B‖, for layers whose feedback is in use.

    Under a direct rule W is the product of the forward weights above the layer.
    """

    quantities = ("weight_angle", "feedback_norm")
    needs_truth = False

    def keep(self, layer: LayerObservation) -> dict[str, Tensor | float]:
        if layer.matrices is None:
            return {}
        W, B = layer.matrices
        if torch.float64 in (W.dtype, B.dtype):  # its angles are finer than products
            return {"angle": measures.weight_angle(B, W), "norm": measures.frobenius(B)}
        return {"products": measures.tied_weight_products(B, W)}

    def finish(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if "products" not in kept:
            return {"weight_angle": kept["angle"], "feedback_norm": kept["norm"]}
        products = measures.products_from_tied(kept["products"])
        return {
            "weight_angle": measures.angle_from_products(*products),
            "feedback_norm": products[0].sqrt(),
        }
