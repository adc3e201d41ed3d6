"""Weight mirrors: what a phase does, how near B comes to W, what growth control controls, and what cannot be asked for."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import ALL_LAYERS, LayerCase, close, mlp, normal, train
from torch import Tensor, nn

from alignlab import measures, rules

X, Y = normal(6, 5), normal(6, 2, seed=2)


def _layer(fan_in: int = 30, fan_out: int = 20, **arguments: Any) -> Any:
    torch.manual_seed(1)
    layer = nn.Linear(fan_in, fan_out).double()
    return rules.convert(layer, "weight_mirror", generator=torch.Generator().manual_seed(2), **arguments)


def _phase(layer: Any, count: int = 1) -> Any:
    """As if the weights had changed ``count`` times, to what they are."""
    for _ in range(count):
        layer.clock += 1
        layer.rule.refresh(layer)
    return layer


def _angle(layer: Any) -> float:
    return float(measures.weight_angle(layer.feedback, layer.weight.detach()))


def _seen(layer: Any, weight: Tensor) -> Tensor:
    """A weight as one matrix, in each row a neuron and what it sees of its input."""
    if isinstance(layer, rules.LocallyConnected2d):
        return weight.flatten(3).flatten(0, 2)
    if isinstance(layer, nn.ConvTranspose2d):
        return torch.cat([group.flatten(1).T for group in weight.chunk(layer.groups)])
    return weight.flatten(1)


# --- a phase ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ALL_LAYERS, ids=str)
def test_a_phase_adds_what_the_noise_found_in_every_kind_of_layer(case: LayerCase) -> None:
    """By hand, from the same noise: a neuron's kernel is a row, what it sees the input."""
    layer: Any = case.build()
    rules.convert(layer, "weight_mirror", samples=4, rate=0.25, decay=0.5)
    before, W = _seen(layer, layer.feedback).clone(), _seen(layer, layer.weight.detach())
    _phase(layer)
    generator = torch.Generator().manual_seed(layer.feedback_seed + 1)
    xi = torch.randn(4, W.shape[1], generator=generator, dtype=torch.float64)
    found = sum(torch.outer(W @ noise, noise) for noise in xi)
    assert isinstance(found, Tensor)
    close(_seen(layer, layer.feedback), 0.5 * before + 0.25 * found / 4)


def test_phases_come_every_period_of_weight_changes_and_none_before_the_first() -> None:
    net = rules.convert(mlp(), "weight_mirror", period=3)
    optimizer, changed = torch.optim.SGD(net.parameters(), lr=0.1), []
    for _ in range(8):
        before = net[2].feedback.clone()
        train(net, optimizer, [(X, Y)])
        net.eval()
        net(X).sum()  # no change of the weights, or the same as the next pass sees
        net.train()
        changed.append(not torch.equal(net[2].feedback, before))
    assert changed == [False, False, True, False, False, True, False, False]


def test_every_phase_has_noise_of_its_own_and_not_that_of_the_draw() -> None:
    layer = _layer(
        init=lambda like, generator: torch.randn(like.shape, generator=generator, dtype=like.dtype)
    )
    found = [layer.feedback.clone()]
    for _ in range(3):
        _phase(layer)
        found.append(layer.rule.mirrored(layer))
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])
    close(layer.rule.mirrored(layer), found[-1])
    alike = measures.weight_angle(layer.rule.mirrored(_phase(_layer())), found[0])
    assert abs(float(alike) - 90) < 10


def test_the_mean_of_many_phases_is_the_weight() -> None:
    layer = _layer(samples=1000)
    mean = sum(layer.rule.mirrored(_phase(layer)) for _ in range(50)) / 50
    assert isinstance(mean, Tensor)
    error = float((mean - layer.weight).detach().norm() / layer.weight.detach().norm())
    assert error < 1.3 * math.sqrt(31 / 50_000)  # E|w (S - 1)|^2 = |w|^2 (n + 1) / M


# --- how near B comes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fan_in", "samples", "rate"), [(30, 40, 0.1), (100, 40, 0.1), (30, 200, 0.1), (30, 40, 0.4)]
)
def test_the_angle_of_a_settled_feedback_is_the_documented_one(
    fan_in: int, samples: int, rate: float
) -> None:
    layer = _layer(fan_in, 60, samples=samples, rate=rate)
    _phase(layer, round(8 / rate))
    squares = []
    for _ in range(6):
        _phase(layer, round(2 / rate))
        squares.append(math.tan(math.radians(_angle(layer))) ** 2)
    effective = samples * (2 - rate) / rate
    assert sum(squares) / 6 == pytest.approx((fan_in - 1) / effective, rel=0.15)


@pytest.mark.parametrize(("rate", "decay"), [(0.1, 0.1), (0.1, 0.2), (0.05, 0.2)])
def test_feedback_settles_around_rate_over_decay_times_the_weight(rate: float, decay: float) -> None:
    layer = _phase(_layer(samples=500, rate=rate, decay=decay), round(8 / decay))
    W = layer.weight.detach()
    along = float((layer.feedback * W).sum() / W.square().sum())
    assert along == pytest.approx(rate / decay, rel=0.05)


def test_the_default_reaches_less_than_ten_degrees_at_500_inputs_within_a_few_hundred_phases() -> None:
    layer = _layer(500, 10)
    assert _angle(layer) > 80
    assert _angle(_phase(layer, 350)) < 10


def test_the_weight_angle_falls_under_ten_degrees_while_the_weights_learn() -> None:
    torch.manual_seed(0)
    centres, x = torch.randn(4, 64), torch.randn(256, 64)
    y = (x @ centres.T).argmax(-1)
    net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))
    rules.convert(net, "weight_mirror", rate=0.03, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    hidden: list[Any] = [net[2], net[4]]
    assert all(_angle(m) > 60 for m in hidden)
    for step in range(250):
        at = slice(64 * (step % 4), 64 * (step % 4) + 64)
        optimizer.zero_grad()
        F.cross_entropy(net(x[at]), y[at]).backward()
        optimizer.step()
    assert all(_angle(m) < 10 for m in hidden)
    assert (net(x).argmax(-1) == y).float().mean() > 0.9


@pytest.mark.parametrize(
    ("make", "fan_in"),
    [
        (lambda: nn.Conv2d(3, 12, 5), 75),
        (lambda: nn.Conv2d(16, 12, 3, groups=2), 72),
        (lambda: nn.ConvTranspose2d(24, 12, 3), 24),
        (lambda: nn.ConvTranspose2d(48, 24, 3, groups=2), 24),
        (lambda: rules.LocallyConnected2d(3, 4, (9, 9), 5), 75),
    ],
)
def test_every_kind_of_layer_comes_as_near_as_its_neurons_fan_in_allows(make: Any, fan_in: int) -> None:
    torch.manual_seed(1)
    layer = rules.convert(make().double(), "weight_mirror", samples=100, rate=0.1)
    _phase(layer, 80)
    angle = float(measures.angle(layer.feedback.flatten(), layer.weight.detach().flatten()))
    expected = math.degrees(math.atan(math.sqrt(fan_in * 0.1 / (100 * 1.9))))
    assert angle == pytest.approx(expected, rel=0.2)


# --- growth -----------------------------------------------------------------------------------------------------------


def test_without_decay_feedback_grows_and_growth_control_keeps_its_norm() -> None:
    free, controlled = (_layer(samples=50, rate=0.2, decay=0.0, growth_control=on) for on in (False, True))
    start = free.feedback.norm()
    assert torch.equal(controlled.feedback, free.feedback)
    for _ in range(100):
        _phase(free)
        _phase(controlled)
        torch.testing.assert_close(controlled.feedback.norm(), start, rtol=1e-12, atol=0)
    assert free.feedback.norm() > 10 * start
    assert _angle(controlled) < 25  # and it has learnt


def test_growth_control_keeps_a_small_norm_too() -> None:
    init = lambda like, generator: 1e-3 * torch.randn(like.shape, generator=generator)  # noqa: E731
    layer = _layer(samples=50, rate=0.2, growth_control=True, init=init)
    start = layer.feedback.norm()
    assert 0 < start < 0.1
    _phase(layer, 3)
    torch.testing.assert_close(layer.feedback.norm(), start, rtol=1e-12, atol=0)


def test_growth_control_changes_no_direction() -> None:
    layer = _layer(samples=50, rate=0.2, decay=0.1, growth_control=True)
    for _ in range(5):
        unscaled = copy.deepcopy(layer)
        unscaled.feedback_magnitude = None
        _phase(unscaled)
        _phase(layer)
        close(layer.feedback / layer.feedback.norm(), unscaled.feedback / unscaled.feedback.norm())
        assert not torch.allclose(layer.feedback.norm(), unscaled.feedback.norm(), rtol=1e-3)


def test_growth_control_keeps_what_is_handed_down_for_unit_noise() -> None:
    layer = _layer(samples=50, rate=0.2, decay=0.0, growth_control=True)
    noise = normal(20_000, 20)
    before = (noise @ layer.feedback).square().sum(1).mean()
    _phase(layer, 30)
    torch.testing.assert_close((noise @ layer.feedback).square().sum(1).mean(), before, rtol=0.03, atol=0)


def test_growth_control_leaves_a_feedback_of_zeros_until_the_weights_are_others() -> None:
    layer = _layer(rate=1.0, growth_control=True)  # of B a phase leaves nothing
    start = layer.feedback.norm()
    W = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(_phase(layer).feedback, torch.zeros_like(W))
    with torch.no_grad():
        layer.weight.copy_(W)
    torch.testing.assert_close(_phase(layer).feedback.norm(), start)


# --- formats and arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(dtype: torch.dtype) -> None:
    net = rules.convert(mlp().to(dtype), "weight_mirror", rate=0.5, growth_control=True)
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), [(X.to(dtype), Y.to(dtype))] * 3)
    assert net[2].feedback.dtype == dtype
    assert net[2].feedback.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"period": 0}, "period is 0, expected a whole number, at least 1"),
        ({"period": 2.0}, r"period is 2\.0"),
        ({"period": True}, "period is True"),
        ({"samples": 0}, "samples is 0, expected a whole number, at least 1"),
        ({"samples": "many"}, "samples is 'many'"),
        ({"rate": 0}, "rate is 0, expected a number, more than 0 and at most 1"),
        ({"rate": -0.1}, r"rate is -0\.1"),
        ({"rate": 1.5}, r"rate is 1\.5"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": "fast"}, "rate is 'fast'"),
        ({"decay": -0.1}, r"decay is -0\.1, expected a number, at least 0 and at most 1"),
        ({"decay": 2}, "decay is 2"),
        ({"decay": float("inf")}, "decay is inf"),
        ({"growth_control": "false"}, "growth_control is 'false', expected True or False"),
        ({"growth_control": 1}, "growth_control is 1"),
        ({"speed": 1}, "does not take"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: dict[str, Any], words: str) -> None:
    net = mlp()
    with pytest.raises(ValueError, match=f"weight_mirror.*{words}"):
        rules.convert(net, "weight_mirror", **arguments)
    assert type(net[0]) is nn.Linear
