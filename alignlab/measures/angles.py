"""Angles between what a learning rule sends and what backprop would send.

The headline is ``gradient_angle``, between the two weight gradients of one minibatch; it is found from the
error signals without forming a gradient twice. ``delta_angle`` is the angle of Lillicrap et al. 2016 (Nature
Communications 7:13276), sample by sample; ``local_angle`` isolates one layer's feedback from all above.

Shapes: ``W_oi`` (out, in), ``B`` as W, ``h_ni`` (..., N, in), ``delta_no`` (..., N, out); ``...`` are run
dimensions. Angles are in degrees and float64. A zero vector has no angle: NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignlab.measures import _host
from alignlab.measures._numerics import (
    balance,
    inner,
    inner_products,
    matmul,
    norm,
    pair_products,
    rescaled,
    row_products,
    unit,
    untied,
    wide_dtype,
    widen,
)


def cosine(a: Tensor, b: Tensor, dims: int = 1) -> Tensor:
    """cos ∠(a, b) = ⟨a, b⟩ / (‖a‖ ‖b‖) over the last ``dims`` dimensions, in [−1, 1]; NaN for a zero vector.

    >>> cosine(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 1.0])).round(decimals=6)
    tensor([0.7071,    nan], dtype=torch.float64)
    """
    a, b = _comparable(a, b, dims)
    return _of_entries(a, dims, inner(unit(a, dims), unit(b, dims), dims).clamp(-1, 1))


def angle(a: Tensor, b: Tensor, dims: int = 1) -> Tensor:
    """∠(a, b) in degrees, [0, 180], over the last ``dims`` dimensions; NaN for a zero vector.

    2·atan2(‖u − v‖, ‖u + v‖) of the unit vectors u, v (Kahan 2006), which loses no digits near 0° and 180°:
    two float32 vectors are told apart down to about 1e-5 degrees, and identical ones are at exactly 0.

    >>> angle(torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), torch.tensor([1.0, 0.0])).round(decimals=4)
    tensor([  0.,  45., 180.], dtype=torch.float64)
    """
    a, b = _comparable(a, b, dims)
    u, v = unit(a, dims), unit(b, dims)
    return _of_entries(a, dims, torch.rad2deg(2 * torch.atan2(norm(u - v, dims), norm(u + v, dims))))


def gradient_products(delta_1: Tensor, delta_2: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(‖G₁‖², ⟨G₁, G₂⟩, ‖G₂‖²), Frobenius, of the weight gradients G = deltaᵀ h; float64, shape (...).

    With few samples no G is formed: ⟨G₁, G₂⟩ = Σ (hhᵀ δ₁) ∘ δ₂, where the three numbers share hhᵀ and need
    two products with it, N²(in + 2·out) multiplications; the explicit G₁ and G₂ take 2·N·in·out. The cheaper
    is chosen; in float64 the explicit one. Args: ``delta_1``, ``delta_2`` (..., N, out), ``h`` (..., N, in).

    The float32 matrix products leave each number a relative error of about 1e-7; where the samples' gradients nearly cancel
    in G, as in a network that has not left its plateau, hhᵀ is taken in float64, and an explicit G loses the digits that
    ``.grad`` does. The three are tied together so that ``angle_from_products`` resolves 1e-5 degrees for inputs in float32.

    Raises:
        ValueError: the numbers of samples differ, there are none, or the errors differ in width.

    >>> delta, h = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])    # G = (1, 2)
    >>> [round(n.item(), 4) for n in gradient_products(delta, delta.flip(0), h)]           # and (2, 1)
    [5.0, 4.0, 5.0]
    """
    return untied(tied_gradient_products(delta_1, delta_2, h))


def tied_gradient_products(delta_1: Tensor, delta_2: Tensor, h: Tensor) -> Tensor:
    """What ``gradient_products`` is put together from, by ``products_from_tied``; float64, shape (..., 4).

    ‖G₁‖², ⟨G₁, G₂⟩, a coefficient c near their ratio, and ‖G₂ − c G₁‖². To be kept where the formulas are for later, many steps
    at once. Args and errors as there.
    """
    _check_samples(h, delta_1, delta_2)
    same = delta_1 is delta_2
    delta_1, delta_2, h = widen(delta_1, delta_2, h)
    if same:
        delta_2 = delta_1
    if not _host.takes(delta_1, delta_2, h):
        return _gradient_products(delta_1, delta_2, h)
    if _gram_is_cheaper(delta_1, h):
        gram = matmul(h, h.mT)
        size = _host.largest_on_diagonal(gram)
        found, safe = _host.tied(delta_1, delta_2, lambda delta: matmul(gram, delta), size)
    else:
        G = matmul(delta_1.mT, h)
        found, safe = _host.tied(G, G if same else matmul(delta_2.mT, h))
    return _host.completed(found, safe, _gradient_products, delta_1, delta_2, h)


def _gram_is_cheaper(delta: Tensor, h: Tensor) -> bool:
    (n, n_in), n_out = h.shape[-2:], delta.shape[-1]
    # the squares of doubles that nearly cancel have no wider type to be summed in
    return h.dtype != torch.float64 and n * (n_in + 2 * n_out) < 2 * n_in * n_out


def _gradient_products(delta_1: Tensor, delta_2: Tensor, h: Tensor) -> Tensor:
    """``tied_gradient_products`` at any scale, on any device."""
    (a, scale_1), (h, scale_h) = balance(delta_1), balance(h)
    b, scale_2 = (a, scale_1) if delta_1 is delta_2 else balance(delta_2)
    if _gram_is_cheaper(a, h):
        # its squares cancel as much again as G does: where G keeps 1e-4 of its samples', float32 would keep nothing
        wide, same = wide_dtype(h), a is b
        a, h = a.to(wide), h.to(wide)
        b = a if same else b.to(wide)
        gram = matmul(h, h.mT)
        tied = inner_products(a, b, lambda delta: matmul(gram, delta))
    else:
        G = matmul(a.mT, h)
        tied = pair_products(G, G if a is b else matmul(b.mT, h)).unbind(-1)
    return rescaled(tied, scale_1 * scale_h, scale_2 * scale_h)


def products_from_tied(tied: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(‖a‖², ⟨a,b⟩, ‖b‖²) from what ``tied_gradient_products`` or ``tied_weight_products`` keeps, (..., 4).

    >>> tied = tied_gradient_products(torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    >>> [n.item() for n in products_from_tied(tied)]
    [4.0, 6.0, 9.0]
    """
    return untied(tied)


def angle_from_products(n11: Tensor, n12: Tensor, n22: Tensor) -> Tensor:
    """∠ in degrees from ‖a‖², ⟨a, b⟩, ‖b‖²: atan2(√(‖a‖²‖b‖² − ⟨a,b⟩²), ⟨a,b⟩); NaN where a norm is 0 or overflowed.

    Resolution near 0° and 180°: √(2ε) radians for products with relative error ε, so 1e-6 degrees for products
    exact to float64 and 0.02 degrees for independently rounded float32 ones. ``gradient_products`` gives
    products that keep the former.

    >>> n = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    >>> angle_from_products(n, torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64), n).round(decimals=6)
    tensor([ 60., 180.,  nan], dtype=torch.float64)
    """
    # an infinite square would put everything at 90
    n11, n22 = (n.where((n > 0) & n.isfinite(), torch.nan) for n in (n11, n22))
    # ratios first: fourth powers of small gradients underflow; and of equal products they are exactly 1
    square = (n12 / n11) * (n12 / n22)
    return torch.rad2deg(torch.atan2((1 - square).clamp(min=0).sqrt(), square.sqrt().copysign(n12)))


def gradient_angle(delta_rule: Tensor, delta_bp: Tensor, h: Tensor) -> Tensor:
    """∠(G_rule, G_bp) in degrees, Frobenius, over the whole minibatch: the headline. Shape (...).

    A direction random in all entries has 95 % of its angles in ``chance_band(out * in)`` about 90°. Random *feedback* strays
    much further (``alignlab.measures.chance``): to judge an angle by it, draw it again. Args: ``delta_rule``, ``delta_bp``
    (..., N, out), ``h`` (..., N, in). Resolution and errors as in ``gradient_products``.

    >>> h = torch.eye(2)
    >>> gradient_angle(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [1.0]]), h).round(decimals=4)
    tensor(45., dtype=torch.float64)
    """
    return angle_from_products(*gradient_products(delta_rule, delta_bp, h))


def delta_angle(delta_rule: Tensor, delta_bp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation over samples of ∠(delta_rule, delta_bp) in degrees, and the zero fraction.

    A sample where either signal is zero has no angle; it is left out and counted in the zero fraction. The
    standard deviation is that of the batch (divisor n). All samples left out: NaN, NaN, 1. Args: (..., N, out)
    each; results (...). Source: Lillicrap et al. 2016.

    >>> rule = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    >>> [round(x.item(), 3) for x in delta_angle(rule, torch.tensor([[1.0, 0.0]]).expand(3, 2))]
    [22.5, 22.5, 0.333]
    """
    return delta_angle_from_products(delta_products(delta_rule, delta_bp))


def delta_products(delta_rule: Tensor, delta_bp: Tensor) -> Tensor:
    """What ``delta_angle`` is made of, of each sample: (..., 3, N), to be kept where the formulas are for later.

    |a|², ⟨a, b⟩, and the length of what is left of b across a, for the rows a and b of (..., N, out); some rows' scale is
    their own.
    """
    return row_products(*_comparable(delta_rule, delta_bp, 2))


def delta_angle_from_products(products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``delta_angle``'s mean, standard deviation and zero fraction, (...), from ``delta_products`` (..., 3, N).

    ∠ = atan2(|r|, ⟨a,b⟩/|a|) in float64. A sample that is not a number stays in, and shows.
    """
    n11, n12, across = products.to(wide_dtype(products)).unbind(-2)
    has_angle = (n11 != 0) & ((n12 != 0) | (across != 0))
    angles = torch.rad2deg(torch.atan2(across, n12 / n11.sqrt())).where(has_angle, 0.0)
    count = has_angle.sum(-1).to(angles.dtype)
    mean = angles.sum(-1) / count
    variance = (angles - mean[..., None]).where(has_angle, 0.0).square().sum(-1) / count
    return mean, variance.sqrt(), 1 - count / has_angle.shape[-1]


def local_angle(delta_rule: Tensor, B: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation (degrees) and zero fraction over samples of ∠(delta_rule B, delta_rule W).

    Both signals start from the *same* error at this layer's output and arrive at its input, so the layers above
    have no part in it. Args: ``delta_rule`` (..., N, out), ``B`` and ``W`` (..., out, in); results (...).

    >>> W = torch.tensor([[1.0, 0.0]])
    >>> [round(x.item(), 3) for x in local_angle(torch.ones(3, 1), torch.tensor([[1.0, 1.0]]), W)]
    [45.0, 0.0, 0.0]
    """
    delta_rule, B, W = widen(delta_rule, B, W)
    delta_rule, B, W = (
        balance(x)[0] for x in (delta_rule, B, W)
    )  # directions are asked for, and products may underflow
    return delta_angle(matmul(delta_rule, B), matmul(delta_rule, W))


def weight_angle(B: Tensor, W: Tensor) -> Tensor:
    """∠(B, W) in degrees of the flattened feedback and forward weights (..., out, in); shape (...).

    >>> weight_angle(torch.ones(2, 2), torch.eye(2)).round(decimals=4)
    tensor(45., dtype=torch.float64)
    """
    B, W = _comparable(B, W, 2)
    if B.dtype == torch.float64:
        return angle(B, W, dims=2)  # products resolve no angle below 1e-8
    return angle_from_products(*untied(pair_products(B, W)))


def _comparable(a: Tensor, b: Tensor, dims: int) -> tuple[Tensor, ...]:
    if a.shape[-dims:] != b.shape[-dims:]:
        raise ValueError(
            f"no angle between {tuple(a.shape)} and {tuple(b.shape)}: the last {dims} dimensions must be equal"
        )
    return widen(a, b)


def _of_entries(a: Tensor, dims: int, found: Tensor) -> Tensor:
    """What was found of vectors; of those without entries, which are zero, NaN."""
    return found if all(a.shape[-dims:]) else found * torch.nan


def _check_samples(h: Tensor, *deltas: Tensor) -> None:
    if h.shape[-2] == 0:
        raise ValueError("an empty batch has no gradient: h and delta have 0 rows")
    for delta in deltas:
        if delta.shape[-2] != h.shape[-2]:
            raise ValueError(f"{delta.shape[-2]} error rows, {h.shape[-2]} input rows: need one per sample")
        if delta.shape[-1] != deltas[0].shape[-1]:
            raise ValueError(f"errors of one layer differ in width: {[tuple(d.shape) for d in deltas]}")
