"""Noise at a given cosine: the angle and the length are what was asked for, and the rest is backprop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import close, gradients, mlp, normal
from torch import Tensor, nn

from alignlab import rules
from alignlab.rules.noisy_backprop import turn

X, Y = normal(6, 5), normal(6, 2, seed=2)


def convert(net: Any, seed: int = 1, **args: Any) -> Any:
    return rules.convert(net, "noisy_backprop", generator=torch.Generator().manual_seed(seed), **args)


def taught(net: Any, x: Tensor = X, y: Tensor = Y) -> dict[str, Any]:
    net.zero_grad()
    F.mse_loss(net(x), y).backward()
    return gradients(net)


def angle(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten() / a.norm(), b.flatten() / b.norm()
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))


def norms(net_seed: int = 0) -> nn.Sequential:
    torch.manual_seed(net_seed)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 4), nn.PReLU(),
        nn.Linear(4, 2),
    ).double()  # fmt: skip


@pytest.mark.parametrize("gain", [1.0, 0.3, 20.0])
@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.1, 0.7, 0.999])
def test_each_weight_has_the_angle_and_the_length(cosine: float, gain: float) -> None:
    images = normal(6, 1, 4, 4)
    plain, found = taught(norms(), images), taught(convert(norms(), cosine=cosine, gain=gain), images)
    for name in plain:
        if name in ("0.weight", "4.weight", "6.weight"):
            assert angle(found[name], plain[name]) == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-9)
            close(found[name].norm(), gain * plain[name].norm())
        else:
            close(found[name], plain[name] * (gain if name in ("0.bias", "4.bias", "6.bias") else 1))


@pytest.mark.parametrize("cosine", [1, -1])
def test_at_the_ends_there_is_no_noise(cosine: int) -> None:
    plain, found = taught(mlp()), taught(convert(mlp(), cosine=cosine))
    for name in plain:
        close(found[name], plain[name] * (cosine if name.endswith("weight") else 1))


def test_noise_is_the_layers_own_and_the_seeds_own() -> None:
    net = mlp((5, 5, 5, 5))
    x, y = normal(6, 5), normal(6, 5, seed=2)
    plain, first, other = taught(net, x, y), taught(convert(mlp((5, 5, 5, 5)), cosine=0), x, y), None
    other = taught(convert(mlp((5, 5, 5, 5)), seed=2, cosine=0), x, y)
    assert abs(angle(first["0.weight"], first["2.weight"]) - 90) < 40
    assert abs(angle(first["0.weight"], other["0.weight"]) - 90) < 40
    assert angle(first["0.weight"], plain["0.weight"]) == pytest.approx(90)


def test_a_weight_used_twice_or_tied_is_turned_as_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.enter, self.again, self.other = (nn.Linear(5, 5).double() for _ in range(3))
            self.other.weight = self.again.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.again(self.again(self.enter(x)).tanh()).relu())

    x, y = normal(6, 5), normal(6, 5, seed=2)
    plain, found = taught(Twice(), x, y), taught(convert(Twice(), cosine=0.6), x, y)
    for name in ("enter.weight", "again.weight"):
        assert angle(found[name], plain[name]) == pytest.approx(math.degrees(math.acos(0.6)), abs=1e-9)


def test_a_zero_gradient_stays_zero() -> None:
    net = convert(mlp(), cosine=0.5)
    net(X).mul(0).sum().backward()
    assert all(not p.grad.any() for p in net.parameters())


def test_two_backward_passes_through_one_graph_add_up() -> None:
    net = convert(mlp())
    loss = F.mse_loss(net(X), Y)
    loss.backward(retain_graph=True)
    once = gradients(net)
    loss.backward()
    for name, gradient in gradients(net).items():
        assert once[name] is not None
        assert torch.equal(gradient, 2 * once[name])  # type: ignore[arg-type, operator]


def test_the_random_state_is_left_alone() -> None:
    net = convert(mlp())
    before = torch.get_rng_state()
    taught(net)
    assert torch.equal(torch.get_rng_state(), before)


def _cosines(net: Any, plain: Any, steps: int) -> list[list[float]]:
    """The cosine of each layer in each of some steps that both nets take on the turned gradient."""
    found = []
    for _ in range(steps):
        turned, true = taught(net), taught(plain)
        found.append(
            [math.cos(math.radians(angle(turned[n], true[n]))) for n in ("0.weight", "2.weight", "4.weight")]
        )
        with torch.no_grad():
            for p, q in zip(net.parameters(), plain.parameters(), strict=True):
                p.sub_(0.1 * p.grad)
                q.copy_(p)
    return found


def test_a_table_is_replayed_step_by_step_and_held_between() -> None:
    table = {"0": [0.9, 0.1, -0.4], "4": [0.2, 0.3, 0.5]}
    found = _cosines(convert(mlp(), cosine=table, steps=[0, 2, 3]), mlp(), 5)
    expected = [[0.9, 1, 0.2], [0.9, 1, 0.2], [0.1, 1, 0.3], [-0.4, 1, 0.5], [-0.4, 1, 0.5]]
    assert found == [pytest.approx(row, abs=1e-9) for row in expected]
    every = _cosines(convert(mlp(), cosine=table), mlp(), 4)
    assert [row[0] for row in every] == pytest.approx([0.9, 0.1, -0.4, -0.4], abs=1e-9)


def test_a_table_of_gains_scales_each_layer() -> None:
    plain, found = taught(mlp()), taught(convert(mlp(), cosine=0.5, gain={"2": [3.0]}))
    ratio = {n: float(found[n].norm() / plain[n].norm()) for n in plain}
    assert ratio["2.weight"] == pytest.approx(3)
    assert [ratio["0.weight"], ratio["4.weight"]] == pytest.approx([1, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near_the_angle(dtype: torch.dtype) -> None:
    g = normal(40, 50).to(dtype)
    turned = turn(g, 0.5, 2.0, seed=3)
    assert turned.dtype == dtype
    assert angle(turned.double(), g.double()) == pytest.approx(
        60, abs=1e-3 if dtype == torch.float32 else 0.3
    )


def test_a_weight_of_one_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="one entry"):
        convert(nn.Sequential(nn.Linear(5, 1), nn.Linear(1, 1)))
