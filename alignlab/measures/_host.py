"""The measures' inner products on the host, by numpy: a call costs a fifth of one of torch's, and ``vecdot`` leaves no product
behind in memory. Calls and memory are most of what layers of usual sizes are charged for.

A number is given out where it is as exact as what the careful way (``_numerics``) makes; where squares may have under- or
overflowed, that way is gone. Of two vectors near to parallel the residual is taken, as there. Every run, and every row, is
judged by itself. Shapes: (R, n, m), R runs; results (R, …), in float64.
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


def takes(*matrices: Tensor) -> bool:
    """Whether these can be measured here."""
    lead = matrices[0].shape[:-2]
    return matrices[0].device.type == "cpu" and all(
        m.shape[:-2] == lead and m.shape[-1] <= LONGEST and m.numel() for m in matrices
    )


def largest_on_diagonal(x: Tensor) -> Array:
    """Of matrices (..., n, n), (R,)."""
    entries = x.numpy().reshape(-1, x.shape[-1] ** 2)
    found: Array = entries[:, :: x.shape[-1] + 1].max(1)
    return found


def by_run(x: Tensor) -> Tensor:
    """(..., n, m) as (R, n, m)."""
    return x.reshape(-1, *x.shape[-2:])


def completed(found: Array, safe: Mask, careful: Callable[..., Tensor], *matrices: Tensor) -> Tensor:
    """(..., k) from ``found`` (R, k), the runs that are not ``safe`` from ``careful(*matrices)`` of theirs, (R', k)."""
    if not safe.all():
        rest = torch.from_numpy(~safe)
        theirs = {id(m): by_run(m)[rest] for m in matrices}
        found[~safe] = careful(*(theirs[id(m)] for m in matrices)).numpy()
    return torch.from_numpy(found.reshape((*matrices[0].shape[:-2], *found.shape[1:])))


@np.errstate(all="ignore")  # what it hides is not safe
def tied(a: Tensor, b: Tensor, lift: Lift | None = None, size: Array | None = None) -> tuple[Array, Mask]:
    """‖a‖², ⟨a,b⟩, a coefficient c and ‖b − c a‖² of matrices, (R, 4), and which runs' are safe.

    ``lift``: applies a symmetric metric, so that ‖a‖² is ⟨a, lift(a)⟩; ``size``: its, (R,).
    """
    found = np.zeros((by_run(a).shape[0], 4))
    lifted = a if lift is None else lift(a)
    n11, n12, c, rest = found.T
    n11[:] = _sums(lifted, a)
    if same := a is b:
        n12[:], c[:], n22 = n11, 1.0, n11
    else:
        n12[:] = _sums(lifted, b)
        n22 = rest[:] = _sums(b if lift is None else lift(b), b)
    safe = _safe(n11, n22, n11 if size is None else size)
    if not same and (near := safe & (n12 * n12 > PARALLEL * n11 * n22)).any():
        c[near] = (n12[near] / n11[near]).astype(a.numpy().dtype)
        along = torch.from_numpy(c).to(a.dtype).reshape(*a.shape[:-2], 1, 1)
        residual = torch.addcmul(b, a, along, value=-1)  # c is 0 for the others
        rest[:] = np.where(near, _sums(residual if lift is None else lift(residual), residual), rest)
    return found, safe


@np.errstate(all="ignore")
def rows(a: Tensor, b: Tensor, careful: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """|a|², ⟨a,b⟩, |b − a⟨a,b⟩/|a|²| of the rows, (..., 3, n), in their dtype; unsafe rows' by ``careful``, (3, n')."""
    x, y = (m.reshape(-1, m.shape[-1]).numpy() for m in (a, b))
    found = np.zeros((3, len(x)))
    n11, n12, across = found
    n11[:] = n22 = n12[:] = np.vecdot(x, x)
    if a is not b:
        n12[:], n22 = np.vecdot(x, y), np.vecdot(y, y).astype(float)
        across[:] = np.sqrt(np.maximum(n22 - n12 * n12 / n11, 0.0))
    safe = _safe(n11, n22)
    if a is not b and (near := safe & (n12 * n12 > PARALLEL * n11 * n22)).any():
        residual = y[near] - x[near] * (n12[near] / n11[near]).astype(x.dtype)[:, None]
        across[near] = np.linalg.norm(residual, axis=-1)
    if not safe.all():
        found[:, ~safe] = careful(*(torch.from_numpy(m[~safe]) for m in (x, y))).numpy()
    shape = a.shape[:-1]
    whole = torch.from_numpy(found.astype(x.dtype)).reshape(3, *shape)
    return whole.movedim(0, -2)


@np.errstate(all="ignore")
def inner(a: Tensor, b: Tensor) -> tuple[Array, Mask]:
    """⟨a, b⟩ of matrices, (R,), and which runs' are safe."""
    return _sums(a, b), _safe(_sums(a, a), _sums(b, b))


def _sums(a: Tensor, b: Tensor) -> Array:
    """Σ a∘b, (R,): the rows in their dtype, their sum in float64."""
    found: Array = np.vecdot(a.numpy(), b.numpy()).sum(-1, dtype=float).reshape(-1)
    return found


def _safe(*squares: Array) -> Mask:
    """Where all of them are; NaN is not."""
    every = np.array(squares)
    within: Any = (every > 1 / SAFE) & (every < SAFE)
    found: Mask = within.all(0)
    return found
