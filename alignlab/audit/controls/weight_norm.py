"""Is it how large the steps are beside the weights? Each arm takes the other's ‖ΔW‖/‖W‖, layer by layer and step by step.

A step's effect on a layer goes by its size relative to ‖W‖ (You et al. 2017; Bernstein et al. 2020), exactly where a
normalisation follows. An arm whose weights grow takes ever smaller relative steps at one absolute size: such an arm may win by
a schedule that nobody has set.
"""

from __future__ import annotations

from alignlab.audit.controls.replayed_magnitude import ReplayedMagnitude


class WeightNorm(ReplayedMagnitude):
    """Give each arm the ‖ΔW‖/‖W‖ of the other's run: N = the treatment with the baseline's, S = the reverse.

    As :class:`ReplayedMagnitude`, with the recorded ``relative_update`` in the place of ``update_norm``.
    """

    name = "weight_norm"
    without, given = (
        "with the baseline's relative step sizes",
        "against a baseline with the treatment's relative step sizes",
    )
    relative = True
    quantity = "relative_update"
    labels = ("direction, relative sizes", "relative magnitude", "interaction, relative sizes")
