"""Eigenvalues of layers too large to decompose: Arnoldi for the product's, Lanczos for its symmetric part's.

Nothing here forms a square matrix: W Bᵀ is applied as two thin products. The largest eigenvalues come from
implicitly restarted Arnoldi (ARPACK; Lehoucq, Sorensen & Yang 1998), the density of the symmetric part from
stochastic Lanczos quadrature with full reorthogonalisation (Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao
2019). Both start from seeded vectors, so the same weights give the same numbers.

Shapes: ``W_oi``, ``B_oi`` (out, in), one run at a time; P probes, M Lanczos steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignlab.measures._numerics import matmul

RESTARTS = 200
TOLERANCE = 1e-6  # of a Ritz value, relative: what a product in float32 can give
ROUNDING = 4  # of the products behind a Ritz value, in units of eps ‖W‖ ‖B‖: more than was ever seen


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread within the block: results must not vary with their number, and more make eigensolvers slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def arnoldi(W: Tensor, B: Tensor, k: int, seed: int = 0) -> tuple[Tensor, int]:
    """The k eigenvalues of W Bᵀ that are largest in modulus, in descending order, and how many converged.

    The product is applied on its smaller side, (out, out) or (in, in), whose nonzero eigenvalues are the same. An
    eigenvalue that did not converge is NaN. One that did is one of a matrix within ``TOLERANCE`` of the product, which
    for a product far from normal (one long Jordan block) may lie elsewhere; random feedback is not of that kind. Shapes:
    ``W``, ``B`` (out, in); result (k,) complex128, on the CPU.

    Raises:
        ValueError: ARPACK finds at most min(out, in) − 2 eigenvalues.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

    if W.shape[0] > W.shape[1]:
        W, B = B.mT, W.mT  # W Bᵀ and Bᵀ W
    n = W.shape[0]
    if not 0 < k <= n - 2:
        raise ValueError(
            f"Arnoldi finds 1 to {n - 2} eigenvalues of a product of size {n}, not k={k}; lower k"
        )

    def product(v: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(np.array(v, dtype=np.float64).reshape(-1, 1)).to(W.device, W.dtype)
        return matmul(W, matmul(B.mT, x)).cpu().numpy()

    start = np.random.default_rng(seed).standard_normal(n)
    if not product(start).any():
        return torch.zeros(k, dtype=torch.complex128, device="cpu"), k
    dtype = np.float64 if W.dtype == torch.float64 else np.float32
    operator = LinearOperator((n, n), matvec=product, dtype=dtype)
    size = min(n, max(3 * k, 64))
    try:
        found = eigs(operator, k, v0=start.astype(dtype), ncv=size, maxiter=RESTARTS, tol=TOLERANCE,
                     return_eigenvectors=False)  # fmt: skip
    except ArpackNoConvergence as error:
        found = error.eigenvalues
    found = found[np.argsort(-np.abs(found), kind="stable")][:k]
    values = np.full(k, complex(np.nan, np.nan))
    values[: len(found)] = found
    return torch.from_numpy(values), len(found)


@dataclass(frozen=True)
class Density:
    """A spectral density: Ritz values and their weights, (P, M) each, the weights of a probe summing to 1.

    ``residual`` bounds how far an eigenvalue can be from the smallest and from the largest Ritz value, the rounding of the
    products with it. But for that rounding Ritz values lie inside the spectrum: one below ``-residual`` proves a negative
    eigenvalue, a positive smallest one proves nothing.
    """

    nodes: Tensor
    weights: Tensor
    residual: float

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest Ritz value over all probes."""
        real = self.nodes[self.weights > 1e-20]  # a probe that ended early is filled up with weightless zeros
        return real.min(), real.max()

    def positive_fraction(self, zero: float) -> Tensor:
        """The share of eigenvalues above 0 among those that are not 0 relative to the largest; NaN where all are."""
        bound = zero * self.nodes.abs().max()
        positive = self.weights[self.nodes > bound].sum()
        return positive / (positive + self.weights[self.nodes < -bound].sum())


def symmetric_density(W: Tensor, B: Tensor, probes: int = 8, steps: int = 80, seed: int = 0) -> Density:
    """The spectral density of (W Bᵀ + B Wᵀ)/2 by stochastic Lanczos quadrature, on the CPU in float64.

    Args: ``W``, ``B`` (out, in); ``probes`` random sign vectors, ``steps`` Lanczos steps each. The standard error of
    a fraction read off the density falls as 1/√(probes · n), n being the number of eigenvalues that are not 0.
    """

    def apply(q: Tensor) -> Tensor:
        q = q.to(W.device, W.dtype)
        forth, back = matmul(matmul(q, B), W.mT), matmul(matmul(q, W), B.mT)
        return (0.5 * (forth + back)).cpu().to(torch.float64)

    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (probes, W.shape[0]), generator=generator, device="cpu") * 2 - 1
    with one_thread():
        diagonal, off_diagonal = lanczos(apply, signs.to(torch.float64), min(steps, W.shape[0]))
        tridiagonal = torch.diag_embed(diagonal)
        if diagonal.shape[-1] > 1:
            beside = torch.diag_embed(off_diagonal[:, :-1], 1)
            tridiagonal = tridiagonal + beside + beside.mT
        nodes, vectors = torch.linalg.eigh(tridiagonal)
    leftover = (off_diagonal[:, -1:] * vectors[:, -1, :]).abs()
    at_edges = leftover.gather(1, torch.stack([nodes.argmin(1), nodes.argmax(1)], 1))
    rounding = ROUNDING * torch.finfo(W.dtype).eps * float(W.norm()) * float(B.norm())
    return Density(nodes, vectors[:, 0, :].square(), float(at_edges.max()) + rounding)


def lanczos(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Diagonals (P, M) and off-diagonals (P, M) of the Lanczos matrices of a symmetric operator, one a row of start.

    The last off-diagonal is the residual's length. ``apply`` maps rows (P, n) to rows. Each new vector is orthogonalised
    twice against all before it, without which Ritz values repeat. A row whose Krylov space is exhausted ends in zeros.
    """
    q = start / start.norm(dim=-1, keepdim=True)
    basis = q.new_zeros(steps, *q.shape)
    diagonal, off_diagonal = q.new_zeros(q.shape[0], steps), q.new_zeros(q.shape[0], steps)
    for step in range(steps):
        basis[step] = q
        image = apply(q)
        diagonal[:, step] = (image * q).sum(-1)
        for _ in range(2):
            overlaps = torch.einsum("mpn,pn->mp", basis[: step + 1], image)
            image = image - torch.einsum("mpn,mp->pn", basis[: step + 1], overlaps)
        length = image.norm(dim=-1)
        scale = diagonal.abs().amax(-1) + off_diagonal.amax(-1)
        alive = length > 1e-12 * scale
        off_diagonal[:, step] = length.where(alive, 0.0)
        q = torch.where(alive[:, None], image / length[:, None], 0.0)
    return diagonal, off_diagonal
