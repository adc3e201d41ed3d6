"""The spectrum of a layer that is made of several maps: the groups of a convolution, the positions of an untied one.

W Bᵀ of such a layer is block-diagonal, so its eigenvalues are those of the blocks, all together. The blocks are small where
the whole matrix would not fit into memory.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from alignlab.measures._numerics import norm
from alignlab.measures.chance import chance_radius
from alignlab.measures.iterative import one_thread
from alignlab.measures.spectra import (
    ZERO,
    Spectrum,
    exact_modes,
    exact_symmetric,
    feedback_spectrum,
    positive_fraction,
)


def block_spectrum(W: Tensor, B: Tensor, *, exact_limit: int = 1024, k: int = 32) -> Spectrum:
    """``feedback_spectrum`` of the block-diagonal W Bᵀ from its blocks' W and B (blocks, out, in).

    Exact where ``feedback_spectrum`` would be for one block; there the summaries are of all modes, and at most
    ``exact_limit`` of them, the largest, are listed. Else the matrix is formed and treated as one. NaN where the weights
    are not finite.

    Raises:
        ValueError: W and B differ in shape.

    >>> W = torch.tensor([[[2.0]], [[1.0]], [[3.0]]])
    >>> block_spectrum(W, torch.tensor([[[1.0]], [[-1.0]], [[1.0]]])).real
    tensor([ 3.,  2., -1.], dtype=torch.float64)
    """
    if W.shape != B.shape or W.dim() != 3:
        raise ValueError(f"W {tuple(W.shape)} and B {tuple(B.shape)} must share one shape (blocks, out, in)")
    n_out, n_in = W.shape[1:]
    if len(W) > 1 and not bool(W.isfinite().all() & B.isfinite().all()):
        W = B = torch.full_like(W, torch.nan)
    if len(W) == 1:
        return feedback_spectrum(W[0], B[0], exact_limit=exact_limit, k=k)
    if min(n_out, 2 * n_in) > max(exact_limit, k + 2):
        whole = (torch.block_diag(*blocks) for blocks in (W, B))  # type: ignore[no-untyped-call]
        found = feedback_spectrum(*whole, exact_limit=exact_limit, k=k)
        return dataclasses.replace(found, chance_radius=_widest(W, B))
    return _union(W.cpu().to(torch.float64), B.cpu().to(torch.float64), exact_limit)


def _union(W: Tensor, B: Tensor, listed: int) -> Spectrum:
    modes, symmetric = _modes(W, B)
    modes = modes[modes.abs().argsort(descending=True, stable=True)]
    return Spectrum(
        real=modes.real[:listed],
        imag=modes.imag[:listed],
        positive_fraction=positive_fraction(modes, ZERO),
        symmetric_min=symmetric.min(),
        symmetric_max=symmetric.max(),
        symmetric_error=symmetric[0].abs() * 0,
        symmetric_positive_fraction=positive_fraction(symmetric, ZERO),
        trace=(W * B).sum(),
        chance_radius=_widest(W, B),
        method="exact",
        parameters={"exact_limit": listed},
    )


def _modes(W: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """All blocks' eigenvalues, and those of their symmetric parts; as many NaN where the weights are."""
    if W.isnan().any():
        nan = W.new_full((W.shape[0] * W.shape[1],), torch.nan)
        return torch.complex(nan, nan), nan
    pairs = list(zip(W, B, strict=True))
    with one_thread():
        modes = [exact_modes(w, b) for w, b in pairs]
        symmetric = [exact_symmetric(w, b) for w, b in pairs]
    return torch.cat(modes), torch.cat(symmetric)


def _widest(W: Tensor, B: Tensor) -> Tensor:
    """The radius of the widest of the blocks' discs of chance."""
    radii = (chance_radius(float(norm(w, 2)), float(norm(b, 2)), *w.shape) for w, b in zip(W, B, strict=True))
    return torch.tensor(max(radii), dtype=torch.float64, device="cpu")
