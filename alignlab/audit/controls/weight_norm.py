"""Is it how large the steps are beside the weights? Each arm takes the other's ‖ΔW‖/‖W‖, layer by layer and step by step.

A step's effect on a layer goes by its size relative to ‖W‖ (You et al. 2017; Bernstein et al. 2020), exactly where a
normalisation follows. An arm whose weights grow takes ever smaller relative steps at one absolute size: such an arm may win by
a schedule that nobody has set.
"""

from __future__ import annotations

from alignlab.audit.claim import Claim
from alignlab.audit.controls.replayed_magnitude import ReplayedMagnitude
from alignlab.training.errors import SpecError


class WeightNorm(ReplayedMagnitude):
    """Give each arm the ‖ΔW‖/‖W‖ of the other's run: N = the treatment with the baseline's, S = the reverse.

    As :class:`ReplayedMagnitude`, with the recorded ``relative_update`` in the place of ``update_norm``. Raises
    :class:`SpecError` for weights that start from zero, too: no step has a size relative to these.
    """

    name = "weight_norm"
    without, given = (
        "with the baseline's relative step sizes",
        "against a baseline with the treatment's relative step sizes",
    )
    relative = True
    quantity = "relative_update"
    labels = ("direction, relative sizes", "relative magnitude", "interaction, relative sizes")

    def check(self, claim: Claim) -> None:
        """The weights have a size that steps can be relative to."""
        super().check(claim)
        spec = claim.spec(claim.treatment, claim.seeds[0])
        if not spec.weight_scale or spec.weight_init == "nokland":
            raise SpecError(
                f"control 'weight_norm' sets steps relative to the weights, which start from zero (weight_init "
                f"{spec.weight_init!r}, weight_scale {spec.weight_scale:g}) and would stay there: take another, or leave the "
                "control out"
            )
