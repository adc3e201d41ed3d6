"""The spectrum of forward times feedback weight, W Bᵀ.

Feedback learning descends where eᵀ W Bᵀ e > 0: the signal handed down is then within 90° of backprop's
(Lillicrap et al. 2016). The eigenvalues of W Bᵀ say along which directions, those of its symmetric part
(W Bᵀ + B Wᵀ)/2 whether for every error; :mod:`alignlab.measures.descent` asks the errors that really occur. With
B = W, as in backprop, all are real and ≥ 0: the control.

Shapes: ``W_oi``, ``B_oi`` (..., out, in); ``...`` are run dimensions. For direct rules
pass the product of the forward weights above the layer as W and the direct feedback as B, both (n_error, out).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignlab.checks import is_whole
from alignlab.measures._numerics import balance, inner, norm, widen
from alignlab.measures.chance import chance_radius
from alignlab.measures.iterative import arnoldi, one_thread, symmetric_density

ZERO = 1e-10  # an eigenvalue below this share of the largest modulus is rounding, not a mode
ZERO_ITERATIVE = 1e-5  # the same where products are rounded to float32


@dataclass(frozen=True)
class Spectrum:
    """Of W Bᵀ: eigenvalues (..., mode) by descending modulus, and summaries (...); float64, on the CPU.

    Exact, there are ``out`` modes, those beyond min(out, in) exact zeros; by Arnoldi there are k, NaN where one
    did not converge. ``positive_fraction`` is the share of Re λ > 0 among the nonzero modes listed,
    ``symmetric_positive_fraction`` that of positive ones among all nonzero eigenvalues of the symmetric part.
    ``symmetric_error``: how far ``symmetric_min`` and ``symmetric_max`` may lie from an eigenvalue, 0 where exact.
    ``chance_radius``: of the disc that the eigenvalues fill where B knows nothing of W (:func:`.chance.chance_radius`); of
    several maps the widest.
    ``method`` is "exact", "exact+lanczos" or "arnoldi+lanczos" (modes + symmetric part) and ``parameters`` holds
    its settings, all of them numbers.
    """

    real: Tensor
    imag: Tensor
    positive_fraction: Tensor
    symmetric_min: Tensor
    symmetric_max: Tensor
    symmetric_error: Tensor
    symmetric_positive_fraction: Tensor
    trace: Tensor
    chance_radius: Tensor
    method: str
    parameters: dict[str, float]


def feedback_spectrum(
    W: Tensor,
    B: Tensor,
    *,
    exact_limit: int = 1024,
    k: int = 32,
    probes: int = 8,
    steps: int = 80,
    seed: int = 0,
) -> Spectrum:
    """The spectrum of W Bᵀ (out, out) and of its symmetric part.

    Exact, in float64 and on one thread, while the matrix to decompose is no larger than ``exact_limit``: for the
    modes min(out, in), since W Bᵀ and Bᵀ W share their nonzero eigenvalues; for the symmetric part
    min(out, 2·in), which bounds its rank. Beyond, the ``k`` largest modes by Arnoldi (all modes, exactly, where there are no
    more than k + 2), and the symmetric part's edges and density by stochastic Lanczos (``probes``, ``steps``, ``seed``; see
    ``iterative``: Lanczos edges lie inside the true ones). The trace Σ W∘B is always exact. A run whose weights are not
    finite has NaN for everything. Args: ``W``, ``B`` (..., out, in).

    Raises:
        ValueError: W and B differ in shape, or a setting is no whole number, at least 1 (``exact_limit``, ``seed``: 0).

    >>> W, B = torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, -1.0]))
    >>> spectrum = feedback_spectrum(W, B)
    >>> spectrum.real, spectrum.symmetric_min.item(), spectrum.positive_fraction.item(), spectrum.method
    (tensor([ 2., -1.], dtype=torch.float64), -1.0, 0.5, 'exact')
    """
    if W.shape != B.shape or W.dim() < 2:
        raise ValueError(f"W {tuple(W.shape)} and B {tuple(B.shape)} must share one shape (..., out, in)")
    (W, scale_W), (B, scale_B) = (balance(x) for x in widen(W, B))  # products in float32 fit
    scale = torch.as_tensor(scale_W * scale_B, dtype=torch.float64, device="cpu")
    n_out, n_in = W.shape[-2:]
    settings = _Settings(n_out, n_in, exact_limit, k, probes, steps, seed)
    settings.check()
    runs = zip(W.reshape(-1, n_out, n_in), B.reshape(-1, n_out, n_in), strict=True)
    with one_thread():
        found = [_one_run(w, b, settings) for w, b in runs]
    modes = torch.stack([run.modes for run in found]).reshape(*W.shape[:-2], -1)
    summaries = torch.stack([run.summaries for run in found]).reshape(*W.shape[:-2], 6)
    parameters = settings.reported
    if settings.arnoldi:
        parameters["converged"] = min(run.converged for run in found)
    radius, positive, low, high, symmetric_positive, residual = summaries.unbind(-1)
    trace = inner(W, B, 2).cpu().to(torch.float64)
    return Spectrum(
        real=modes.real * scale[..., None],
        imag=modes.imag * scale[..., None],
        positive_fraction=positive,
        symmetric_min=low * scale,
        symmetric_max=high * scale,
        symmetric_error=residual * scale,
        symmetric_positive_fraction=symmetric_positive,
        trace=trace.where(trace.isfinite(), torch.nan) * scale,
        chance_radius=radius * scale,
        method=settings.method,
        parameters=parameters,
    )


def exact_modes(W: Tensor, B: Tensor) -> Tensor:
    """All eigenvalues of W Bᵀ by descending modulus, (out,) complex128, from its smaller side; the rest are zeros."""
    W, B = W.cpu().to(torch.float64), B.cpu().to(torch.float64)
    product = W @ B.mT if W.shape[0] <= W.shape[1] else B.mT @ W
    # far below rounding; of rows whose squares underflow LAPACK finds no eigenvalues
    noise = torch.finfo(product.dtype).eps ** 2 * product.abs().max()
    values = torch.linalg.eigvals(product.where(product.abs() > noise, 0.0))
    values = values[values.abs().argsort(descending=True, stable=True)]
    return torch.cat([values, values.new_zeros(W.shape[0] - len(values))])


def exact_symmetric(W: Tensor, B: Tensor) -> Tensor:
    """All eigenvalues of (W Bᵀ + B Wᵀ)/2, (out,) float64 ascending; those within rounding of 0 are exactly 0."""
    n_out = W.shape[0]
    W, B = compress(W.cpu().to(torch.float64), B.cpu().to(torch.float64))
    product = W @ B.mT
    values = torch.linalg.eigvalsh((product + product.mT) / 2)
    rounding = n_out * torch.finfo(values.dtype).eps * values.abs().max()
    values = values.where(values.abs() > rounding, 0.0)
    return torch.cat([values, values.new_zeros(n_out - len(values))]).sort().values


def compress(W: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """W and B as (min(out, 2·in), in), with a symmetric part that has lost nothing but zero eigenvalues.

    [W B] = Q R with orthonormal columns in Q, so W Bᵀ = Q (R_W R_Bᵀ) Qᵀ.
    """
    n_out, n_in = W.shape
    if n_out <= 2 * n_in:
        return W, B
    R = torch.linalg.qr(torch.cat([W, B], dim=1), mode="r").R
    return R[:, :n_in], R[:, n_in:]


@dataclass(frozen=True)
class _Settings:
    """How to decompose layers of one size."""

    n_out: int
    n_in: int
    exact_limit: int
    k: int
    probes: int
    steps: int
    seed: int

    @property
    def largest_exact(self) -> int:
        return max(self.exact_limit, self.k + 2)  # Arnoldi finds at most two fewer than all

    def check(self) -> None:
        """Raise ``ValueError`` for a setting that is none."""
        for name, least in (("exact_limit", 0), ("k", 1), ("probes", 1), ("steps", 1), ("seed", 0)):
            value = getattr(self, name)
            if not is_whole(value, least):
                raise ValueError(f"{name} is {value!r}, expected a whole number, at least {least}")

    @property
    def arnoldi(self) -> bool:
        return min(self.n_out, self.n_in) > self.largest_exact

    @property
    def lanczos(self) -> bool:
        return min(self.n_out, 2 * self.n_in) > self.largest_exact

    @property
    def method(self) -> str:
        if not self.lanczos:
            return "exact"
        return "arnoldi+lanczos" if self.arnoldi else "exact+lanczos"

    @property
    def reported(self) -> dict[str, float]:
        """The settings that had a part in the result."""
        names = ["exact_limit", *["k"] * self.arnoldi, *["probes", "steps", "seed"] * self.lanczos]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Run:
    """One run's modes, and its (chance radius, positive fraction, symmetric min, max, positive fraction, residual of these)."""

    modes: Tensor
    summaries: Tensor
    converged: int = 0


def _one_run(W: Tensor, B: Tensor, settings: _Settings) -> _Run:
    if not bool(W.isfinite().all() & B.isfinite().all()):
        nan = torch.tensor(complex(torch.nan, torch.nan), dtype=torch.complex128, device="cpu")
        return _Run(nan.repeat(settings.k if settings.arnoldi else settings.n_out), nan.real.repeat(6))
    if settings.arnoldi:
        modes, converged = arnoldi(W, B, settings.k, settings.seed)
        positive = positive_fraction(modes, ZERO_ITERATIVE)
    else:
        modes, converged = exact_modes(W, B), settings.n_out
        positive = positive_fraction(modes, ZERO)
    symmetric = (_lanczos_summary if settings.lanczos else _exact_summary)(W, B, settings)
    radius = chance_radius(float(norm(W, 2)), float(norm(B, 2)), settings.n_out, settings.n_in)
    return _Run(modes, torch.stack([positive.new_tensor(radius), positive, *symmetric]), converged)


def _exact_summary(W: Tensor, B: Tensor, settings: _Settings) -> list[Tensor]:
    values = exact_symmetric(W, B)
    return [values[0], values[-1], positive_fraction(values, ZERO), values.new_zeros(())]


def _lanczos_summary(W: Tensor, B: Tensor, settings: _Settings) -> list[Tensor]:
    W, B = compress(W, B)  # a cluster of zeros converges slowly, and half of it would count as negative
    density = symmetric_density(W, B, settings.probes, settings.steps, settings.seed)
    low, high = density.edges
    if W.shape[0] < settings.n_out:
        low, high = low.clamp(max=0), high.clamp(min=0)
    return [low, high, density.positive_fraction(ZERO_ITERATIVE), low.new_tensor(density.residual)]


def positive_fraction(values: Tensor, zero: float) -> Tensor:
    """The share of values with positive real part among those that are not 0 relative to the largest modulus."""
    values = values[values.real.isfinite()]  # what Arnoldi did not find has no sign
    modulus = values.abs()
    bound = zero * (modulus.max() if len(values) else 0.0)
    return (values.real > bound).sum().double() / (modulus > bound).sum()
