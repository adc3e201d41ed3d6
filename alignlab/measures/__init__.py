"""Floor 0: what is measured, as pure functions on tensors with any leading run dimensions.

No model, no hook, no dataset: only tensors in, tensors out. Every function states its formula, shapes, units and
source; ``alignlab.testing.naive`` holds a slow twin of each.
"""

from alignlab.measures.angles import (
    angle,
    angle_from_products,
    cosine,
    delta_angle,
    delta_angle_from_products,
    delta_products,
    gradient_angle,
    gradient_products,
    local_angle,
    products_from_tied,
    tied_gradient_products,
    weight_angle,
)
from alignlab.measures.chance import chance_band, chance_radius, chance_std
from alignlab.measures.descent import descent_fraction, descent_fraction_from_signals
from alignlab.measures.quantities import QUANTITIES, Quantity
from alignlab.measures.spectra import Spectrum, feedback_spectrum
from alignlab.measures.steps import (
    angular_update,
    angular_update_from_products,
    applied_gain,
    effective_lr,
    feedback_gain,
    frobenius,
    gain_from_products,
    projected_lr,
    projected_lr_from_products,
    relative_update,
    tied_weight_products,
    update_angle,
    update_angle_from_products,
    update_products,
    weight_products,
)

__all__ = [
    "QUANTITIES",
    "Quantity",
    "Spectrum",
    "angle",
    "angle_from_products",
    "angular_update",
    "angular_update_from_products",
    "applied_gain",
    "chance_band",
    "chance_radius",
    "chance_std",
    "cosine",
    "delta_angle",
    "delta_angle_from_products",
    "delta_products",
    "descent_fraction",
    "descent_fraction_from_signals",
    "effective_lr",
    "feedback_gain",
    "feedback_spectrum",
    "frobenius",
    "gain_from_products",
    "gradient_angle",
    "gradient_products",
    "local_angle",
    "products_from_tied",
    "projected_lr",
    "projected_lr_from_products",
    "relative_update",
    "tied_gradient_products",
    "tied_weight_products",
    "update_angle",
    "update_angle_from_products",
    "update_products",
    "weight_angle",
    "weight_products",
]
