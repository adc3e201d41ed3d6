"""The distributions of B against their formulas, and the seeds behind them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignlab.rules import INITS, LocallyConnected2d, convert
from alignlab.rules.initialisation import draw, draw_magnitude, fans, resolve_init

SHAPES = [(200, 300), (30, 20, 5, 3), (10, 4000)]

# half-width of the uniform distribution, by (fan_in, fan_out)
BOUNDS = {
    "lillicrap": lambda fan_in, fan_out: 0.5,
    "nokland": lambda fan_in, fan_out: 1 / math.sqrt(fan_in),
    "xavier": lambda fan_in, fan_out: math.sqrt(6 / (fan_in + fan_out)),
    "like_forward": lambda fan_in, fan_out: 1 / math.sqrt(fan_in),
}


def _expected_fans(shape: tuple[int, ...]) -> tuple[int, int]:
    kernel = 15 if len(shape) == 4 else 1
    return shape[1] * kernel, shape[0] * kernel


def test_the_lists_leave_no_initialisation_out() -> None:
    assert set(INITS) == {*BOUNDS, "kaiming", "gaussian", "orthogonal"}


@pytest.mark.parametrize("shape", SHAPES)
def test_fans_count_the_kernel(shape: tuple[int, ...]) -> None:
    assert fans(torch.empty(shape)) == _expected_fans(shape)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_uniform_initialisations_fill_their_bounds(name: str, shape: tuple[int, ...]) -> None:
    bound = BOUNDS[name](*_expected_fans(shape))
    drawn = draw(name, torch.empty(shape), seed=0)
    assert drawn.abs().max() <= bound
    assert drawn.max() > 0.99 * bound
    assert drawn.min() < -0.99 * bound
    assert drawn.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert abs(drawn.mean().item()) < 0.05 * bound


def test_noklands_bound_goes_by_the_hidden_units_that_the_error_is_sent_to() -> None:
    net = nn.Sequential(nn.Linear(30, 800), nn.Tanh(), nn.Linear(800, 10))
    convert(net, "dfa", init="nokland", generator=torch.Generator().manual_seed(0))
    net(torch.ones(2, 30))
    assert net[0].feedback.shape == (10, 800)
    assert net[0].feedback.abs().max().item() == pytest.approx(1 / math.sqrt(800), rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_kaiming_is_normal_with_variance_two_over_fan_out(shape: tuple[int, ...]) -> None:
    std = math.sqrt(2 / _expected_fans(shape)[1])
    drawn = draw("kaiming", torch.empty(shape, dtype=torch.float64), seed=0)
    assert drawn.std().item() == pytest.approx(std, rel=0.05)
    assert abs(drawn.mean().item()) < 0.05 * std
    assert (drawn / std).pow(4).mean().item() == pytest.approx(
        3, rel=0.15
    )  # a normal's kurtosis; a uniform has 1.8


def test_gaussian_is_standard_normal_whatever_the_shape() -> None:
    drawn = draw("gaussian", torch.empty(400, 300), seed=0)
    assert drawn.mean().item() == pytest.approx(0, abs=0.02)
    assert drawn.std().item() == pytest.approx(1, rel=0.02)
    assert drawn.pow(4).mean().item() == pytest.approx(3, rel=0.1)


def test_kaiming_keeps_the_size_of_what_is_sent_down_through_relus() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(200, 300, generator=generator)
    on = torch.rand(200, 500, generator=generator) < 0.5
    below = delta @ draw("kaiming", torch.empty(300, 500), seed=1) * on
    assert (below.square().mean() / delta.square().mean()).item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_is_orthogonal(shape: tuple[int, ...]) -> None:
    drawn = draw("orthogonal", torch.empty(shape, dtype=torch.float64), seed=0).flatten(1)
    rows, columns = drawn.shape
    product = drawn @ drawn.T if rows <= columns else drawn.T @ drawn
    torch.testing.assert_close(
        product, torch.eye(min(rows, columns), dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", INITS)
def test_a_seed_is_a_draw(name: str) -> None:
    like = torch.empty(4, 5)
    torch.manual_seed(1)
    first = draw(name, like, seed=3)
    torch.manual_seed(2)
    assert torch.equal(draw(name, like, seed=3), first)
    assert not torch.equal(draw(name, like, seed=4), first)


@pytest.mark.parametrize("name", INITS)
@pytest.mark.parametrize(
    "lie", [lambda x: x.to(memory_format=torch.channels_last), lambda x: x.transpose(0, 1)]
)
def test_a_draw_does_not_depend_on_how_the_weight_lies_in_memory(name: str, lie: Any) -> None:
    like = lie(torch.empty(4, 4, 3, 3))
    drawn = draw(name, like, seed=3)
    assert torch.equal(drawn, draw(name, torch.empty(4, 4, 3, 3), seed=3))
    assert drawn.stride() == like.stride()


@pytest.mark.parametrize("name", INITS)
def test_a_draw_leaves_the_global_generator_and_the_weight_alone(name: str) -> None:
    like = torch.ones(4, 5, requires_grad=True)
    state = torch.get_rng_state()
    drawn = draw(name, like, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(like, torch.ones(4, 5))
    assert not drawn.requires_grad


@pytest.mark.parametrize("name", INITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_has_shape_and_dtype_of_the_weight(name: str, dtype: torch.dtype) -> None:
    drawn = draw(name, torch.empty(4, 3, 2, 2, dtype=dtype), seed=0)
    assert drawn.shape == (4, 3, 2, 2)
    assert drawn.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BOUNDS)
def test_magnitudes_are_the_absolute_values_of_a_uniform_draw(name: str, dtype: torch.dtype) -> None:
    like = torch.empty(201, 301, dtype=dtype)  # no multiple of the four that are drawn at once
    bound = BOUNDS[name](301, 201)
    M = draw_magnitude(name, like, seed=5)
    assert M.shape == like.shape
    assert M.dtype == dtype
    M = M.double().flatten() / bound
    step = max(2**-16, torch.finfo(dtype).eps)
    assert 0 < M.min() < 1e-3
    assert 1 - 1e-3 - step < M.max() <= 1 + step
    standard_error = 12**-0.5 / M.numel() ** 0.5
    assert M.mean().item() == pytest.approx(1 / 2, abs=4 * standard_error)
    assert M.square().mean().item() == pytest.approx(1 / 3, abs=4 * standard_error)
    shares = torch.histc(M.clamp(max=1), 20, 0, 1) / M.numel()
    assert (shares - 1 / 20).abs().max() < 0.005  # a half-precision step at a bin's edge included
    neighbours = torch.corrcoef(torch.stack([M[:-1], M[1:]]))[0, 1]
    assert abs(neighbours) < 4 / M.numel() ** 0.5


@pytest.mark.parametrize("name", INITS)
def test_magnitudes_belong_to_their_seed(name: str) -> None:
    like = torch.empty(6, 5)
    first = draw_magnitude(name, like, seed=1)
    assert (first > 0).all()
    assert torch.equal(first, draw_magnitude(name, like, seed=1))
    assert not torch.equal(first, draw_magnitude(name, like, seed=2))


@pytest.mark.parametrize("init", [*BOUNDS, "kaiming", "gaussian"])
def test_a_transposed_convolution_has_magnitudes_of_one_size_under_every_sign_rule(init: str) -> None:
    sizes = []
    for rule in ("frsf", "brsf"):
        net = nn.Sequential(nn.Conv2d(2, 64, 1), nn.ConvTranspose2d(64, 3, 5))
        convert(net, rule, init=init, generator=torch.Generator().manual_seed(0))
        sizes.append(net[1].feedback.square().mean().sqrt().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(300, 20),
        nn.Conv1d(64, 6, 5, groups=2),
        nn.Conv2d(64, 3, 5),
        nn.ConvTranspose2d(64, 6, 5, groups=2),
        LocallyConnected2d(32, 3, (6, 6), 3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_like_forward_has_the_bound_that_the_layer_draws_its_weight_with(layer: nn.Module) -> None:
    torch.manual_seed(0)
    layer.reset_parameters()
    bound = layer.weight.abs().max().item()
    convert(layer, "fa", init="like_forward", generator=torch.Generator().manual_seed(0))
    assert layer.feedback.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_layers_of_one_model_draw_different_feedback() -> None:
    net = convert(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)), "fa")
    assert not torch.equal(net[0].feedback, net[1].feedback)  # type: ignore[arg-type]


def test_a_callable_gets_the_weight_and_a_seeded_generator_and_its_result_is_copied() -> None:
    like = torch.nn.Parameter(torch.ones(2, 3))
    kept = torch.full((2, 3), 7.0, requires_grad=True)
    seen: list[Any] = []

    def init(weight: Tensor, generator: torch.Generator) -> Tensor:
        seen.append((weight.clone(), generator.initial_seed(), torch.is_grad_enabled()))
        return kept

    drawn = draw(init, like, seed=5)
    assert torch.equal(seen[0][0], like)
    assert seen[0][1:] == (5, False)
    assert drawn.data_ptr() != kept.data_ptr()
    assert not drawn.requires_grad
    assert torch.equal(drawn, torch.full((2, 3), 7.0))


def test_a_callable_may_answer_in_another_dtype() -> None:
    drawn = draw(lambda like, generator: torch.ones(2, 3, dtype=torch.float64), torch.empty(2, 3), seed=0)
    assert drawn.dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda like, g: like.T, r"returned \(3, 2\), expected a tensor of \(2, 3\)"),
        (lambda like, g: 1.0, r"returned float, expected a tensor of \(2, 3\)"),
    ],
)
def test_a_callable_that_answers_wrongly_is_an_error(wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw(wrong, torch.empty(2, 3), seed=0)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("xaver", "did you mean 'xavier'"), ("zzz", "known are lillicrap"), (5, "known are lillicrap")],
)
def test_an_unknown_name_is_an_error_with_the_names(name: Any, hint: str) -> None:
    with pytest.raises(ValueError, match=f"unknown feedback initialisation .*{hint}"):
        resolve_init(name)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_initialisation_serves_half_precision(init: str, dtype: torch.dtype) -> None:
    net = convert(
        torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).to(dtype), "fa", init=init
    )
    assert net[1].feedback.dtype == dtype
    assert net[1].feedback.isfinite().all()
