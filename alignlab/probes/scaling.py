"""What a ``GradScaler`` multiplied the loss by, and the signals without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alignlab.probes.callers import stepping_scaler
from alignlab.probes.uses import Use


def scale_of(scaler: Any) -> Tensor | None:
    """The scale of the loop's ``scaler``, or of the one that steps the optimizer at this moment; None without, or where it is
    switched off."""
    return getattr(stepping_scaler() if scaler is None else scaler, "_scale", None)


def unscale(taken: Mapping[str, Sequence[Use]], scale: Tensor, landed: dict[str, Tensor]) -> None:
    """Divide all signals by the scale that a ``GradScaler`` put on the loss."""
    landed.update({name: _divided(gradient, scale) for name, gradient in landed.items()})
    for use in (use for uses in taken.values() for use in uses):
        assert use.delta_rule is not None
        rule, bp = use.delta_rule, use.delta_bp
        use.delta_rule = _divided(rule, scale)
        if bp is not None:
            use.delta_bp = use.delta_rule if bp is rule else _divided(bp, scale)
        use.handed = None if use.handed is None else _divided(use.handed, scale)


def _divided(signal: Tensor, scale: Tensor) -> Tensor:
    return signal.to(torch.promote_types(signal.dtype, torch.float32)) / scale.to(signal.device)
