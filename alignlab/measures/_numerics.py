"""Arithmetic shared by all measures: wide reductions, and inner products that keep small angles.

Half-precision inputs are computed in float32 and every sum is accumulated in float64, so that a measure's
error is the rounding of its inputs and of the matrix products, not of its sums. Angles follow Kahan ("How
futile are mindless assessments of roundoff", 2006): the arccosine of a rounded cosine is blind below 0.02°, a
difference of vectors is not. Measures never enter the autograd graph, and ignore autocast and settings of less precision.

Shapes: ``...`` are run dimensions; a vector is the last dimension, a matrix the last two.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from alignlab.measures import _host
from alignlab.measures.precision import full_precision, is_full

BLOCK = 1 << 16  # numbers


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors outside the graph, in their common dtype, which is float32 at least.

    Raises:
        TypeError: a tensor is complex, boolean or of integers, or is none.
    """
    dtype = torch.float32
    if all(tensor.dtype is dtype and not tensor.requires_grad for tensor in tensors):
        return tensors
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"measures need tensors, got {type(tensor).__name__}; use torch.as_tensor(…)")
        if not tensor.is_floating_point():
            raise TypeError(f"measures need real floating-point tensors, got {tensor.dtype}; use .float()")
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.detach().to(dtype) for tensor in tensors)


def wide_dtype(x: Tensor) -> torch.dtype:
    """The accumulator's dtype: float64, or float32 on devices that have no float64 (MPS)."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the dtype of its operands and in full precision, also where autocast, TF32 or bfloat16 would round."""
    device = a.device.type
    if is_full(device) and not torch.is_autocast_enabled(device):
        return a @ b
    with torch.autocast(device_type=device, enabled=False), full_precision():
        return a @ b


def _last(dims: int) -> tuple[int, ...]:
    return tuple(range(-dims, 0))


def row_blocks(*matrices: Tensor) -> list[tuple[Tensor, ...]]:
    """Matrices (..., n, m) in blocks of rows. What is computed from a block stays in the processor's cache, where the
    like of a whole layer would be fresh memory, and that costs more than the arithmetic. Whole on other devices.
    """
    first = matrices[0]
    if first.device.type != "cpu" or first.numel() <= BLOCK or len({m.shape for m in matrices}) > 1:
        return [matrices]
    rows = max(1, BLOCK * first.shape[-2] // first.numel())
    return list(zip(*(torch.split(matrix, rows, dim=-2) for matrix in matrices), strict=True))


def inner(a: Tensor, b: Tensor, dims: int) -> Tensor:
    """⟨a, b⟩ over the last ``dims`` dimensions: a row in the operands' dtype, the rows' sum in float64."""
    if dims == 1:
        return (a * b).sum(-1, dtype=wide_dtype(a))
    # torch sums pairwise; a wide sum of all would copy the matrix to float64
    rows = [(x * y).sum(-1) for x, y in row_blocks(a, b)] if dims == 2 else [(a * b).sum(-1)]
    whole = rows[0] if len(rows) == 1 else torch.cat(rows, -1)
    return whole.sum(dim=_last(dims - 1), dtype=wide_dtype(a))


def norm(x: Tensor, dims: int) -> Tensor:
    """‖x‖ over the last ``dims`` dimensions, squared and summed in float64."""
    if dims == 2 and x.device.type == "cpu" and x.dtype != torch.float64:
        rows = torch.linalg.vector_norm(x, dim=-1)  # a wide norm would copy the matrix to float64
        length: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=wide_dtype(x))
        if _squares_are_safe(length):
            return length
    length = torch.linalg.vector_norm(x, dim=_last(dims), dtype=wide_dtype(x))
    return length


def _squares_are_safe(size: Tensor) -> bool:
    """Whether no square of numbers of this size under- or overflows in float32."""
    return _within(size, 1e12)


def _within(size: Tensor, bound: float) -> bool:
    """Whether all lie between 1/bound and bound; NaN does not. Reads the numbers, which makes a GPU wait."""
    if size.dim() == 0:
        return 1 / bound < float(size) < bound
    low, high = (float(size.min()), float(size.max())) if size.numel() else (1.0, 1.0)
    return 1 / bound < low and high < bound


def unit(x: Tensor, dims: int) -> Tensor:
    """x / ‖x‖; NaN where ‖x‖ is 0 or not finite in x's dtype, since such a vector has no direction."""
    length = norm(x, dims).to(x.dtype)
    length = length.where((length > 0) & length.isfinite(), torch.nan)
    return x / length[(..., *[None] * dims)]


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """(|a|², ⟨a,b⟩, |r|) of the rows of matrices (..., n, m), where r = b − a·⟨a,b⟩/|a|²; shape (..., 3, n).

    All that the rows' angles are made of, small ones too: they are in r. |r| is NaN where |a| is zero. Where squares could
    under- or overflow, the rows are first divided by their largest entries: the angles stay.
    """
    if _host.takes(a, b):
        return _host.rows(a, b, _level_row_products)
    return _level_row_products(a, b)


def _level_row_products(a: Tensor, b: Tensor) -> Tensor:
    return _row_products(_level(a), _level(b))


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    n11, n12 = (a * a).sum(-1), (a * b).sum(-1)
    residual = torch.addcmul(b, a, (n12 / n11).unsqueeze(-1), value=-1)
    return torch.stack((n11, n12, torch.linalg.vector_norm(residual, dim=-1)), -2)


def _level(x: Tensor) -> Tensor:
    """Each row over its largest entry; zero rows as they are."""
    largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))  # abs() would be a copy
    return x / largest.where(largest != 0, 1.0)


def balance(x: Tensor) -> tuple[Tensor, Tensor | float]:
    """(x / s, s) of matrices (..., n, m), with s (...) a power of two next to the largest |x|, in float64; or x itself, and 1.

    Squares of products of what it returns neither under- nor overflow (float32 squares vanish below 1e-19, and signals do get
    that small), and dividing by a power of two is exact.
    """
    if x.device.type == "cpu":  # a GPU would synchronise
        size = torch.linalg.vector_norm(x, dim=(-2, -1))
        if _within(size, math.exp(12)):  # fourth powers fit
            return x, 1.0
    largest = torch.maximum(x.amax((-2, -1)), -x.amin((-2, -1))).to(wide_dtype(x))
    scale = torch.exp2(torch.frexp(largest).exponent.to(largest.dtype))
    return x / scale[..., None, None].to(x.dtype), scale


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, NaN where the denominator is 0: the ratio is undefined there, not infinite."""
    return numerator / denominator.where(denominator != 0, torch.nan)


Tied = tuple[Tensor, ...]  # four


def inner_products(a: Tensor, b: Tensor, metric: Callable[[Tensor], Tensor]) -> Tied:
    """(⟨a,Ma⟩, ⟨a,Mb⟩, c, ⟨r,Mr⟩) of matrices (..., n, m) under a symmetric metric M, applied twice; for :func:`untied`.

    The second application goes to the residual r = b − c·a, c = ⟨a,Mb⟩/⟨a,Ma⟩. So the Gram determinant, which holds the
    squared sine of the angle, is ⟨a,Ma⟩⟨r,Mr⟩ − ⟨a,Mr⟩² and carries the float32 rounding of r, not that of b:
    angles down to about 1e-6 degrees survive.
    """
    lifted = metric(a)
    n11 = inner(lifted, a, 2).clamp(min=0)
    if a is b:
        return _itself(n11)
    n12 = inner(lifted, b, 2)
    c = _along(n11, n12, a)
    residual = torch.addcmul(b, a, c[..., None, None], value=-1)
    return n11, n12, c, inner(metric(residual), residual, 2)


def matrix_products(a: Tensor, b: Tensor) -> Tied:
    """(‖a‖², ⟨a,b⟩, c, ‖r‖²) of matrices (..., n, m): ``inner_products`` without a metric, block by block."""
    n11, n12 = norm(a, 2).square(), inner(a, b, 2)
    c = _along(n11, n12, a)
    residuals = (torch.addcmul(y, x, c[..., None, None], value=-1) for x, y in row_blocks(a, b))
    parts = [norm(r, 2).square() for r in residuals]
    return n11, n12, c, sum(parts[1:], parts[0])


def pair_products(a: Tensor, b: Tensor) -> Tensor:
    """The tied products of matrices (..., n, m) of any size, along a last dimension of four."""
    if _host.takes(a, b):
        return _host.completed(*_host.tied(a, b), _balanced_products, a, b)
    return _balanced_products(a, b)


def _balanced_products(a: Tensor, b: Tensor) -> Tensor:
    """At any scale, on any device."""
    if a is b:
        return rescaled(_itself(norm(a, 2).square()), 1.0, 1.0)
    (a, scale_a), (b, scale_b) = balance(a), balance(b)
    return rescaled(matrix_products(a, b), scale_a, scale_b)


def rescaled(tied: Tied, scale_a: Tensor | float, scale_b: Tensor | float) -> Tensor:
    """The tied products of a·scale_a and b·scale_b from those of a and b, along a last dimension of four."""
    n11, n12, c, nrr = tied
    if isinstance(scale_a, Tensor) or isinstance(scale_b, Tensor):
        n11, n12, nrr = n11 * scale_a * scale_a, n12 * scale_a * scale_b, nrr * scale_b * scale_b
        c = c.to(n11.dtype) * scale_b / scale_a
    return torch.stack((n11, n12, c.to(n11.dtype), nrr), -1)


def untied(tied: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(⟨a,Ma⟩, ⟨a,Mb⟩, ⟨b,Mb⟩) from the tied products (..., 4): ⟨b,Mb⟩ = c²⟨a,Ma⟩ + 2c⟨a,Mr⟩ + ⟨r,Mr⟩, in float64."""
    n11, n12, c, nrr = tied.unbind(-1)
    n1r = n12 - c * n11
    n22 = c.square() * n11 + 2 * c * n1r + nrr
    return n11, n12, n22.clamp(min=0)  # rounding can leave a vanishing square just below zero


def _itself(n11: Tensor) -> Tied:
    """The products of something with itself."""
    return n11, n11, torch.ones_like(n11), torch.zeros_like(n11)


def _along(n11: Tensor, n12: Tensor, a: Tensor) -> Tensor:
    """The part of b along a, in a's dtype; a zero a leaves r = b, and NaN passes."""
    return torch.where(n11 == 0, 0.0, n12 / n11).to(a.dtype)
