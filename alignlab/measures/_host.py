"""The measures' inner products on the host, by numpy: a call costs a fifth of one of torch's, and ``vecdot`` leaves no product
behind in memory. Calls and memory are most of what layers of usual sizes are charged for.

A number is given out where it is as exact as what the careful way (``_numerics``) makes; where squares may have under- or
overflowed, or are what is left of samples that cancel, that way is gone. Of two vectors near to parallel the residual is
taken, as there. Every run, and every row, is judged by itself. Shapes: (..., n, m), ``...`` being R runs together; sums are
(R,), in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Lift = Callable[[Tensor], Tensor]

LONGEST = 4096  # entries of a row: sums of longer ones have more digits in torch
SAFE = 1e20  # squares between it and its inverse have lost nothing
PARALLEL = 0.9  # the squared cosine from which on products are too coarse for an angle
# The share of their bound below which squares under a metric have lost two of their digits and more.
CANCELLED = 1e-2


def takes(*matrices: Tensor) -> bool:
    """Whether these can be measured here."""
    lead = matrices[0].shape[:-2]
    return all(
        m.device.type == "cpu" and m.shape[:-2] == lead and m.shape[-1] <= LONGEST and m.numel()
        for m in matrices
    )


def largest_on_diagonal(x: Tensor) -> Array:
    """Of matrices (..., n, n), (R,)."""
    entries = x.numpy().reshape(-1, x.shape[-1] ** 2)
    found: Array = entries[:, :: x.shape[-1] + 1].max(1)
    return found


def completed(found: Array, safe: Mask, careful: Callable[..., Tensor], *matrices: Tensor) -> Tensor:
    """(..., k) from ``found`` (R, k), the runs that are not ``safe`` from ``careful(*matrices)`` of theirs, (R', k)."""
    if not safe.all():
        rest = torch.from_numpy(~safe)
        theirs = {id(m): m.reshape(-1, *m.shape[-2:])[rest] for m in matrices}
        found[~safe] = careful(*(theirs[id(m)] for m in matrices)).numpy()
    return torch.from_numpy(found.reshape((*matrices[0].shape[:-2], *found.shape[1:])))


@np.errstate(all="ignore")  # what it hides is not safe
def tied(a: Tensor, b: Tensor, lift: Lift = lambda x: x, size: Array | None = None) -> tuple[Array, Mask]:
    """‖a‖², ⟨a,b⟩, a coefficient c and ‖b − c a‖² of matrices, (R, 4), and which runs' are safe.

    ``lift``: applies a symmetric metric, so that ‖a‖² is ⟨a, lift(a)⟩; ``size``: (R,), the largest entry on its diagonal.
    """
    if a.dim() == 2 and (found := _tied_of_one(a, b, lift, size)) is not None:
        return np.array([found]), np.array([True])
    lifted = lift(a)
    n11 = _sums(lifted, a)
    whole = n11 > 0 if size is None else n11 > CANCELLED * size * _sums(a, a)
    if a is b:
        one = np.ones_like(n11)
        return np.array((n11, n11, one, 0 * one)).T, _safe(n11, n11 if size is None else size) & whole
    n12, n22, c = _sums(lifted, b), _sums(lift(b), b), np.zeros_like(n11)
    if size is not None:
        whole &= n22 > CANCELLED * size * _sums(b, b)
    safe = _safe(n11, n22, n11 if size is None else size) & whole
    coarse = _coarse(n11, n12, n22) & safe
    if coarse.any():
        c, n22 = _by_residual(a, b, lift, np.where(coarse, n12 / n11, 0.0), n22)
    return np.array((n11, n12, c, n22)).T, safe


def _tied_of_one(
    a: Tensor, b: Tensor, lift: Lift, size: Array | None
) -> tuple[float, float, float, float] | None:
    """``tied`` of two matrices (n, m) in Python's numbers, whose arithmetic takes less than that of arrays of one; None where
    it is not safe."""
    lifted = lift(a)
    n11 = _sum(lifted, a)
    largest = n11 if size is None else float(size[0])
    if size is not None and not n11 > CANCELLED * largest * _sum(a, a):
        return None
    if a is b:
        return (n11, n11, 1.0, 0.0) if _all_safe(n11, largest) else None
    n12, n22 = _sum(lifted, b), _sum(lift(b), b)
    if not _all_safe(n11, n22, largest) or (size is not None and not n22 > CANCELLED * largest * _sum(b, b)):
        return None
    if n12 * n12 <= PARALLEL * n11 * n22:
        return n11, n12, 0.0, n22
    c = float(a.numpy().dtype.type(n12 / n11))  # as it is applied
    residual = torch.add(b, a, alpha=-c)
    return n11, n12, c, n22 if c == 0 else _sum(lift(residual), residual)


def _by_residual(a: Tensor, b: Tensor, lift: Lift, c: Array, n22: Array) -> tuple[Array, Array]:
    """``c`` as it was applied, and ‖b − c a‖² where it is not 0."""
    c = c.astype(a.numpy().dtype)
    residual = torch.addcmul(b, a, torch.from_numpy(c).reshape(*a.shape[:-2], 1, 1), value=-1)
    return c.astype(float), np.where(c == 0, n22, _sums(lift(residual), residual))


@np.errstate(all="ignore")
def rows(a: Tensor, b: Tensor, careful: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """|a|², ⟨a,b⟩, |b − a⟨a,b⟩/|a|²| of the rows, (..., 3, n), in their dtype; unsafe rows' by ``careful``, (3, n')."""
    x, y = (m.reshape(-1, m.shape[-1]).numpy() for m in (a, b))
    n11 = np.vecdot(x, x).astype(float)
    if a is b:
        found, safe = np.stack((n11, n11, 0 * n11)), _safe(n11)
    else:
        n12, n22 = (np.vecdot(p, y).astype(float) for p in (x, y))
        found, safe = np.stack((n11, n12, np.sqrt(np.maximum(n22 - n12 * n12 / n11, 0.0)))), _safe(n11, n22)
        if (near := safe & _coarse(n11, n12, n22)).any():
            along = (n12[near] / n11[near]).astype(x.dtype)
            found[2, near] = np.linalg.norm(y[near] - x[near] * along[:, None], axis=-1)
    if not safe.all():
        found[:, ~safe] = careful(*(torch.from_numpy(m[~safe]) for m in (x, y))).numpy()
    return torch.from_numpy(found.astype(x.dtype)).reshape(3, *a.shape[:-1]).movedim(0, -2)


@np.errstate(all="ignore")
def inner(a: Tensor, b: Tensor) -> tuple[Array, Mask]:
    """⟨a, b⟩ of matrices, (R,), and which runs' are safe."""
    return _sums(a, b), _safe(_sums(a, a), _sums(b, b))


def _sums(a: Tensor, b: Tensor) -> Array:
    """Σ a∘b, (R,): the rows in their dtype, their sum in float64."""
    found = np.vecdot(a.numpy(), b.numpy())
    summed: Array = np.add.reduce(found.reshape(-1, found.shape[-1]), -1, float)
    return summed


def _sum(a: Tensor, b: Tensor) -> float:
    """Σ a∘b of matrices (n, m): the rows in their dtype, their sum in float64."""
    return float(np.vecdot(a.numpy(), b.numpy()).sum(dtype=float))


def _all_safe(*squares: float) -> bool:
    return all(1 / SAFE < square < SAFE for square in squares)


def _safe(*squares: Array) -> Mask:
    """Where all of them are; NaN is not."""
    every = np.array(squares)
    within: Any = (every > 1 / SAFE) & (every < SAFE)
    found: Mask = within.all(0)
    return found


def _coarse(n11: Array, n12: Array, n22: Array) -> Mask:
    """Which are too near to parallel for their products."""
    found: Mask = n12 * n12 > PARALLEL * n11 * n22
    return found
