"""How large a step was, and how much of it went along the true gradient.

A rule that beats backprop may only be louder: ``feedback_gain`` says how much longer its gradient is,
``effective_lr`` which learning rate that amounts to. ``projected_lr`` and ``update_angle`` look at ΔW, what the
optimizer really did, so they hold for any optimizer, momentum and clipping included.

Shapes: ``dW_oi``, ``W_oi`` (..., out, in), ``h_ni`` (..., N, in), ``delta_no`` (..., N, out); ``...`` are run
dimensions. Results are float64 of shape (...). A ratio to something of length zero is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignlab.measures import _host
from alignlab.measures._numerics import (
    balance,
    inner,
    matmul,
    norm,
    pair_products,
    safe_ratio,
    untied,
    widen,
)
from alignlab.measures.angles import (
    _check_samples,
    angle,
    angle_from_products,
    gradient_products,
    weight_angle,
)


def frobenius(x: Tensor, dims: int = 2) -> Tensor:
    """‖x‖_F over the last ``dims`` dimensions, in float64.

    >>> frobenius(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    tensor(5., dtype=torch.float64)
    """
    (x,) = widen(x)
    return norm(x, dims)


def feedback_gain(delta_rule: Tensor, delta_bp: Tensor, h: Tensor) -> Tensor:
    """‖G_rule‖ / ‖G_bp‖, G = deltaᵀ h: how much louder than backprop the rule speaks. NaN where G_bp is zero.

    Args: ``delta_rule``, ``delta_bp`` (..., N, out), ``h`` (..., N, in).

    >>> feedback_gain(torch.full((2, 1), 20.0), torch.full((2, 1), 2.0), torch.eye(2)).round(decimals=4)
    tensor(10., dtype=torch.float64)
    """
    n11, _, n22 = gradient_products(delta_rule, delta_bp, h)
    return gain_from_products(n11, n22)


def gain_from_products(n11: Tensor, n22: Tensor) -> Tensor:
    """‖G_rule‖ / ‖G_bp‖ from ‖G_rule‖² and ‖G_bp‖² (``gradient_products``); NaN where ‖G_bp‖ is 0 or overflowed.

    >>> gain_from_products(torch.tensor([4.0, 1.0]), torch.tensor([1.0, 0.0]))
    tensor([2., nan])
    """
    return safe_ratio(n11.sqrt(), n22.where(n22.isfinite(), torch.nan).sqrt())


def effective_lr(lr: float | Tensor, gain: Tensor) -> Tensor:
    """lr · feedback_gain: the learning rate at which backprop's gradient would step as far as the rule's.

    >>> effective_lr(0.5, torch.tensor(10.0))
    tensor(5.)
    """
    return lr * gain


def update_products(dW: Tensor, delta_bp: Tensor, h: Tensor) -> Tensor:
    """⟨ΔW, G_bp⟩ = Σ (h ΔWᵀ) ∘ delta_bp, without forming G_bp; shape (...), float64.

    Args: ``dW`` (..., out, in), ``delta_bp`` (..., N, out), ``h`` (..., N, in).

    >>> update_products(torch.tensor([[-1.0, 0.0]]), torch.tensor([[2.0]]), torch.tensor([[3.0, 5.0]]))
    tensor(-6., dtype=torch.float64)
    """
    _check_samples(h, delta_bp)
    if dW.shape[-2:] != (delta_bp.shape[-1], h.shape[-1]):
        raise ValueError(
            f"ΔW {tuple(dW.shape)} is not of the layer of delta {tuple(delta_bp.shape)} and h {tuple(h.shape)}"
        )
    dW, delta_bp, h = widen(dW, delta_bp, h)
    if _host.takes(dW, delta_bp, h):
        return _host.completed(*_host.inner(matmul(h, dW.mT), delta_bp), _update_products, dW, delta_bp, h)
    return _update_products(dW, delta_bp, h)


def _update_products(dW: Tensor, delta_bp: Tensor, h: Tensor) -> Tensor:
    """At any scale, on any device."""
    (dW, scale_w), (delta_bp, scale_delta), (h, scale_h) = balance(dW), balance(delta_bp), balance(h)
    return inner(matmul(h, dW.mT), delta_bp, 2) * scale_w * scale_delta * scale_h


def projected_lr(dW: Tensor, delta_bp: Tensor, h: Tensor) -> Tensor:
    """−⟨ΔW, G_bp⟩ / ‖G_bp‖²: the learning rate plain gradient descent needs for the same progress along G_bp.

    Negative where the step went uphill; NaN where G_bp is zero. Where ‖G_bp‖² is at hand already, use
    ``projected_lr_from_products(update_products(...), n_bp)``. Args as in ``update_products``.

    >>> delta, h = torch.tensor([[2.0]]), torch.tensor([[3.0, 5.0]])
    >>> projected_lr(-0.25 * delta.mT @ h, delta, h).round(decimals=6)
    tensor(0.2500, dtype=torch.float64)
    """
    n_bp = gradient_products(delta_bp, delta_bp, h)[2]
    return projected_lr_from_products(update_products(dW, delta_bp, h), n_bp)


def projected_lr_from_products(n_update_bp: Tensor, n_bp: Tensor) -> Tensor:
    """−⟨ΔW, G_bp⟩ / ‖G_bp‖² from the two products; NaN where ‖G_bp‖² is 0.

    >>> projected_lr_from_products(torch.tensor(-2.0), torch.tensor(4.0))
    tensor(0.5000)
    """
    return safe_ratio(-n_update_bp, n_bp)


def update_angle(dW: Tensor, delta_bp: Tensor, h: Tensor) -> Tensor:
    """∠(−ΔW, G_bp) in degrees: 0 for plain gradient descent, above 90 for a step up the minibatch's loss.

    ΔW = W_after − W_before carries the rounding of W, about 1e-7·‖W‖; the angle of a step that is not much
    longer than that is the angle of the rounded step. Args as in ``update_products``.

    >>> dW, delta, h = torch.tensor([[0.0, -1.0]]), torch.tensor([[1.0]]), torch.tensor([[1.0, 1.0]])
    >>> update_angle(dW, delta, h).round(decimals=4)
    tensor(45., dtype=torch.float64)
    """
    return angle(-dW, _gradient(delta_bp, h), dims=2)


def update_angle_from_products(n_update: Tensor, n_update_bp: Tensor, n_bp: Tensor) -> Tensor:
    """∠(−ΔW, G_bp) in degrees from ‖ΔW‖², ⟨ΔW, G_bp⟩, ‖G_bp‖²; blind below 0.05° (``angle_from_products``).

    >>> update_angle_from_products(torch.tensor(1.0), torch.tensor(-0.5), torch.tensor(1.0)).round(decimals=3)
    tensor(60.)
    """
    return angle_from_products(n_update, -n_update_bp, n_bp)


def applied_gain(dW: Tensor, lr: float | Tensor, gradient_norm_bp: Tensor) -> Tensor:
    """‖ΔW‖ / (lr ‖G_bp‖): how much longer the step was than plain gradient descent's.

    NaN where lr or G_bp is 0. Args: ``dW`` (..., out, in), ``gradient_norm_bp`` (...) = ‖G_bp‖.

    >>> applied_gain(torch.tensor([[3.0, 4.0]]), 0.5, torch.tensor(2.0))
    tensor(5., dtype=torch.float64)
    """
    return safe_ratio(frobenius(dW), lr * gradient_norm_bp)


def relative_update(dW: Tensor, W: Tensor) -> Tensor:
    """‖ΔW‖ / ‖W‖, W before the step; NaN where W is zero.

    >>> relative_update(torch.full((2, 2), 0.1), torch.ones(2, 2)).round(decimals=4)
    tensor(0.1000, dtype=torch.float64)
    """
    return safe_ratio(frobenius(dW), frobenius(W))


def angular_update(W_before: Tensor, W_after: Tensor) -> Tensor:
    """∠(W_t, W_{t+1}) in degrees: the part of a step that scale-free layers feel.

    >>> angular_update(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])).round(decimals=4)
    tensor(45., dtype=torch.float64)
    """
    return weight_angle(W_before, W_after)


def weight_products(W: Tensor, dW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(‖W‖², ⟨W, ΔW⟩, ‖ΔW‖²): all that the sizes of a step are made of. Args: (..., out, in) each.

    >>> weight_products(torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 1.0]]))
    (tensor(4., dtype=torch.float64), tensor(-2., dtype=torch.float64), tensor(2., dtype=torch.float64))
    """
    return untied(tied_weight_products(W, dW))


def tied_weight_products(W: Tensor, dW: Tensor) -> Tensor:
    """What ``weight_products`` is put together from, by ``products_from_tied``; float64, shape (..., 4)."""
    same = W is dW
    W, dW = widen(W, dW)
    return pair_products(W, W if same else dW)


def angular_update_from_products(n_weight: Tensor, n_weight_update: Tensor, n_update: Tensor) -> Tensor:
    """∠(W, W + ΔW) in degrees from ``weight_products``, exact for small steps too; NaN where either is zero.

    Or next to it: a step that leaves less than a thousandth of both W and ΔW has cancelled the weight, and
    what is left is mostly the rounding of the products.

    >>> W, dW = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1e-9]])
    >>> angular_update_from_products(*weight_products(W, dW)).deg2rad()
    tensor(1.0000e-09, dtype=torch.float64)
    """
    across = (n_weight * n_update - n_weight_update.square()).clamp(min=0).sqrt()
    along = n_weight + n_weight_update
    after = n_weight + 2 * n_weight_update + n_update
    has_angle = (n_weight > 0) & (after > 1e-6 * (n_weight + n_update))
    return torch.rad2deg(torch.atan2(across, along)).where(has_angle, torch.nan)


def _gradient(delta: Tensor, h: Tensor) -> Tensor:
    _check_samples(h, delta)
    delta, h = widen(delta, h)
    return matmul(balance(delta)[0].mT, balance(h)[0])  # times a power of two: direction only
