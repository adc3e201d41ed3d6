"""The measured bias and variance of perturbation estimates, against what algebra says of quadratic and cubic losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from alignlab.training import estimator_statistics
from alignlab.training.estimators import _moments

EYE = torch.eye(4, dtype=torch.float64)
LINEAR = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
HESSIAN = torch.tensor([[3.0, 1, 0, 0], [1, 2, 0, 0], [0, 0, -1, 0.5], [0, 0, 0.5, 4]], dtype=torch.float64)
CUBIC = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)
SIGMA = 0.3
over_rules = pytest.mark.parametrize("rule", ["node_perturbation", "weight_perturbation"])


def one_layer() -> nn.Linear:
    """Its output on EYE is its weight w: units' outputs and weights are the same four numbers."""
    layer = nn.Linear(4, 1, bias=False).double()
    nn.init.zeros_(layer.weight)
    return layer


def quadratic(model: nn.Module) -> Tensor:
    """aᵀw + ½ wᵀHw; at w = 0 the gradient is a."""
    w = model(EYE)[:, 0]
    return LINEAR @ w + 0.5 * w @ HESSIAN @ w


def cubic(model: nn.Module) -> Tensor:
    """Σ b w³; at w = 0 gradient and Hessian are 0."""
    return (CUBIC * model(EYE)[:, 0] ** 3).sum()


def statistics(losses: Callable[[nn.Module], Tensor], rule: str, **args: Any) -> Any:
    settings: dict[str, Any] = {"sigmas": [SIGMA], "samples": [1], "repeats": 150, **args}
    return estimator_statistics(one_layer(), losses, rule, **settings)


def near(found: Any, name: str, expected: float, layer: str = "root") -> None:
    """Within four of its standard errors, which are small enough to mean something."""
    row = found.sel(layer=layer).squeeze()
    value, error = float(row[name]), float(row[f"{name}_error"])
    assert abs(value - expected) < 4 * error, (name, value, error, expected)
    assert error > 0


@over_rules
def test_on_a_quadratic_both_forms_are_unbiased_and_their_variance_is_known(rule: str) -> None:
    n, g = 4, float(LINEAR @ LINEAR)
    curved = float(HESSIAN.trace() ** 2 + 2 * (HESSIAN @ HESSIAN).trace())
    antithetic = statistics(quadratic, rule, antithetic=True)
    near(antithetic, "squared_bias", 0)
    near(antithetic, "variance", (n + 1) * g)
    one_sided = statistics(quadratic, rule)
    near(one_sided, "squared_bias", 0)
    near(one_sided, "variance", (n + 1) * g + (n + 4) * curved * SIGMA**2 / 4)
    assert float(one_sided.squared_norm[0, 0, 0]) == pytest.approx(g)
    assert float(one_sided.variance[0, 0, 0]) > 1.5 * float(antithetic.variance[0, 0, 0])


def test_samples_divide_the_variance() -> None:
    found = statistics(quadratic, "node_perturbation", antithetic=True, samples=[1, 4], repeats=150)
    for count in (1, 4):
        near(found.sel(samples=count), "variance", 5 * float(LINEAR @ LINEAR) / count)


@pytest.mark.parametrize(
    ("rule", "antithetic"), [("node_perturbation", False), ("weight_perturbation", True)]
)
def test_third_derivatives_make_a_bias_of_order_sigma_squared_in_both_forms(
    rule: str, antithetic: bool
) -> None:
    """E[b ξ³ ξ]/σ² = 3 b σ², and there is no gradient at all."""
    found = statistics(cubic, rule, sigmas=[0.5, 1.0], antithetic=antithetic, repeats=300)
    for sigma in (0.5, 1.0):
        one = found.sel(sigma=sigma)
        near(one, "squared_bias", 9 * sigma**4 * float(CUBIC @ CUBIC))
        assert float(one.squared_bias[0, 0]) > 4 * float(one.squared_bias_error[0, 0])
    assert np.isclose(found.squared_norm, 0).all()


def test_the_split_into_bias_and_variance_is_that_of_plain_numpy() -> None:
    d = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    x = d.numpy()

    def split(x: Any) -> tuple[float, float]:
        spread = x.var(0, ddof=1).sum()
        return (x.mean(0) ** 2).sum() - spread / len(x), spread

    found = _moments(d @ d.T)
    without = np.array([split(np.delete(x, r, 0)) for r in range(7)])
    errors = np.sqrt(6 / 7 * ((without - without.mean(0)) ** 2).sum(0))
    assert [found["squared_bias"], found["variance"]] == pytest.approx(split(x))
    assert [found["squared_bias_error"], found["variance_error"]] == pytest.approx(errors)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.4), nn.Linear(4, 2)
    ).double()  # fmt: skip


def test_the_dataset_has_layers_and_the_whole_and_says_what_it_is() -> None:
    model = net()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    state = torch.get_rng_state()

    def losses(model: nn.Module) -> Tensor:
        return model(x).square().mean()

    found = estimator_statistics(
        model, losses, "node_perturbation", [1e-3, 1e-4], [1, 2, 3], repeats=8, seed=3
    )
    assert dict(found.sizes) == {"sigma": 2, "samples": 3, "layer": 3}
    assert found.layer.values.tolist() == ["0", "4", "all"]
    assert found.attrs["rule"] == "node_perturbation"
    assert all(v.attrs["symbol"] and v.attrs["note"] for v in found.data_vars.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    # the truth is of the same dropout mask and batch statistics: what is left of the error is noise
    losses(model).backward()
    np.testing.assert_allclose(found.squared_norm.sel(layer="0"), float(model[0].weight.grad.square().sum()))
    whole = sum(float(p.grad.square().sum()) for p in model.parameters())
    np.testing.assert_allclose(found.squared_norm.sel(layer="all"), whole)
    assert (found.variance.sel(layer="all") > found.variance.sel(layer="0")).all()
    torch.manual_seed(5)
    again = estimator_statistics(
        model, losses, "node_perturbation", [1e-3, 1e-4], [1, 2, 3], repeats=8, seed=3
    )
    assert again.identical(found)


class Counting(nn.Module):
    """Multiplies by how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x * self.passes.clone()


def test_every_estimate_begins_from_the_same_running_statistics() -> None:
    x, model = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), net()
    found, expected = (
        estimator_statistics(m, lambda m: m(x).square().mean(), "node_perturbation", [1e-3], [1], repeats=6)
        for m in (nn.Sequential(model, Counting()), nn.Sequential(model, nn.Identity()))
    )
    np.testing.assert_allclose(found.variance, expected.variance)


def test_under_one_mask_the_estimate_is_unbiased() -> None:
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = estimator_statistics(
        net(), lambda model: model(x).square().mean(), "weight_perturbation", [1e-4], [4], repeats=60
    )
    row = found.squeeze()
    assert (abs(row.squared_bias) < 4 * row.squared_bias_error).all()
    assert (row.cosine > 0).all()


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({"repeats": 2}, "repeats is 2"),
        ({"sigmas": []}, "at least one"),
        ({"samples": [0]}, "samples is 0"),
        ({"sigmas": [1e-3, -1]}, "sigma is -1"),
        ({"rule": "fa"}, "'fa' does not take"),
    ],
)
def test_bad_arguments_are_one_clear_error(args: dict[str, Any], complaint: str) -> None:
    given = {"rule": "node_perturbation", "sigmas": [1e-3], "samples": [1], **args}
    with pytest.raises(ValueError, match=complaint):
        estimator_statistics(one_layer(), quadratic, **given)


@over_rules
def test_each_scale_and_number_of_samples_has_its_own_row(rule: str) -> None:
    names = ["squared_bias", "variance", "cosine"]
    both = statistics(quadratic, rule, sigmas=[0.3, 0.6], samples=[1, 2, 4], repeats=5)
    for sigma in (0.3, 0.6):
        for samples in (1, 2, 4):
            alone = statistics(quadratic, rule, sigmas=[sigma], samples=[samples], repeats=5)
            row = both[names].sel(sigma=[sigma], samples=[samples])
            xr.testing.assert_identical(row.drop_attrs(), alone[names].drop_attrs())


def test_estimates_of_zero_are_left_out_of_the_cosine_and_layers_that_do_not_learn_out_of_the_table() -> None:
    """A loss in steps, whose gradient is 1: of w = 0 most noise changes nothing."""
    net = nn.Sequential(one_layer(), nn.Identity(), nn.Linear(1, 1, bias=False).double())
    nn.init.ones_(net[2].weight).requires_grad_(False)

    def in_steps(model: nn.Module) -> Tensor:
        w = model(EYE).sum()
        return w + (w.round() - w).detach()

    found = estimator_statistics(net, in_steps, "weight_perturbation", [0.3], [1], repeats=30)
    assert found["layer"].values.tolist() == ["0", "all"]
    cosine = found["cosine"].sel(layer="0").item()
    assert np.isfinite(cosine)
    assert cosine == found["cosine"].sel(layer="all").item()


@over_rules
def test_a_layer_without_a_gradient_has_no_cosine(rule: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    nn.init.constant_(net[0].bias, -100.0)  # every unit is dead
    x = torch.randn(4, 3)
    found = estimator_statistics(net, lambda model: model(x).square().mean(1), rule, [1e-3], [2], repeats=5)
    assert found["squared_norm"].sel(layer="0").item() == 0
    assert found["cosine"].isnull().values.ravel().tolist() == [True, True, False]
