"""Backprop as a rule like any other: every layer hands its error down through its own W. The control of all others."""

from __future__ import annotations

from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.rule import Rule


class Backprop(Rule):
    """``delta_below = delta W``; no feedback is stored (Rumelhart, Hinton & Williams 1986)."""

    name = "bp"
    uses_feedback = False

    def __init__(self) -> None:
        pass

    def start(self, layer: FeedbackLayer) -> None:
        """Nothing to draw: the carrier is W."""
