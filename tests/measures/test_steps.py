"""Sizes and directions of steps: what plain gradient descent must give, and where a ratio is undefined."""

import pytest
import torch

from alignlab import measures
from alignlab.measures import _numerics
from alignlab.testing import naive


def layer(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    delta, h, W = (torch.randn(*size, generator=generator, dtype=dtype) for size in ((6, 4), (6, 9), (4, 9)))
    return delta, h, W, delta.mT @ h


def test_plain_gradient_descent_has_its_own_learning_rate_gain_one_and_angle_zero():
    delta, h, W, G = layer()
    dW = -0.03 * G
    assert measures.projected_lr(dW, delta, h).item() == pytest.approx(0.03)
    assert measures.update_angle(dW, delta, h).item() == pytest.approx(0, abs=1e-6)
    assert measures.applied_gain(dW, 0.03, measures.frobenius(G)).item() == pytest.approx(1)
    assert measures.relative_update(dW, W).item() == pytest.approx(0.03 * (G.norm() / W.norm()).item())


def test_a_step_uphill_is_at_180_with_negative_learning_rate():
    delta, h, _, G = layer()
    assert measures.update_angle(0.5 * G, delta, h).item() == pytest.approx(180)
    assert measures.projected_lr(0.5 * G, delta, h).item() == pytest.approx(-0.5)


def test_a_rule_that_is_k_times_louder_has_gain_k_and_k_times_the_effective_learning_rate():
    delta, h, _, _ = layer()
    gain = measures.feedback_gain(40 * delta, delta, h)
    assert gain.item() == pytest.approx(40)
    assert measures.effective_lr(0.1, gain).item() == pytest.approx(4)


def test_a_step_across_the_gradient_has_no_projected_learning_rate():
    delta, h = torch.tensor([[1.0]]), torch.tensor([[1.0, 0.0]])
    across = torch.tensor([[0.0, 1.0]])
    assert measures.projected_lr(across, delta, h) == 0
    assert measures.update_angle(across, delta, h).item() == pytest.approx(90)


def test_products_give_what_the_tensors_give():
    delta, h, _, G = layer()
    rule = delta + 0.5 * layer(1)[0]
    n11, _, n22 = measures.gradient_products(rule, delta, h)
    dW = -0.1 * (rule.mT @ h)
    n_update, n_bp = measures.frobenius(dW).square(), measures.frobenius(G).square()
    along = measures.update_products(dW, delta, h)
    pairs = [
        (measures.gain_from_products(n11, n22), measures.feedback_gain(rule, delta, h)),
        (measures.projected_lr_from_products(along, n_bp), measures.projected_lr(dW, delta, h)),
        (measures.update_angle_from_products(n_update, along, n_bp), measures.update_angle(dW, delta, h)),
    ]
    for from_products, from_tensors in pairs:
        assert from_products.item() == pytest.approx(from_tensors.item(), rel=1e-9)


def test_angular_update_ignores_a_change_of_length():
    _, _, W, _ = layer()
    assert measures.angular_update(W, 1.1 * W).item() == pytest.approx(0, abs=1e-6)


def test_ratios_to_nothing_are_undefined_not_infinite():
    delta, h, W, _ = layer()
    zero = torch.zeros_like(delta)
    undefined = [
        measures.feedback_gain(delta, zero, h),
        measures.feedback_gain(zero, zero, h),
        measures.projected_lr(W, zero, h),
        measures.update_angle(W, zero, h),
        measures.update_angle(torch.zeros_like(W), delta, h),
        measures.relative_update(W, torch.zeros_like(W)),
        measures.applied_gain(W, 0.0, torch.tensor(1.0)),
        measures.applied_gain(W, 0.1, torch.tensor(0.0)),
        measures.angular_update(torch.zeros_like(W), W),
    ]
    assert [x.isnan().item() for x in undefined] == [True] * len(undefined)


def test_a_silent_rule_has_gain_zero():
    delta, h, _, _ = layer()
    assert measures.feedback_gain(torch.zeros_like(delta), delta, h) == 0


def test_frobenius_takes_any_number_of_dimensions():
    x = torch.ones(2, 3, 4)
    assert measures.frobenius(x).tolist() == pytest.approx([12**0.5] * 2)
    assert measures.frobenius(x, dims=3).item() == pytest.approx(24**0.5)
    assert measures.frobenius(torch.full((2, 2), 1e-30)).item() == pytest.approx(2e-30)


# below and above a size at which matrices are taken block by block, and one that no block divides
SIZES = [(1, 1), (3, 5), (150, 101), (2, 75, 125), (1, 9_400)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("step", [1e-8, 1e-3, 0.5, 30.0])
def test_the_angle_of_a_step_follows_from_three_products(monkeypatch, shape, scale, step):
    monkeypatch.setattr(_numerics, "BLOCK", 1 << 12)
    generator = torch.Generator().manual_seed(0)
    W, other = (torch.randn(*shape, generator=generator) for _ in range(2))
    for dW in (step * other, step * W, -step * W, step * (W + 1e-3 * other)):
        weight, update = scale * W, scale * dW
        found = measures.angular_update_from_products(*measures.weight_products(weight, update))
        pairs = zip(
            weight.double().reshape(-1, *shape[-2:]), update.double().reshape(-1, *shape[-2:]), strict=True
        )
        expected = [naive.angular_update(before, before + change) for before, change in pairs]
        assert found.reshape(-1).tolist() == pytest.approx(expected, rel=1e-4, abs=5e-4)


def test_products_of_a_weight_and_its_step_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    W, dW = (torch.randn(2, 600, 401, generator=generator) for _ in range(2))
    for found, a, b in zip(measures.weight_products(W, dW), (W, W, dW), (W, dW, dW), strict=True):
        expected = (a.double() * b.double()).sum((-2, -1))
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-2)


def test_a_weight_that_its_step_cancels_has_no_angle():
    W = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    for dW in (-W, -W * (1 + 1e-6)):
        assert measures.angular_update_from_products(*measures.weight_products(W, dW)).isnan()
    half = measures.angular_update_from_products(*measures.weight_products(W, -0.5 * W))
    assert half.item() == pytest.approx(0, abs=1e-3)
    for zero, other in ((torch.zeros_like(W), W), (torch.zeros_like(W), torch.zeros_like(W))):
        assert measures.angular_update_from_products(*measures.weight_products(zero, other)).isnan()
