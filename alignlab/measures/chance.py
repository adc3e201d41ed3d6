"""What chance gives: the angle between a fixed and a random direction, exactly; the spectrum of unrelated matrices.

The cosine c of a uniformly random direction in n dimensions has c² ~ Beta(1/2, (n−1)/2) (e.g. Cai, Fan & Jiang
2013, JMLR 14:1837), so t = c·√(n−1)/√(1−c²) is Student's t with n−1 degrees of freedom. In the many dimensions of
a weight every random direction is nearly orthogonal: an angle of 89° can be far outside of chance.

That is the chance of weights, and of noise on every entry of a gradient. The gradient of a rule with random feedback is no
such direction: it shares inputs h, errors and derivatives with backprop's, so that few of its out·in dimensions are free,
at most ``out`` where the inputs are alike. Its angles scatter about 90° over draws of B ten to fifteen times as wide as
``chance_band(out * in)``; what chance gives there is found by drawing B again.
"""

from __future__ import annotations

import math


def chance_band(n: int, coverage: float = 0.95) -> tuple[float, float]:
    """(low, high) degrees, central about 90: a random direction in n dimensions falls inside with P = coverage.

    tan(low) = √(n−1) / t, t the (1+coverage)/2 quantile of Student's t with n−1 degrees of freedom. For a weight
    gradient n = out·in. In one dimension the angle is 0 or 180.

    Raises:
        ValueError: n < 1, or coverage outside (0, 1).

    >>> [round(edge, 3) for edge in chance_band(784 * 512)]
    [89.823, 90.177]
    """
    _check_dimensions(n)
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage!r}, expected a probability strictly between 0 and 1")
    if n == 1:
        return 0.0, 180.0
    from scipy.special import stdtrit

    low = math.degrees(math.atan2(math.sqrt(n - 1), float(stdtrit(n - 1, (1 + coverage) / 2))))
    return low, 180 - low


def chance_std(n: int) -> float:
    """The standard deviation, in degrees, of the angle to a random direction in n dimensions: √(ψ₁(n/2)/2) radians.

    The angle θ has density ∝ sinⁿ⁻²θ; its variance falls by 2/n² from n to n+2, and these terms add up to half the
    trigamma function ψ₁(n/2).

    Raises:
        ValueError: n < 1.

    >>> [round(chance_std(n), 4) for n in (1, 3, 100)]
    [90.0, 39.1713, 5.7583]
    """
    _check_dimensions(n)
    from scipy.special import polygamma

    return math.degrees(math.sqrt(float(polygamma(1, n / 2)) / 2))


def chance_radius(weight_norm: float, feedback_norm: float, n_out: int, n_in: int) -> float:
    """The radius of the disc that the eigenvalues of W Bᵀ fill where B knows nothing of W: ‖W‖ ‖B‖ / √(out·in).

    For W, B (out, in) of independent entries around 0, in the limit of large layers; beyond it lie the modes that have been
    learned. Frobenius norms, of one map: of a convolution's group, of one position of an untied one; under a direct rule W is
    the product of the weights above. Source: the circular law of a product of two rectangular matrices, Burda et al. 2010,
    arXiv:1007.3594, whose radius is σ_W σ_B √(out·in).

    Raises:
        ValueError: a norm < 0, or a layer without units.

    >>> chance_radius(8.0, 8.0, 64, 64)
    1.0
    """
    if min(n_out, n_in) < 1:
        raise ValueError(f"a layer of ({n_out}, {n_in}) has no spectrum: both sizes must be at least 1")
    if min(weight_norm, feedback_norm) < 0:
        raise ValueError(f"norms are {weight_norm!r} and {feedback_norm!r}, expected at least 0")
    return weight_norm * feedback_norm / math.sqrt(n_out * n_in)


def _check_dimensions(n: int) -> None:
    if n < 1:
        raise ValueError(f"n is {n!r}, expected the number of dimensions, at least 1")
