"""Weights that others take the place of while a recorder is at work: measured, or an error, and never in the loop's way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from alignlab.probes import EffectiveLR, GradientAngle, ProbeError, Recorder, every
from alignlab.probes.schedule import Schedule
from alignlab.rules import backward, convert


def net(rule: str | None, tied: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    if tied:
        model[2].weight = model[0].weight
    if rule is not None:
        convert(model, rule, generator=torch.Generator().manual_seed(1))
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, loop: str = "plain") -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=loop == "penalty")
        y = torch.randint(3, (7,), generator=generator)
        optimizer.zero_grad()

        def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
            return F.cross_entropy(model(x), y)

        if loop == "closure":
            torch.manual_seed(step)
            backward(model, loss)
        elif loop == "penalty":
            out = model(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            (F.cross_entropy(out, y) + slope.square().sum()).backward()
        else:
            loss().backward()
        optimizer.step()


@pytest.fixture
def swapping() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("period", [1, 2])
def test_torch_may_swap_weights_while_a_recorder_is_at_work(period: int) -> None:
    model = net("fa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, [GradientAngle()], every(period)) as recorder:
        train(model, optimizer, range(1))
        model.float().double()  # torch refuses where anybody holds a weak reference to a weight
        train(model, optimizer, range(1, 3))
    assert bool(recorder.to_dataset().gradient_angle.notnull().all())


@pytest.mark.parametrize(
    ("rule", "loop"),
    [(None, "plain"), ("fa", "plain"), (None, "penalty"), ("weight_perturbation", "closure")],
)
def test_a_weight_that_goes_on_in_another_layer_teaches_that_one_alone(rule: str | None, loop: str) -> None:
    def untied(schedule: Schedule) -> xr.Dataset:
        model = net(rule, tied=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with (
            warnings.catch_warnings(),
            Recorder(model, optimizer, [GradientAngle(), EffectiveLR()], schedule, run_id="a") as recorder,
        ):
            warnings.simplefilter("error")
            train(model, optimizer, range(2), loop)
            model[2].weight = nn.Parameter(model[2].weight.detach().clone())
            optimizer.add_param_group({"params": [model[2].weight]})
            train(model, optimizer, range(2, 5), loop)
        return recorder.to_dataset().drop_vars("wall_time")

    beginning_anew = untied(lambda step: step != 2)
    xr.testing.assert_allclose(untied(every(1)).sel(step=beginning_anew.step), beginning_anew, atol=1e-4)


@pytest.mark.parametrize("period", [1, 2])
def test_a_weight_computed_from_others_that_the_optimizer_does_not_know_is_an_error(period: int) -> None:
    model = net("fa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, [GradientAngle()], every(period)):
        train(model, optimizer, range(2))
        weight_norm(model[2])
        with pytest.raises(ProbeError, match=r"layer '2' was replaced .* add it to the optimizer"):
            train(model, optimizer, range(2, 4))


def test_a_weight_computed_from_others_is_measured_where_the_optimizer_got_them() -> None:
    model, twin = net("fa"), net("fa")
    optimizer, plain = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
    with Recorder(model, optimizer, [GradientAngle()], run_id="a") as recorder:
        train(model, optimizer, range(2))
        optimizer.add_param_group({"params": list(weight_norm(model[2]).parametrizations.parameters())})
        train(model, optimizer, range(2, 3))
    with Recorder(twin, plain, [GradientAngle()], run_id="a") as expected:
        train(twin, plain, range(3))
    xr.testing.assert_allclose(
        recorder.to_dataset().gradient_angle, expected.to_dataset().gradient_angle, atol=1e-4
    )


def test_a_new_weight_that_the_optimizer_gets_after_the_backward_pass_is_an_error() -> None:
    model = net("fa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(
        lambda *_: (
            None if model[2].weight is first else optimizer.add_param_group({"params": [model[2].weight]})
        )
    )
    first = model[2].weight
    with Recorder(model, optimizer, [GradientAngle()]):
        train(model, optimizer, range(1))
        model[2].weight = nn.Parameter(first.detach().clone())
        with pytest.raises(ProbeError, match="did not have when the layer was called"):
            train(model, optimizer, range(1, 2))


@pytest.mark.parametrize("period", [1, 2])
def test_a_layer_in_the_place_of_another_is_an_error(period: int) -> None:
    model = net(None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, [GradientAngle()], every(period)):
        train(model, optimizer, range(2))
        model[2] = nn.Linear(4, 4).double()
        optimizer.add_param_group({"params": list(model[2].parameters())})
        with pytest.raises(
            ProbeError, match=r"layer '2' was replaced by another Linear .* start another after"
        ):
            train(model, optimizer, range(2, 4))


@pytest.mark.parametrize("instead", [nn.Identity(), nn.Sequential(nn.Identity())])
def test_a_layer_that_was_taken_out_is_not_defined_from_there_on(instead: nn.Module) -> None:
    model = net(None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, [GradientAngle()]) as recorder:
        train(model, optimizer, range(1))
        model[2] = instead
        train(model, optimizer, range(1, 3))
    angle = recorder.to_dataset().gradient_angle
    assert angle.sel(layer="2").notnull().values.tolist() == [True, False, False]
    assert bool(angle.sel(layer=["0", "4"]).notnull().all())


def test_a_layer_that_another_one_wraps_is_measured() -> None:
    class Scaled(nn.Linear):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__(1, 1)
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    model = net(None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, [GradientAngle()]) as recorder:
        train(model, optimizer, range(1))
        model[2] = Scaled(model[2])
        train(model, optimizer, range(1, 3))
    assert bool(recorder.to_dataset().gradient_angle.notnull().all())
