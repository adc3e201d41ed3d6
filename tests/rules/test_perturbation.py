"""Node and weight perturbation: the estimates by hand, and what is known of their mean and variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import mlp, normal
from torch import Tensor, nn

from alignlab import rules
from alignlab.rules.replay import Noise

X, Y = normal(6, 5), normal(6, 2, seed=2)
SIGMA = 1e-2


def convert(net: Any, name: str, **args: Any) -> Any:
    return rules.convert(net, name, generator=torch.Generator().manual_seed(1), **{"sigma": SIGMA, **args})


def first_noise(net: Any) -> Noise:
    """Before any step all clocks are 0."""
    return Noise(net[0].feedback_seed)


def normals(noise: Noise, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    return [SIGMA * noise.like(shape, torch.float64, torch.device("cpu")) for shape in shapes]


def errors(output: Tensor) -> Tensor:
    return (output - Y).square().mean(1)


# --- by hand ----------------------------------------------------------------------------------------------------------


def _run(net: Any, moves: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
    """The output of a three-layer tanh net with its layers' outputs moved, and the layers' inputs."""
    h, inputs = X, []
    for i, layer in enumerate((net[0], net[2], net[4])):
        inputs.append(h)
        z = h @ layer.weight.T + layer.bias
        z = z if moves is None else z + moves[i]
        h = z.tanh() if i < 2 else z
    return h.detach(), [x.detach() for x in inputs]


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("each", [False, True], ids=["mean", "each"])
def test_node_perturbation_is_the_formula(each: bool, antithetic: bool) -> None:
    net = convert(mlp(), "node_perturbation", samples=2, antithetic=antithetic)
    noise = first_noise(net)
    base, inputs = _run(net, None)
    expected = [torch.zeros_like(x) for x in net.parameters()]
    for _ in range(2):
        xi = normals(noise, [(6, 4), (6, 3), (6, 2)])
        plus, minus = errors(_run(net, xi)[0]), errors(_run(net, [-n for n in xi])[0])
        change = (plus - minus) / 2 if antithetic else plus - errors(base)
        weights = change[:, None] / 6 if each else change.mean()
        deltas = [weights * n / SIGMA**2 / 2 for n in xi]
        for i, (delta, h) in enumerate(zip(deltas, inputs, strict=True)):
            expected[2 * i] += delta.T @ h
            expected[2 * i + 1] += delta.sum(0)
    rules.backward(net, lambda: errors(net(X)) if each else errors(net(X)).mean())
    for p, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("antithetic", [False, True])
def test_weight_perturbation_is_the_formula(antithetic: bool) -> None:
    net = convert(
        nn.Sequential(*mlp(), nn.LayerNorm(2).double()),
        "weight_perturbation",
        samples=2,
        antithetic=antithetic,
    )
    noise, values = first_noise(net), [p.detach().clone() for p in net.parameters()]
    names = [n for n, _ in net.named_parameters()]

    def loss(xi: list[Tensor], sign: float) -> Tensor:
        moved = {n: p + sign * e for n, p, e in zip(names, values, xi, strict=True)}
        with torch.no_grad():
            return errors(torch.func.functional_call(net, moved, X)).mean()

    expected = [torch.zeros_like(p) for p in values]
    for _ in range(2):
        xi = normals(noise, [tuple(p.shape) for p in values])
        change = (loss(xi, 1) - loss(xi, -1)) / 2 if antithetic else loss(xi, 1) - loss(xi, 0)
        expected = [g + change * e / SIGMA**2 / 2 for g, e in zip(expected, xi, strict=True)]
    rules.backward(net, lambda: errors(net(X)).mean())
    for p, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-10)


# --- towards the true gradient ----------------------------------------------------------------------------------------


def convnet() -> nn.Sequential:
    """Convolution, normalisation, dropout, in-place ReLU: every kind of module between two estimates."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Flatten(), nn.Linear(8, 4),
        nn.LayerNorm(4), nn.PReLU(), nn.Linear(4, 2),
    ).double()  # fmt: skip


class Twice(nn.Module):
    """A layer that runs two times, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.again, self.leave = (nn.Linear(*s).double() for s in ((5, 4), (4, 4), (4, 2)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).tanh()
        h = h + self.again(h).relu()
        return self.leave(h + self.again(h).tanh())


def tied() -> nn.Sequential:
    net = mlp((5, 3, 5, 3, 2))
    net[4].weight = net[0].weight
    return net


class Cell(nn.Module):
    """Returns two tensors, as recurrent cells do, and is run twice; taught as a module with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gain = Doubled()
        self.enter, self.leave = nn.Linear(5, 4).double(), nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        a, state = self.gain(h)
        b, state = self.gain(state["c"])
        return self.leave(a * b + state["c"])


class Doubled(nn.PReLU):
    """A module whose output is a nesting."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), {"c": x * self.weight.square(), "steps": 1}


NETS: dict[str, tuple[Callable[[], Any], Tensor]] = {
    "convnet": (convnet, normal(6, 1, 4, 4)),
    "twice": (Twice, X),
    "tied": (tied, X),
    "cell": (lambda: Cell().double(), X),
}


@pytest.mark.parametrize("rule", ["node_perturbation", "weight_perturbation"])
@pytest.mark.parametrize("net", NETS)
def test_the_mean_of_many_estimates_is_the_gradient(net: str, rule: str) -> None:
    """Every parameter's, within five of its own standard errors, on all nets and under one dropout mask."""
    make, x = NETS[net]
    true = make()
    torch.manual_seed(7)
    errors(true(x)).mean().backward()
    model = convert(make(), rule, sigma=1e-4)
    found: dict[str, list[Tensor]] = {name: [] for name, _ in true.named_parameters()}
    for _ in range(144):
        model.zero_grad()
        torch.manual_seed(7)
        rules.backward(model, lambda: errors(model(x)))
        for name, p in model.named_parameters():
            found[name].append(p.grad)
    for name, p in true.named_parameters():
        estimates = torch.stack(found[name])
        error = estimates.std(0) / 12
        assert ((estimates.mean(0) - p.grad).abs() <= 5 * error + 1e-6).all(), name
        assert estimates.std() > 0


def test_each_samples_own_loss_has_far_less_variance() -> None:
    spread = []
    for each in (False, True):
        net, found = convert(mlp(), "node_perturbation", sigma=1e-4), []
        for _ in range(60):
            net.zero_grad()
            rules.backward(net, lambda each=each, net=net: errors(net(X)) if each else errors(net(X)).mean())  # type: ignore[misc]
            found.append(net[0].weight.grad)
        spread.append(float(torch.stack(found).var(0).sum()))
    assert spread[0] > 3 * spread[1]  # about N = 6 times


def test_tied_layers_have_noise_of_their_own() -> None:
    """Were it the same in both, each one's estimate would carry the other's error."""
    net = convert(tied(), "node_perturbation")
    seen: list[Tensor] = []
    handles = [net[i].register_forward_hook(lambda m, a, z: seen.append(z.detach().clone())) for i in (0, 4)]
    h = X
    rules.backward(net, lambda: errors(net(h)).mean())
    for handle in handles:
        handle.remove()
    first, second = seen[2] - seen[0], seen[3] - seen[1]
    assert not torch.allclose(first, second, rtol=0.1)


# --- where it cannot be right -----------------------------------------------------------------------------------------


def test_a_loss_for_each_sample_is_refused_where_samples_see_one_another() -> None:
    net = convert(
        nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double(), "node_perturbation"
    )
    with pytest.raises(ValueError, match=r"in '1', a BatchNorm1d, .*return the mean from the closure"):
        rules.backward(net, lambda: errors(net(X)))
    rules.backward(net, lambda: errors(net(X)).mean())
    net.eval()
    rules.backward(net, lambda: errors(net(X)))
    net[1].running_mean = net[1].running_var = None  # it then takes the batch's own in evaluation too
    with pytest.raises(ValueError, match=r"in '1', a BatchNorm1d, "):
        rules.backward(net, lambda: errors(net(X)))


def test_units_whose_output_is_not_used_learn_nothing_from_their_noise() -> None:
    """Of attention's one weight for queries, keys and values each input uses a third; zeros as input teach nothing."""
    attention = convert(nn.MultiheadAttention(4, 2, bias=False).double(), "node_perturbation")
    query = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(5, 2, 4, dtype=torch.float64), torch.zeros(5, 2, 4, dtype=torch.float64)
    rules.backward(attention, lambda: (attention(query, *nothing)[0] - 1).square().mean())
    assert not attention.in_proj_weight.grad[4:].any()
    assert attention.in_proj_weight.grad[:4].any()


def test_a_loss_for_each_sample_needs_the_batch_first() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(6, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.T)

    net = convert(Turned(), "node_perturbation")
    with pytest.raises(ValueError, match=r"6 losses, but the output of layer 'net' is \(5, 2\)"):
        rules.backward(net, lambda: net(X).mean() * torch.ones(6).double())


def test_a_parameter_that_no_noise_reaches_is_named() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 4).double(), nn.Linear(4, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.first(x), self.second.weight)

    net = convert(Functional(), "node_perturbation")
    with pytest.raises(RuntimeError, match=r"no noise reaches second\.weight, .*weight_perturbation"):
        rules.backward(net, lambda: errors(net(X)).mean())
    assert net.first.weight.grad is None
    rules.backward(convert(rules.revert(net), "weight_perturbation"), lambda: errors(net(X)).mean())
    assert net.second.weight.grad is not None


def test_weight_perturbation_learns_a_penalty_once_and_from_losses_alone() -> None:
    """Autograd would add the penalty's true gradient to the estimate of it."""
    found = []
    for scale in (0.0, 1.0):
        net = convert(mlp(), "weight_perturbation", sigma=1e-5)
        rules.backward(
            net,
            lambda net=net, scale=scale: net(X).square().mean() * scale + 1e3 * net[0].weight.square().sum(),
        )  # type: ignore[misc]
        found.append(net[2].weight.grad.clone())
        if not scale:
            true = 2e3 * net[0].weight
            xi = normals(first_noise(net), [(4, 5)])[0] / SIGMA
            torch.testing.assert_close(net[0].weight.grad, (true * xi).sum() * xi, rtol=1e-2, atol=1e-2)
    assert found[1].norm() > 0
