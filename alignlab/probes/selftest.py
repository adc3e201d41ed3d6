"""Tests that a recording makes of itself: where two signals are one by construction, they must be equal.

A layer that feeds the model's output gets backprop's own error, whatever the rule: tested at every measured step. And in
the first pass every layer's error is computed a second time from the output's: what arrives from elsewhere, from a loss on
hidden activations, say, would be missing from the true error and bend the angle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from alignlab.probes.errors import ProbeError
from alignlab.probes.uses import Use

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}  # relative
TOLERANCE_HALF = 3e-2  # bfloat16 rounds at 4e-3


class LastLayers:
    """Collects the test of each step; :meth:`check` reads the results, so that nothing waits for the device before."""

    def __init__(self) -> None:
        self._found: list[tuple[int, str, Tensor, float]] = []

    def add(self, step: int, layers: Mapping[str, Iterable[Use]]) -> None:
        """Compare the two errors of each layer that feeds the output."""
        for name, uses in layers.items():
            for use in uses:
                if use.feeds_output and use.delta_rule is not use.delta_bp:
                    assert use.delta_rule is not None
                    assert use.delta_bp is not None
                    difference = _difference(use.delta_rule, use.delta_bp)
                    self._found.append((step, name, difference, _tolerance(use.delta_bp)))

    def check(self) -> None:
        """Raise :class:`ProbeError` if a test failed, now and at every later call."""
        while self._found:
            step, name, difference, tolerance = self._found[0]
            if float(difference) > tolerance:
                raise ProbeError(
                    f"layer {name!r}, step {step}: it feeds the output, so its error must equal backprop's, but they differ by "
                    f"{float(difference):.1e} (relative). A hook changes gradients on the way; the angles of this run cannot "
                    "be trusted"
                )
            self._found.pop(0)


def check_paths(layers: Mapping[str, Iterable[Use]]) -> bool:
    """Raise :class:`ProbeError` where a layer received another error than the one that comes from the output; else True."""
    for name, use in ((name, use) for name, uses in layers.items() for use in uses):
        if use.expected is None:
            continue
        assert use.delta_rule is not None
        difference = float(_difference(use.delta_rule, use.expected))
        if difference > _tolerance(use.expected):
            raise ProbeError(
                f"layer {name!r} received another error than the one that the model's output sends it (they differ by "
                f"{difference:.1e}, relative), so its true error is unknown: a loss on activations inside the model, or a hook "
                "that changes gradients at random. Return such activations from the model beside its output"
            )
    return True


def _difference(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.float(), b.float()
    difference: Tensor = (a - b).norm() / b.norm()
    return difference


def _tolerance(x: Tensor) -> float:
    return TOLERANCE.get(x.dtype, TOLERANCE_HALF)
