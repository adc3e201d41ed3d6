"""The iterative eigensolvers alone: exact where they can be, honest where not."""

import numpy as np
import pytest
import torch

from alignlab.measures.iterative import Density, arnoldi, lanczos, symmetric_density


def randn(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(40, 70), (70, 40)])
def test_arnoldi_finds_the_largest_modes_on_either_side(shape):
    W, B = randn(*shape), randn(*shape, seed=1)
    values, converged = arnoldi(W, B, k=6)
    exact = np.linalg.eigvals((W @ B.mT).numpy())
    exact = exact[np.argsort(-np.abs(exact))]
    assert converged == 6
    assert np.abs(values.numpy()) == pytest.approx(np.abs(exact[:6]), rel=1e-5)
    assert all(np.abs(exact - value).min() < 1e-4 * np.abs(exact[0]) for value in values.numpy())


@pytest.mark.parametrize("shape", [(10, 20), (20, 10)])
def test_arnoldi_asked_for_too_many_modes_says_how_many_there_are(shape):
    with pytest.raises(ValueError, match="1 to 8 eigenvalues of a product of size 10, not k=9"):
        arnoldi(randn(*shape), randn(*shape), k=9)


def test_modes_that_do_not_converge_are_nan_and_counted(monkeypatch):
    monkeypatch.setattr("alignlab.measures.iterative.RESTARTS", 1)
    values, converged = arnoldi(randn(400, 400), randn(400, 400, seed=1), k=16)
    assert converged < 16
    assert int(values.isnan().sum()) == 16 - converged
    assert not values[:converged].isnan().any()


def test_lanczos_run_to_the_end_gives_all_eigenvalues():
    matrix = randn(12, 12)
    matrix = matrix + matrix.mT
    diagonal, beside = lanczos(lambda q: q @ matrix, randn(3, 12, seed=2), 12)
    expected = torch.linalg.eigvalsh(matrix)
    for row in range(3):
        tridiagonal = torch.diag(diagonal[row])
        tridiagonal += torch.diag(beside[row, :-1], 1) + torch.diag(beside[row, :-1], -1)
        assert torch.allclose(torch.linalg.eigvalsh(tridiagonal), expected, atol=1e-9)
    assert beside[:, -1].abs().max() < 1e-9


def test_the_density_integrates_to_one_and_its_mean_is_the_trace():
    W, B = randn(50, 60), randn(50, 60, seed=1)
    density = symmetric_density(W, B, probes=400, steps=10)
    assert torch.allclose(density.weights.sum(1), torch.ones(400, dtype=torch.float64))
    mean = (density.nodes * density.weights).sum(1)
    assert mean.mean().item() == pytest.approx((W * B).sum().item() / 50, abs=4 * mean.std().item() / 20)


def test_an_exhausted_krylov_space_adds_no_false_zero_to_the_edges():
    W = 2 * torch.eye(30, dtype=torch.float64)
    density = symmetric_density(W, W, probes=2, steps=10)
    low, high = density.edges
    assert (low.item(), high.item()) == pytest.approx((4, 4))
    assert density.positive_fraction(1e-10) == 1
    assert density.residual < 1e-12


def test_ritz_values_lie_inside_the_spectrum_by_no_more_than_the_steps_leave():
    W, B = randn(200, 250), randn(200, 250, seed=1)
    exact = torch.linalg.eigvalsh((W @ B.mT + B @ W.mT) / 2)
    for steps, slack in ((5, 0.5), (60, 1e-3)):
        low, high = symmetric_density(W, B, steps=steps).edges
        assert exact[0] - 1e-9 <= low <= exact[0] * (1 - slack)
        assert exact[-1] * (1 - slack) <= high <= exact[-1] + 1e-9


@pytest.mark.parametrize("steps", [5, 20])
def test_the_residual_bounds_how_far_an_edge_is_from_an_eigenvalue(steps):
    generator = torch.Generator().manual_seed(0)
    W, B = (torch.randn(200, 250, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = torch.linalg.eigvalsh((W @ B.mT + B @ W.mT) / 2)
    density = symmetric_density(W, B, steps=steps)
    distances = [(exact - edge).abs().min().item() for edge in density.edges]
    assert 0 < max(distances) <= density.residual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_proves_no_negative_eigenvalue_of_backprop(dtype):
    W = randn(200, 250)
    W[::3] = 0  # dead units: eigenvalues at 0, from both sides of which rounding takes Ritz values
    W = W.to(dtype)
    density = symmetric_density(W, W)
    exact = torch.linalg.eigvalsh(W.double() @ W.double().mT)
    assert density.edges[0] >= -density.residual
    assert max((exact - edge).abs().min().item() for edge in density.edges) <= density.residual
    assert density.residual < 1e-3 * exact[-1]


def test_the_rounding_behind_a_residual_is_that_of_both_weights():
    """All steps are taken: what is left is rounding."""
    W = randn(20, 30).float()
    usual = symmetric_density(W, W, steps=20).residual
    for pair in ((W, 100 * W), (100 * W, W)):
        assert symmetric_density(*pair, steps=20).residual == pytest.approx(100 * usual, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-18, 1e-9, 1e9, 1e18])
def test_densities_scale_with_their_weights(scale):
    """Lanczos ended at the first step where products were smaller than what it took for rounding."""
    W, B = randn(20, 30), randn(20, 30, seed=1)
    W[15:], B[15:] = 0, 0  # so that the Krylov space is exhausted
    usual, found = (symmetric_density(size * W, B, probes=4, steps=20) for size in (1, scale))
    assert [x.item() / scale for x in found.edges] == pytest.approx([x.item() for x in usual.edges])
    assert found.positive_fraction(1e-5).item() == pytest.approx(usual.positive_fraction(1e-5).item())


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_what_is_nothing_beside_the_largest_eigenvalue_has_no_sign(scale):
    nodes = scale * torch.tensor([[10.0, 1e-2, 1e-7, -1e-7]], dtype=torch.float64)
    density = Density(nodes, torch.full_like(nodes, 0.25), 0.0)
    assert density.positive_fraction(1e-5) == 1
    assert Density(-nodes, density.weights, 0.0).positive_fraction(1e-5) == 0


@pytest.mark.parametrize("steps", [2, 5])
def test_the_residual_is_that_of_the_ritz_vectors_at_the_edges(steps):
    W, B = randn(40, 50), randn(40, 50, seed=1)
    A = (W @ B.mT + B @ W.mT) / 2
    start = torch.randint(0, 2, (1, 40), generator=torch.Generator().manual_seed(3))[0] * 2.0 - 1
    powers = [start.double()]
    for _ in range(steps - 1):
        powers.append(A @ powers[-1])
    Q = torch.linalg.qr(torch.stack(powers, 1)).Q
    values, vectors = torch.linalg.eigh(Q.mT @ A @ Q)
    ritz = Q @ vectors
    residuals = (A @ ritz - ritz * values).norm(dim=0)
    density = symmetric_density(W, B, probes=1, steps=steps, seed=3)
    assert density.nodes[0].tolist() == pytest.approx(values.tolist())
    assert density.weights[0].tolist() == pytest.approx(
        (vectors.mT @ Q.mT @ powers[0]).square().div(40).tolist()
    )
    assert density.residual == pytest.approx(max(residuals[0].item(), residuals[-1].item()), rel=1e-6)
