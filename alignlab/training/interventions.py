"""What is done to a run's gradients on purpose, as a part of its spec: what controls change to see what an effect hangs on."""

from __future__ import annotations

from typing import Literal

from alignlab.training.fields import SpecModel


class Graft(SpecModel):
    """Whose direction and whose step size each layer's update takes: the learning rule's or backprop's, on the same state."""

    direction: Literal["rule", "bp"]
    magnitude: Literal["rule", "bp"]
