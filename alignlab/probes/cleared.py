"""Gradients that were cleared from ``.grad`` and have a part in the step all the same: several losses', put together by hand.

The usual implementations of PCGrad (Yu et al. 2020) and MGDA do so: backward, copy and clear for each task, a mixture at the
end. A pass that was cleared counts as thrown away, so what is recorded is of the last task's loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-3  # relative; of bfloat16 a rounding
ENTRIES = 8  # a pass; a short vector is a mixture of anything


def holds_cleared(gradient: Tensor, counted: Sequence[Tensor], cleared: Sequence[Tensor]) -> bool:
    """Whether a weight's ``.grad`` is no multiple of what the ``counted`` passes brought, as clipping and scaling leave it,
    but a mixture of that and of what was ``cleared``."""
    found = [sum(counted[1:], counted[0]), *cleared]
    if gradient.numel() < ENTRIES * len(found):
        return False
    rounding = max(TOLERANCE, torch.finfo(gradient.dtype).eps)
    columns = torch.stack([g.flatten() for g in found], 1).float()
    target = gradient.detach().flatten().float()
    return _rest(target, columns[:, :1]) > 4 * rounding and _rest(target, columns) <= rounding


def _rest(target: Tensor, columns: Tensor) -> float:
    """How much of ``target``, relative to it, no mixture of the ``columns`` explains; of what diverged NaN."""
    basis, _ = torch.linalg.qr(columns)
    return float((target - basis @ (basis.mT @ target)).norm() / target.norm())
