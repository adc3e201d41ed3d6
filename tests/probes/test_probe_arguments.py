"""What a recorder and its probes take, and what they say to everything else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from probe_worlds import WORLDS, loss_of, sgd
from torch import Tensor, nn

from alignlab.probes import (
    EffectiveLR,
    FeedbackSpectrum,
    GradientAngle,
    LayerObservation,
    Loss,
    Probe,
    Recorder,
    WeightAngle,
    every,
    log_spaced,
)
from alignlab.probes.schedule import NEVER, Together, consult

WORLD = WORLDS["residual"]


def recorded(
    probes: Any = None, steps: int = 3, model: Any = None, criterion: Any = None, **kwargs: Any
) -> xr.Dataset:
    model = model or WORLD.model("fa")
    optimizer = sgd(model)
    with Recorder(model, optimizer, probes or [GradientAngle()], **kwargs) as recorder:
        for step in range(steps):
            optimizer.zero_grad()
            x, y = WORLD.batch(step)
            loss = loss_of(model, x, y) if criterion is None else criterion(model(x), y)
            loss.backward()
            optimizer.step()
    return recorder.to_dataset()


# layers


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (None, ["enter", "blocks.0", "blocks.1", "leave"]),
        (["leave", "enter"], ["enter", "leave"]),
        ("blocks.*", ["blocks.0", "blocks.1"]),
        (["blocks.1", "blocks.*"], ["blocks.0", "blocks.1"]),
        (lambda name, layer: layer.out_features == 4, ["leave"]),
    ],
)
def test_layers_are_chosen_by_name_pattern_or_function(layers: Any, chosen: list[str]) -> None:
    run, everything = recorded(layers=layers), recorded()
    assert run.layer.values.tolist() == chosen
    np.testing.assert_array_equal(run.gradient_angle, everything.gradient_angle.sel(layer=chosen))


def test_a_typo_in_a_layers_name_lists_the_layers() -> None:
    with pytest.raises(
        ValueError, match=r"'entre', 'conv\*' names no layer; there are enter, blocks\.0, blocks\.1, leave"
    ):
        recorded(layers=["entre", "conv*", "leave"])
    with pytest.raises(ValueError, match="the filter leaves none of enter, "):
        recorded(layers=lambda name, layer: False)


def test_a_model_without_layers_is_an_error() -> None:
    model = nn.Sequential(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="Sequential has no layer to observe"):
        Recorder(model, sgd(model), [GradientAngle()])


def test_a_layer_whose_weight_is_not_there_yet_is_told() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    with pytest.raises(
        ValueError, match=r"1: the weight gets its shape in the first call .* model\(x\) once before"
    ):
        Recorder(model, sgd(model), [GradientAngle()])
    model(torch.ones(1, 3))
    Recorder(model, sgd(model), [GradientAngle()])


# schedules


def asked(schedule: Any, steps: int) -> list[int]:
    """The scheduled steps as a recorder would find them, consulting as seldom as it may."""
    found, coming = [], 0
    for step in range(steps):
        if step >= coming:
            scheduled, coming = consult(schedule, step)
            found += [step] * scheduled
    return found


def test_schedules_name_their_steps() -> None:
    assert asked(every(3), 10) == [0, 3, 6, 9]
    assert asked(log_spaced(1000, 6), 2000) == [0, 3, 15, 62, 250, 999]
    assert asked(lambda step: step in (2, 3, 7), 10) == [2, 3, 7]
    assert consult(log_spaced(10, 3), 10) == (False, NEVER)
    both = Together((every(4), log_spaced(10, 3)))
    assert asked(both, 12) == [step for step in range(12) if both(step)] == [0, 2, 4, 8, 9]
    assert consult(Together(()), 0) == (False, NEVER)


def test_a_function_is_asked_once_at_every_step() -> None:
    calls: list[int] = []

    def schedule(step: int) -> bool:
        calls.append(step)
        return step % 2 == 0

    assert recorded(schedule=schedule, steps=5).step.values.tolist() == [0, 2, 4]
    assert calls == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("n", [0, -3, 2.0, True, "2"])
def test_every_takes_whole_numbers_from_one(n: Any) -> None:
    with pytest.raises(ValueError, match="expected a whole number of steps"):
        every(n)


@pytest.mark.parametrize(("total", "n"), [(0, 5), (10, 0), (-1, 1)])
def test_log_spaced_takes_at_least_one_step(total: int, n: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        log_spaced(total, n)


@pytest.mark.parametrize("schedule", [10, "every", every, log_spaced])
def test_what_is_no_schedule_is_told_what_one_is(schedule: Any) -> None:
    with pytest.raises(TypeError, match=r"schedule is .*every\(10\), log_spaced"):
        recorded(schedule=schedule)


# arguments


def test_a_probes_class_is_told_to_be_called() -> None:
    with pytest.raises(TypeError, match=r"is not a probe: write GradientAngle\(\)"):
        recorded([GradientAngle])
    with pytest.raises(TypeError, match="'angles' is not a probe"):
        recorded(["angles"])
    with pytest.raises(TypeError, match="probes is 'angles', expected a list of probes"):
        recorded("angles")


@pytest.mark.parametrize("name", ["attrs", "coords"])
@pytest.mark.parametrize("given", [["seed"], SimpleNamespace(seed=0)], ids=["names", "a namespace"])
def test_facts_of_a_run_come_by_name(name: str, given: Any) -> None:
    with pytest.raises(TypeError, match=rf"{name} is .*seed.*, expected values by name.*vars\(args\)"):
        recorded(**{name: given})


def test_one_probe_may_come_without_a_list() -> None:
    assert "gradient_angle" in recorded(GradientAngle())


def test_two_probes_of_one_quantity_are_an_error() -> None:
    with pytest.raises(ValueError, match="EffectiveLR and EffectiveLR both record 'feedback_gain'"):
        recorded([EffectiveLR(), GradientAngle(), EffectiveLR()])


def test_model_and_optimizer_must_be_those_of_torch_and_belong_together() -> None:
    model, other = WORLD.model("fa"), WORLD.model("fa")
    with pytest.raises(TypeError, match=r"model is function, expected an nn\.Module"):
        Recorder(lambda x: x, sgd(model), [GradientAngle()])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer is list"):
        Recorder(model, [], [GradientAngle()])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"trains none of the observed layers \(enter, .*is it the model's"):
        Recorder(model, sgd(other), [GradientAngle()])


def test_an_optimizer_around_another_is_told_apart() -> None:
    """As accelerate's: an Optimizer by its class, whose steps no hook hears of."""

    class Around(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    model = nn.Linear(3, 2)
    with pytest.raises(
        TypeError, match=r"Around calls no hooks at its steps: .* around \(optimizer\.optimizer\)"
    ):
        Recorder(model, Around(sgd(model)), [GradientAngle()])


@pytest.mark.parametrize("flush_every", [0, -1, 1.5, True])
def test_flush_every_is_a_whole_number_from_one(flush_every: Any) -> None:
    with pytest.raises(ValueError, match="flush_every is"):
        recorded(flush_every=flush_every)


@pytest.mark.parametrize("setting", ["every", "exact_limit", "largest"])
def test_the_spectrums_settings_are_whole_numbers_from_one(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is 0"):
        FeedbackSpectrum(**{setting: 0})


def test_the_spectrum_says_how_it_was_found() -> None:
    run = recorded([FeedbackSpectrum(exact_limit=4, largest=2)])
    assert "blocks.0: arnoldi+lanczos" in run.attrs["spectrum_method"]
    assert "2 largest" in run.attrs["spectrum_settings"]
    assert run.sizes["mode"] == 4  # the last layer is small enough to be exact


def test_a_run_with_spectra_can_be_written_by_xarray_itself(tmp_path: Path) -> None:
    run = recorded([FeedbackSpectrum()])
    run.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "run.nc", engine="h5netcdf"), run)


# losses


def test_the_loss_is_what_backward_is_called_on() -> None:
    model = WORLD.model("fa")
    expected = loss_of(model, *WORLD.batch(0)).item()
    run = recorded([Loss()], model=model)
    assert float(run.loss[0]) == pytest.approx(expected, rel=1e-6)
    assert run.samples_seen.values.tolist() == [9, 18, 27]


def test_a_criterion_gives_the_loss_where_backward_is_called_on_more() -> None:
    criterion = nn.CrossEntropyLoss()
    model = WORLD.model("fa")
    expected = loss_of(model, *WORLD.batch(0)).item()

    def regularised(output: Tensor, y: Tensor) -> Tensor:
        criterion(output.detach(), y)  # looked at, not learnt from
        return criterion(output, y) + 0.1 * output.square().mean()

    run = recorded([Loss(criterion)], model=model, criterion=regularised)
    assert float(run.loss[0]) == pytest.approx(expected, rel=1e-6)


def test_a_criterion_is_heard_once_at_each_step_and_left_as_it_was() -> None:
    criterion = nn.CrossEntropyLoss()
    run = recorded([Loss(criterion)], criterion=criterion)
    assert run.loss.values.tolist() == recorded([Loss()]).loss.values.tolist()
    assert not criterion._forward_hooks


def test_a_loss_that_was_not_heard_is_absent_rather_than_wrong() -> None:
    def by_function(output: Tensor, y: Tensor) -> Any:
        loss = nn.functional.cross_entropy(output, y)

        class Quiet:
            def backward(self) -> None:
                torch.autograd.backward(loss)

        return Quiet()

    assert "loss" not in recorded([Loss(), GradientAngle()], criterion=by_function)


def test_a_criterion_must_be_a_module() -> None:
    with pytest.raises(TypeError, match=r"criterion is <function cross_entropy.*expected an nn\.Module"):
        Loss(nn.functional.cross_entropy)  # type: ignore[arg-type]


def test_samples_are_counted_however_the_batch_is_handed_over() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = WORLD.model("fa")

        def forward(self, *, batch: dict[str, Tensor]) -> Tensor:
            return self.inner(batch["x"])

    model = ByKeyword()
    optimizer = sgd(model)
    with Recorder(model, optimizer, [Loss()]) as recorder:
        x, y = WORLD.batch(0)
        with torch.no_grad():
            model(batch={"x": x})  # evaluation
        nn.functional.cross_entropy(model(batch={"x": x}), y).backward()
        optimizer.step()
    assert recorder.to_dataset().samples_seen.values.tolist() == [9]


# probes of one's own


class InputNorm(Probe):
    """A user's probe."""

    quantities = ("input_norm",)

    def measure(self, layer: LayerObservation) -> dict[str, Tensor]:
        return {"input_norm": torch.linalg.vector_norm(layer.batch[0])}


def test_a_probe_of_ones_own_is_a_few_lines() -> None:
    run = recorded([InputNorm(), WeightAngle()])
    expected = [float(WORLD.batch(step)[0].norm()) for step in range(3)]
    np.testing.assert_allclose(run.input_norm.sel(layer="enter"), expected, rtol=1e-6)


def test_probes_may_serve_one_run_after_another() -> None:
    probes = [GradientAngle(), FeedbackSpectrum(), Loss()]
    first, second = (recorded(probes) for _ in range(2))
    for name in ("gradient_angle", "loss", "samples_seen", "spectrum_real"):
        np.testing.assert_array_equal(first[name], second[name])


def own(method: str, answer: Any, quantities: Any = ("mine",)) -> Probe:
    """A user's probe of one method, which answers so."""
    body: dict[str, Any] = {"quantities": quantities, method: lambda self, *_: answer}
    if method == "finish":
        body["keep"] = lambda self, layer: {"norm": layer.weight.norm()}
    made: Probe = type("Mine", (Probe,), body)()
    return made


@pytest.mark.parametrize("method", ["measure", "finish", "measure_step"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, "returned None, expected a dict of values by name"),
        ({"mine": torch.ones((), dtype=torch.complex64)}, "mine is complex, expected real numbers"),
        ({"mine": None}, "mine is None, expected a tensor or a number"),
        ({"mine": "3"}, "mine is '3', expected a tensor or a number"),
        (
            {"mine": torch.ones(3, 4, 5)},
            r"mine has shape \(3, 4, 5\), expected a number, or a vector along mode",
        ),
        ({"yours": torch.ones(3)}, r"returned 'yours', which its quantities \('mine',\) lack"),
    ],
)
def test_a_wrong_answer_of_a_probe_is_told_with_its_name(method: str, answer: Any, expected: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^Mine\.{method}.*{expected}"):
        recorded([own(method, answer)])


@pytest.mark.parametrize(("method", "answer"), [("keep", [1.0]), ("keep", {"x": None}), ("attrs", None)])
def test_a_wrong_answer_to_other_questions_is_told_too(method: str, answer: Any) -> None:
    with pytest.raises(TypeError, match=rf"^Mine\.{method}.*expected"):
        recorded([own(method, answer)])


def test_values_that_do_not_lead_with_the_steps_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"^Mine\.finish for layer 'enter': mine has shape \(\).*\(3,\) of the steps"
    ):
        recorded([own("finish", {"mine": torch.ones(())})])


def test_what_a_probe_raises_says_where() -> None:
    class Broken(Probe):
        def measure(self, layer: LayerObservation) -> dict[str, Tensor]:
            return {"x": layer.nothing}  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="nothing") as raised:
        recorded([Broken()])
    assert raised.value.__notes__ == ["raised by Broken.measure for layer 'enter'"]


@pytest.mark.parametrize("name", ["learning_rate", "step", "fan_in", "lr", "rule", "status"])
def test_a_probe_records_nothing_that_every_run_has(name: str) -> None:
    with pytest.raises(ValueError, match=f"Mine records '{name}', a name that every run has already"):
        recorded([own("measure", {}, (name,))])


def test_a_probe_records_nothing_that_is_called_as_a_coordinate() -> None:
    """What it recorded was gone without a word: the coordinate took its place."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(
        ValueError, match="Mine records 'noise', a name that one of its coordinates has: choose another"
    ):
        Recorder(model, optimizer, [own("measure", {}, ("noise",))], coords={"noise": 0.1})


def test_quantities_are_a_tuple() -> None:
    with pytest.raises(TypeError, match=r"Mine.quantities is 'mine', expected a tuple: \('mine',\)"):
        recorded([own("measure", {}, "mine")])


def test_samples_are_wanted_or_not() -> None:
    with pytest.raises(TypeError, match="samples is 'no', expected True or False"):
        GradientAngle(samples="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [(0, 3), (10, 0), (10.5, 3), (10, "3"), (True, 1)])
def test_log_spaced_steps_are_counted_in_whole_numbers(given: Any) -> None:
    with pytest.raises(ValueError, match="expected at least one step and one look, in whole numbers"):
        log_spaced(*given)


@pytest.mark.parametrize("given", [torch.amp.GradScaler, 3, "cuda"])
def test_a_scaler_that_is_none_is_refused(given: Any) -> None:
    """Its class has no scale, and losses and norms would be recorded scaled."""
    with pytest.raises(
        TypeError, match=r"grad_scaler is .*, expected the torch\.amp\.GradScaler of the loop"
    ):
        recorded(grad_scaler=given)


def test_probes_and_layers_are_several() -> None:
    with pytest.raises(TypeError, match=r"probes is 3, expected a list of probes"):
        recorded(3)
    with pytest.raises(TypeError, match=r"layers is 3, expected names"):
        recorded(layers=3)
    model = nn.Sequential(nn.Linear(3, 4))
    for modules in (model[0], model, list(model)):
        with pytest.raises(TypeError, match=r"(?s)layers is .* expected names"):
            recorded(layers=modules)
