"""Laws that hold for all inputs, searched for counterexamples by hypothesis (derandomised: no run differs)."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alignlab import measures

settings.register_profile("measures", derandomize=True, deadline=None, max_examples=40, database=None)
law = settings.get_profile("measures")

seeds = st.integers(0, 10_000)
sizes = st.integers(1, 12)
factors = st.floats(1e-3, 1e3)


def randn(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


@law
@given(seeds, sizes, sizes, sizes, factors, factors)
def test_angles_do_not_depend_on_scale(seed, n, n_in, n_out, first, second):
    rule, bp, h = randn(seed, (n, n_out), (n, n_out), (n, n_in))
    expected = measures.gradient_angle(rule.double(), bp.double(), h.double()).item()
    got = measures.gradient_angle(first * rule, second * bp, first * second * h).item()
    assert got == pytest.approx(expected, abs=0.01)
    assert measures.gradient_angle(-first * rule, bp, h).item() == pytest.approx(180 - expected, abs=0.01)


@law
@given(seeds, sizes, sizes, sizes)
def test_angles_are_symmetric_and_obey_the_triangle_inequality(seed, n, n_in, n_out):
    a, b, c, h = randn(seed, *[(n, n_out)] * 3, (n, n_in))
    ab, bc, ac = (measures.gradient_angle(x, y, h).item() for x, y in ((a, b), (b, c), (a, c)))
    assert measures.gradient_angle(b, a, h).item() == pytest.approx(ab, abs=0.01)
    assert ac <= ab + bc + 0.01


@law
@given(seeds, sizes, sizes, sizes, factors)
def test_the_gain_grows_with_the_rule(seed, n, n_in, n_out, factor):
    rule, bp, h = randn(seed, (n, n_out), (n, n_out), (n, n_in))
    gain = measures.feedback_gain(rule, bp, h).item()
    assert measures.feedback_gain(factor * rule, bp, h).item() == pytest.approx(factor * gain, rel=1e-3)
    assert measures.feedback_gain(rule, factor * bp, h).item() == pytest.approx(gain / factor, rel=1e-3)


@law
@given(seeds, sizes, sizes, sizes)
def test_the_inner_product_is_bounded_by_the_norms(seed, n, n_in, n_out):
    rule, bp, h = randn(seed, (n, n_out), (n, n_out), (n, n_in))
    n11, n12, n22 = (x.item() for x in measures.gradient_products(rule, bp, h))
    assert n12**2 <= n11 * n22 * (1 + 1e-12)


@law
@given(seeds, sizes, sizes, st.floats(-1, 1))
def test_real_parts_lie_between_the_edges_of_the_symmetric_part(seed, n_out, n_in, alignment):
    W, other = randn(seed, (n_out, n_in), (n_out, n_in))
    spectrum = measures.feedback_spectrum(W, alignment * W + other)
    slack = 1e-9 * float(W.norm() * spectrum.real.abs().max() + 1)
    assert spectrum.real.min() >= spectrum.symmetric_min - slack
    assert spectrum.real.max() <= spectrum.symmetric_max + slack


@law
@given(seeds, sizes, sizes)
def test_a_positive_symmetric_part_sends_every_error_downhill(seed, n_out, n_in):
    W, other, errors = randn(seed, (n_out, n_in), (n_out, n_in), (20, n_out))
    B = W + 0.05 * other
    assume(measures.feedback_spectrum(W, B).symmetric_min > 1e-4)
    assert measures.descent_fraction(errors, W, B) == 1


@law
@given(seeds, sizes, sizes)
def test_the_eigenvector_of_a_negative_edge_is_an_error_that_climbs(seed, n_out, n_in):
    W, B = randn(seed, (n_out, n_in), (n_out, n_in))
    assume(measures.feedback_spectrum(W, B).symmetric_min < -1e-3)
    worst = torch.linalg.eigh(W @ B.mT + B @ W.mT).eigenvectors[:, :1].mT
    assert measures.descent_fraction(worst, W, B) == 0


@law
@given(seeds, st.integers(2, 12), sizes, factors)
def test_swapping_w_and_b_keeps_the_spectrum_and_scaling_scales_it(seed, n_out, n_in, factor):
    W, B = randn(seed, (n_out, n_in), (n_out, n_in))
    one, other = measures.feedback_spectrum(W, B), measures.feedback_spectrum(B, factor * W)
    modulus, scaled = (torch.hypot(x.real, x.imag) for x in (one, other))
    assert torch.allclose(factor * modulus, scaled, rtol=1e-4, atol=1e-6 * factor * float(modulus.max()))
    assert other.symmetric_min.item() == pytest.approx(factor * one.symmetric_min.item(), rel=1e-4, abs=1e-6)
