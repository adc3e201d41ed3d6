"""Is it only how long the whole step is? The 2×2 graft with one factor for all layers, which keep their proportions.

What a single learning rate could do for an arm, in every step anew. Where magnitudes explain an effect and the global one does
not, it hangs on how the step is shared out among the layers, and no search over learning rates can find that.
"""

from __future__ import annotations

from alignlab.audit.controls.magnitude import Magnitude


class GlobalMagnitude(Magnitude):
    """Give each arm the length of the other's whole step: N = the treatment's direction with it, S = the reverse.

    With ‖G‖ over all weights that learn: G ← G · ‖G_other‖ / ‖G‖, on the same weights and batch. Needs what
    :class:`Magnitude` needs, and raises as it does.
    """

    name = "global_magnitude"
    without, given = (
        "without the length of its whole step",
        "against a baseline given the length of its whole step",
    )
    scope = "global"
    labels = ("direction and proportions", "global magnitude", "interaction, global magnitude")
