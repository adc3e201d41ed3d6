"""Whether errors are sent downhill: the condition of Lillicrap et al. 2016 on the errors that really occur.

Shapes: W, B (..., out, in); errors e (..., N, out), a row each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignlab.measures._numerics import balance, matmul, norm, unit, wide_dtype, widen


def descent_fraction(e: Tensor, W: Tensor, B: Tensor) -> Tensor:
    """The share of errors e, the rows of (..., N, out), with eᵀ W Bᵀ e = (e W)·(e B) > 0; shape (...).

    W Bᵀ is not formed. Errors that W hands nothing down of are left out, zero ones among them: there is no descent for the
    feedback to agree with. NaN where all are. Backprop gives 1. Args: ``W``, ``B`` (..., out, in). Source: Lillicrap et al.
    2016, who ask for eᵀ W B e > 0 on average (their B is our Bᵀ).

    >>> e = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> descent_fraction(e, torch.eye(2), torch.diag(torch.tensor([1.0, -1.0])))
    tensor(0.5000, dtype=torch.float64)
    """
    e, W, B = widen(e, W, B)
    # only signs are asked for: with unit rows and balanced weights no product underflows
    rows = _unit_or_zero(e)
    return descent_fraction_from_signals(matmul(rows, balance(W)[0]), matmul(rows, balance(B)[0]))


def descent_fraction_from_signals(by_weight: Tensor, by_feedback: Tensor) -> Tensor:
    """``descent_fraction`` from the signals e W and e B (..., N, in) that are at hand; NaN where all e W are zero.

    >>> descent_fraction_from_signals(torch.eye(2), torch.tensor([[2.0, 0.0], [1.0, -1.0]]))
    tensor(0.5000, dtype=torch.float64)
    """
    by_weight, by_feedback = widen(by_weight, by_feedback)
    counted = norm(by_weight, 1) != 0
    return _share_descending(_unit_or_zero(by_weight), _unit_or_zero(by_feedback), counted)


def _unit_or_zero(x: Tensor) -> Tensor:
    return torch.where((norm(x, 1) != 0)[..., None], unit(x, 1), 0.0)


def _share_descending(by_weight: Tensor, by_feedback: Tensor, counted: Tensor) -> Tensor:
    agreement = (by_weight * by_feedback).sum(-1, dtype=wide_dtype(by_weight))
    share = (agreement > 0).sum(-1).to(agreement.dtype) / counted.sum(-1)
    return share.where(agreement.isfinite().all(-1), torch.nan)
