"""Soap: Newton's step where it can be derived by hand, what the plain form gets wrong, and what the safeguards make of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rule_cases import close, gradients, mlp, normal
from torch import Tensor, nn

from alignlab import rules

X, Y = normal(6, 5), normal(6, 2, seed=2)
CURVATURES = torch.tensor([0.25, 1.0, 30.0], dtype=torch.float64)


def convert(net: Any, **args: Any) -> Any:
    return rules.convert(net, "soap", generator=torch.Generator().manual_seed(1), **args)


def quadratic(net: nn.Module, y: Tensor, curvatures: Tensor) -> Tensor:
    """½ Σ a (z − y)² of each sample: the Hessian at z is diag(a)."""
    return (0.5 * curvatures * (net(X) - y).square()).sum(1)


def one_layer(curvatures: Tensor, **args: Any) -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear layer taught on the quadratic; with its gradient g₀ = a (z − y) for each sample."""
    torch.manual_seed(0)
    layer, y = nn.Linear(5, len(curvatures)).double(), normal(6, len(curvatures), seed=3)
    g = curvatures * (layer(X).detach() - y)
    convert(layer, guide="bp", **args)
    rules.backward(layer, lambda: quadratic(layer, y, curvatures))
    return layer, g, g / curvatures


def steps_of(layer: nn.Linear) -> Tensor:
    """deltaᵀ X back to the mean over samples that it is: what n would have to be is compared in this form."""
    assert layer.weight.grad is not None
    return layer.weight.grad


def as_gradient(n: Tensor) -> Tensor:
    return n.T @ X / len(X)


# --- Newton's step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1e-4, 1e-2])
def test_on_a_quadratic_it_is_newtons_step(step: float) -> None:
    """g₁ = a (z − step g₀ − y) = g₀ − step a g₀, so c = a exactly, whatever the step; undamped, n = z − y."""
    for args in ({"damping": 0.0}, {"form": "plain", "bias": 0.0}):
        layer, _, newton = one_layer(CURVATURES, step=step, **args)
        torch.testing.assert_close(steps_of(layer), as_gradient(newton), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(layer.bias.grad, newton.mean(0), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("damping", [0.1, 1.0, 7.0])
def test_damping_adds_to_the_curvature(damping: float) -> None:
    layer, g, _ = one_layer(CURVATURES, damping=damping)
    torch.testing.assert_close(
        steps_of(layer), as_gradient(g / (CURVATURES + damping)), rtol=1e-9, atol=1e-10
    )


def test_a_hidden_layers_step_is_the_formula() -> None:
    """Two tanh layers and a linear one, the gradients sent down by B, all layers moved at once: in tensor algebra."""
    net = convert(mlp(), guide="fa", step=0.05, damping=0.3)
    layers, feedback = [net[0], net[2], net[4]], [net[i].feedback for i in (0, 2, 4)]

    def forward(moves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        h, inputs, g = X, [], []
        zs = []
        for i, layer in enumerate(layers):
            inputs.append(h)
            z = h @ layer.weight.T + layer.bias - moves[i]
            zs.append(z)
            h = z.tanh() if i < 2 else z
        g = [2 * (h - Y) / 2]
        for i in (2, 1):
            g.insert(0, (g[0] @ feedback[i]) * (1 - zs[i - 1].tanh() ** 2))
        return [x.detach() for x in g], [x.detach() for x in inputs]

    before, inputs = forward([torch.zeros(())] * 3)
    after, _ = forward([0.05 * g for g in before])
    rules.backward(net, lambda: (net(X) - Y).square().mean(1))
    fell_back = 0
    for layer, g_0, g_1, h in zip(layers, before, after, inputs, strict=True):
        c = (g_0 - g_1) / (0.05 * g_0)
        n = torch.where(c > 16 * 2.2e-16 / 0.05, g_0 / (c + 0.3), g_0)
        fell_back += int((n == g_0).sum())
        torch.testing.assert_close(layer.weight.grad, n.T @ h / 6, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(layer.bias.grad, n.mean(0), rtol=1e-8, atol=1e-10)
    assert 0 < fell_back < 6 * 9


def test_the_rescaled_control_has_the_guides_direction_and_soaps_size() -> None:
    """g₀ = (4, 3), g₁ = (4 − 0.1·1·4, 3 + 1): c = (1, negative), so n' = (4 / (1 + 1), 3) = (2, 3), and ‖g₀‖ = 5."""
    g_0, g_1 = torch.tensor([[4.0], [3.0]]).double(), torch.tensor([[3.6], [4.0]]).double()
    made = rules.make_rule("soap", form="rescaled", step=0.1)
    torch.testing.assert_close(made.newton(g_0, g_1), g_0 * 13**0.5 / 5)
    assert not made.newton(torch.zeros(2, 2), torch.ones(2, 2)).any()
    layer, g, newton = one_layer(CURVATURES, form="rescaled", damping=0.0, step=0.01)
    torch.testing.assert_close(
        steps_of(layer), as_gradient(g * newton.norm() / g.norm()), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision_are_divided_in_a_wider_one(dtype: torch.dtype) -> None:
    """In float16 their squares and their moves vanish."""
    g_0 = torch.tensor([[3e-6, 2e-5, -0.5]]).to(dtype)
    g_1 = (g_0 / 2).to(dtype)
    step, bias, (a, b) = 0.01, 1e-8, (g_0.double(), g_1.double())
    safeguarded = a / ((a - b) / (step * a) + 1)
    expected = {
        "plain": step * a**2 / (a - b + bias),
        "safeguarded": safeguarded,
        "rescaled": a * safeguarded.norm() / a.norm(),
    }
    for form, n in expected.items():
        found = rules.make_rule("soap", form=form, step=step, bias=bias).newton(g_0, g_1)
        torch.testing.assert_close(found.double(), n, rtol=1e-3, atol=0)


# --- what the plain form gets wrong -----------------------------------------------------------------------------------


def test_under_negative_curvature_the_plain_form_climbs_and_the_safeguarded_one_does_not() -> None:
    plain, g, _ = one_layer(-CURVATURES, form="plain", bias=0.0)
    torch.testing.assert_close(steps_of(plain), as_gradient(-g / CURVATURES), rtol=1e-9, atol=1e-10)
    safe, g, _ = one_layer(-CURVATURES)
    close(steps_of(safe), as_gradient(g))


def test_without_curvature_the_plain_form_explodes_and_forgets_the_sign() -> None:
    rule = rules.make_rule("soap", form="plain", step=0.01, bias=1e-8)
    g = torch.tensor([-2.0, 0.5, 2.0], dtype=torch.float64)
    close(rule.newton(g, g), torch.tensor([4e6, 2.5e5, 4e6]).double())  # step g² / bias
    assert torch.equal(rules.make_rule("soap").newton(g, g), g)


def test_dead_units_are_not_a_number_without_a_bias_and_zero_with_safeguards() -> None:
    dead = torch.zeros(3)
    assert rules.make_rule("soap", form="plain", bias=0.0).newton(dead, dead).isnan().all()
    assert torch.equal(rules.make_rule("soap", form="plain").newton(dead, dead), dead)
    for g_1 in (dead, torch.tensor([1e-3, -1.0, 0.0])):  # woken by their neighbours' moves
        assert torch.equal(rules.make_rule("soap", damping=0.0).newton(dead, g_1), dead)


def test_the_plain_form_is_infinite_where_the_difference_meets_the_bias() -> None:
    rule = rules.make_rule("soap", form="plain", bias=0.5)
    assert rule.newton(torch.tensor([-1.0]), torch.tensor([-0.5])).isinf().all()


@pytest.mark.parametrize("step", [1e-3, 1e-5])
def test_a_small_step_makes_rounding_large_in_the_plain_form(step: float) -> None:
    """The relative error is of the order eps / (step c); the safeguarded form takes no such curvature for real."""
    g = torch.linspace(0.5, 1, 1000)
    g_1 = (g.double() * (1 - step * 0.01)).float()  # curvature 0.01
    plain = rules.make_rule("soap", form="plain", step=step, bias=0.0).newton(g, g_1) * 0.01 / g
    expected = torch.finfo(torch.float32).eps / (step * 0.01)
    error = (1 / plain - 1).abs().mean()
    assert expected / 30 < error < expected
    assert torch.equal(rules.make_rule("soap", step=1e-5).newton(g, g_1), g) or step > 1e-5


def test_the_safeguarded_step_keeps_the_sign_and_its_bound() -> None:
    g_0, g_1 = normal(4000), normal(4000, seed=2)
    for damping in (0.0, 0.1, 1.0, 3.0):
        rule = rules.make_rule("soap", damping=damping, step=0.01)
        ratio = rule.newton(g_0, g_1) / g_0
        assert ratio.isfinite().all()
        assert (ratio > 0).all()
        assert ratio.max() <= max(1.0, 1 / max(damping, 16 * torch.finfo(torch.float64).eps / 0.01))


# --- units ------------------------------------------------------------------------------------------------------------


def test_the_size_of_the_batch_changes_nothing_but_the_mean() -> None:
    once, twice = convert(mlp()), convert(mlp())
    rules.backward(once, lambda: (once(X) - Y).square().mean(1))
    doubled = torch.cat([X, X])
    rules.backward(twice, lambda: (twice(doubled) - torch.cat([Y, Y])).square().mean(1))
    for name, gradient in gradients(once).items():
        close(twice.get_parameter(name).grad, gradient)


def test_an_undamped_step_does_not_grow_with_the_loss() -> None:
    found = []
    for factor in (1.0, 8.0):
        net = convert(mlp(), guide="bp", damping=0.0, form="plain", bias=0.0, step=0.01 / factor)
        rules.backward(net, lambda net=net, factor=factor: factor * (net(X) - Y).square().mean(1))  # type: ignore[misc]
        found.append(gradients(net))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-6, atol=1e-10)


def test_one_number_for_the_batch_is_refused() -> None:
    net = convert(mlp())
    with pytest.raises(
        ValueError, match=r"soap: the closure returned one number; return the loss of each sample"
    ):
        rules.backward(net, lambda: (net(X) - Y).square().mean())


@pytest.mark.parametrize("guide", ["bp", "fa", "usf", "brsf", "frsf", "sign_sync"])
def test_where_nothing_bends_it_is_its_guide(guide: str) -> None:
    """A ReLU network under a linear loss: normalisations, biases and all."""

    def net() -> nn.Sequential:
        torch.manual_seed(4)
        relu = nn.Sequential(
            nn.Linear(5, 8), nn.ReLU(inplace=True), nn.PReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
        )
        return relu.double()

    made = net()
    soap = convert(made, guide=guide, step=1e-6)
    plain = rules.convert(net(), guide, generator=torch.Generator().manual_seed(1))
    for model in (soap, plain):
        rules.backward(model, lambda model=model: (model(X) * Y).sum(1))  # type: ignore[misc]
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(soap.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-12)


def test_observers_are_told_which_backward_pass_is_the_runs_own() -> None:
    net, heard = convert(mlp()), []

    def closure() -> Tensor:
        output = net(X)
        output.register_hook(lambda error: heard.append(net[0].credit.true is False))
        return (output - Y).square().mean(1)

    rules.backward(net, closure)
    assert heard == [False, False, True]  # g₀, g₁, and what lands


def test_the_guides_feedback_is_kept_up_to_date_and_saved() -> None:
    net = convert(mlp(), guide="usf")
    with torch.no_grad():
        net[2].weight.neg_()
    rules.backward(net, lambda: (net(X) - Y).square().mean(1))
    assert torch.equal(net[2].feedback.sign(), net[2].weight.sign())
    assert "2.feedback" in net.state_dict()
    assert "2.feedback" not in convert(mlp(), guide="bp").state_dict()


@pytest.mark.parametrize("form", ["plain", "safeguarded", "rescaled"])
def test_a_normalisation_learns_from_what_is_handed_down_to_it(form: str) -> None:
    """Of one sample the biases' gradients are the signals: the normalisation's is that of the layer above, through its B."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    convert(net, form=form)
    rules.backward(net, lambda: (net(X[:1]) - Y[:1]).square().sum(1))
    norm, above = net[1], net[2]
    torch.testing.assert_close(norm.bias.grad, above.bias.grad @ above.feedback, rtol=1e-9, atol=1e-12)
