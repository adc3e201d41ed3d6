"""The chance band against closed forms, integration and seeded sampling."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from alignlab.measures import chance_band, chance_radius, chance_std, feedback_spectrum, gradient_angle
from alignlab.testing import naive


def test_in_two_dimensions_the_angle_is_uniform():
    assert chance_band(2, 0.95) == pytest.approx((4.5, 175.5))
    assert chance_std(2) == pytest.approx(180 / math.sqrt(12))


def test_in_three_dimensions_the_cosine_is_uniform():
    assert chance_band(3, 0.9)[0] == pytest.approx(math.degrees(math.acos(0.9)))


def test_in_one_dimension_the_angle_is_zero_or_180():
    assert chance_band(1) == (0, 180)
    assert chance_std(1) == pytest.approx(90)


@pytest.mark.parametrize("n", [10**4, 784 * 512, 10**9])
def test_in_many_dimensions_the_angle_is_normal(n):
    low, high = chance_band(n)
    half = math.degrees(1.959964 / math.sqrt(n))
    assert 90 - low == pytest.approx(half, rel=1e-3)
    assert high - 90 == pytest.approx(half, rel=1e-3)
    assert chance_std(n) == pytest.approx(math.degrees(1 / math.sqrt(n)), rel=1e-3)


@pytest.mark.parametrize("n", [2, 3, 5, 24, 101])
def test_band_and_spread_are_those_of_the_density(n):
    def density(angle):
        return math.sin(math.radians(angle)) ** (n - 2)

    total = quad(density, 0, 180)[0]
    low, high = chance_band(n, 0.8)
    assert quad(density, low, high)[0] / total == pytest.approx(0.8)
    variance = quad(lambda angle: (angle - 90) ** 2 * density(angle), 0, 180)[0] / total
    assert chance_std(n) == pytest.approx(math.sqrt(variance))


def test_random_directions_fall_where_the_band_says():
    angles = naive.random_angles(12, samples=2000, seed=0)
    low, high = chance_band(12, 0.9)
    assert np.mean((low < angles) & (angles < high)) == pytest.approx(0.9, abs=0.03)
    assert angles.std() == pytest.approx(chance_std(12), rel=0.06)


@pytest.mark.parametrize("coverage", [0, 1, -0.5, 95])
def test_a_coverage_that_is_no_probability_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage"):
        chance_band(10, coverage)


@pytest.mark.parametrize("function", [chance_band, chance_std])
def test_less_than_one_dimension_is_refused(function):
    with pytest.raises(ValueError, match="at least 1"):
        function(0)


@pytest.mark.parametrize(("n_out", "n_in"), [(300, 300), (100, 400), (400, 100)])
def test_the_spectrum_of_unrelated_matrices_fills_the_disc_of_chance(n_out, n_in):
    rng = np.random.default_rng(0)
    W, B = 0.3 * rng.standard_normal((n_out, n_in)), rng.uniform(-2, 2, (n_out, n_in))
    radius = chance_radius(np.linalg.norm(W), np.linalg.norm(B), n_out, n_in)
    assert np.abs(np.linalg.eigvals(W @ B.T)).max() == pytest.approx(radius, rel=0.08)
    for scale in (1.0, 1e15):  # small enough to decompose as it is, and balanced first
        found = feedback_spectrum(torch.from_numpy(scale * W), torch.from_numpy(B))
        assert found.chance_radius.item() == pytest.approx(scale * radius)


@pytest.mark.parametrize(("given", "told"), [((1, 1, 0, 3), "at least 1"), ((-1.0, 1, 2, 3), "-1.0")])
def test_a_disc_needs_sizes_and_norms(given, told):
    with pytest.raises(ValueError, match=told):
        chance_radius(*given)


def test_random_feedback_strays_further_from_90_degrees_than_random_directions_do():
    generator = torch.Generator().manual_seed(0)
    h, W = torch.rand(32, 60, generator=generator), torch.randn(10, 40, generator=generator)
    error, on = torch.randn(32, 10, generator=generator), torch.rand(32, 40, generator=generator) < 0.5
    true = (error @ W) * on
    drawn = [torch.randn(10, 40, generator=generator) for _ in range(200)]
    angles = torch.stack([gradient_angle((error @ B) * on, true, h) for B in drawn])
    assert angles.mean().item() == pytest.approx(90, abs=2)
    assert angles.std() > 3 * chance_std(40 * 60)
    assert angles.std() < 1.5 * chance_std(40)
