"""The spectrum of a block-diagonal product is the union of its blocks': against the matrix as a whole."""

import pytest
import torch

from alignlab.measures import feedback_spectrum
from alignlab.measures.blocks import block_spectrum
from alignlab.testing import naive

SHAPES = [(1, 4, 6), (3, 4, 6), (5, 6, 2), (2, 1, 1)]  # (blocks, out, in)
SUMMARIES = (
    "positive_fraction",
    "symmetric_min",
    "symmetric_max",
    "symmetric_positive_fraction",
    "trace",
    "chance_radius",
)


def weights(*shape):
    """Blocks of very different sizes, so that a share of each cannot stand for a share of all."""
    generator = torch.Generator().manual_seed(sum(shape))
    W, B = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return W * torch.arange(1, shape[0] + 1)[:, None, None] ** 2, B


@pytest.mark.parametrize("shape", SHAPES)
def test_the_union_is_the_spectrum_of_the_whole(shape):
    W, B = weights(*shape)
    whole = [torch.block_diag(*blocks) for blocks in (W, B)]
    expected = naive.spectrum(*whole)
    symmetric = naive.symmetric_spectrum(*whole)
    found = block_spectrum(W, B)
    modes = torch.complex(found.real, found.imag).numpy()
    assert abs(modes) == pytest.approx(abs(expected), rel=1e-7, abs=1e-7)
    assert (abs(modes[:-1]) >= abs(modes[1:]) - 1e-9).all()
    assert sorted(modes.real) == pytest.approx(sorted(expected.real), rel=1e-7, abs=1e-7)
    nonzero = expected[abs(expected) > 1e-8 * abs(expected).max()]
    assert found.positive_fraction.item() == pytest.approx((nonzero.real > 0).mean())
    assert found.symmetric_min.item() == pytest.approx(symmetric.min(), abs=1e-7)
    assert found.symmetric_max.item() == pytest.approx(symmetric.max(), abs=1e-7)
    assert found.trace.item() == pytest.approx(naive.spectrum_trace(*whole))
    assert found.symmetric_positive_fraction.item() == pytest.approx(
        naive.positive_fraction(symmetric, zero=1e-8)
    )
    discs = [w.norm() * b.norm() / (w.shape[0] * w.shape[1]) ** 0.5 for w, b in zip(W, B, strict=True)]
    assert found.chance_radius.item() == pytest.approx(float(max(discs)))
    assert (found.method, found.symmetric_error) == ("exact", 0)
    assert {getattr(found, name).dtype for name in SUMMARIES} == {torch.float64}


def test_at_most_the_limits_number_of_modes_is_listed_and_the_summaries_are_of_all():
    W, B = weights(6, 4, 5)
    every, largest = block_spectrum(W, B), block_spectrum(W, B, exact_limit=10, k=4)
    assert torch.equal(largest.real, every.real[:10])
    assert torch.equal(largest.imag, every.imag[:10])
    for name in SUMMARIES:
        assert getattr(largest, name) == getattr(every, name)


def test_blocks_too_large_to_decompose_are_treated_as_one_matrix():
    W, B = weights(2, 12, 12)
    found = block_spectrum(W, B, exact_limit=8, k=4)
    assert found.method == "arnoldi+lanczos"
    assert found.chance_radius == block_spectrum(W, B).chance_radius  # a block's, not the matrix's
    assert found.real[:4].numpy() == pytest.approx(block_spectrum(W, B).real[:4].numpy(), rel=1e-4)


def test_a_single_block_is_treated_as_the_layer_that_it_is():
    W, B = weights(1, 12, 12)
    found, layer = (
        block_spectrum(W, B, exact_limit=8, k=4),
        feedback_spectrum(W[0], B[0], exact_limit=8, k=4),
    )
    assert found.method == layer.method == "arnoldi+lanczos"
    assert torch.equal(found.real, layer.real)


@pytest.mark.parametrize("broken", [0, 1])
def test_weights_that_are_not_finite_have_no_spectrum(broken):
    W, B = weights(3, 4, 5)
    (W, B)[broken][1, 0, 0] = torch.inf
    for settings in ({}, {"exact_limit": 3, "k": 1}, {"exact_limit": 6}):
        found = block_spectrum(W, B, **settings)
        assert found.real.isnan().all()
        assert found.imag.isnan().all()
        assert (
            found.real.shape == block_spectrum(*weights(3, 4, 5), **settings).real.shape
        )  # beside runs that go on
        assert all(getattr(found, name).isnan() for name in (*SUMMARIES, "symmetric_error"))


def test_shapes_must_agree():
    W, B = weights(3, 4, 5)
    for other in (B[:2], B[0]):
        with pytest.raises(ValueError, match=r"must share one shape \(blocks, out, in\)"):
            block_spectrum(W, other)
