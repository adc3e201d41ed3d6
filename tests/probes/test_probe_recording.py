"""However a run ends, what was measured can be read, and says how it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from probe_worlds import ALL_RULES, WORLDS, loss_of, seeded, sgd
from torch import nn

from alignlab.probes import (
    EffectiveLR,
    FeedbackSpectrum,
    GradientAngle,
    Loss,
    Probe,
    ProbeError,
    Recorder,
    WeightAngle,
    every,
)
from alignlab.store import ContractError, StoreError, check, open_runs

WORLD = WORLDS["mlp"]
NOT_OF_THE_RUN = ["wall_time", "run_id", "status"]


def all_probes(spectra_every: int = 2) -> list[Probe]:
    return [GradientAngle(), WeightAngle(), EffectiveLR(), FeedbackSpectrum(every=spectra_every), Loss()]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int, world: Any = WORLD) -> None:
    for step in range(n):
        optimizer.zero_grad()
        loss_of(model, *world.batch(step)).backward()
        optimizer.step()


def recorded(n: int = 5, rule: str | None = "fa", world: Any = WORLD, **kwargs: Any) -> Recorder:
    model = world.model(rule)
    optimizer = sgd(model)
    with Recorder(model, optimizer, kwargs.pop("probes", None) or all_probes(), **kwargs) as recorder:
        steps(model, optimizer, n, world)
    return recorder


def assert_equal(stored: xr.Dataset, memory: xr.Dataset) -> None:
    xr.testing.assert_equal(stored, memory)
    assert stored.attrs == memory.attrs
    for name in memory.data_vars:
        assert stored[name].dtype == memory[name].dtype, name
        assert stored[name].attrs == memory[name].attrs, name


@pytest.mark.parametrize("flush_every", [1, 2, 100])
@pytest.mark.parametrize("rule", ["fa", "dfa", None])
def test_the_store_holds_what_the_recorder_returns(
    tmp_path: Path, flush_every: int, rule: str | None
) -> None:
    recorder = recorded(
        path=tmp_path / "run", flush_every=flush_every, rule=rule, attrs={"note": "mine"}, coords={"seed": 3}
    )
    memory = recorder.to_dataset()
    check(memory)
    assert_equal(open_runs(tmp_path / "run"), memory)
    assert (memory.status, memory.last_step, memory.seed, memory.attrs["note"]) == ("finished", 4, 3, "mine")


@pytest.mark.parametrize("rule", ALL_RULES)
def test_every_rule_keeps_the_data_contract(rule: str | None) -> None:
    run = recorded(2, rule).to_dataset()
    check(run)
    assert run.rule == (rule or "none")
    assert run.gradient_angle.attrs["units"] == "degree"
    assert run.kind.values.tolist() == ["linear"] * 3
    assert run.fan_in.values.tolist() == [6, 10, 8]


def test_the_dataset_may_be_asked_for_during_the_run(tmp_path: Path) -> None:
    model = WORLD.model("fa")
    optimizer = sgd(model)
    with Recorder(model, optimizer, all_probes(), path=tmp_path) as recorder:
        assert recorder.to_dataset().sizes["step"] == 0
        steps(model, optimizer, 3)
        middle = recorder.to_dataset()
        assert (middle.status, middle.last_step, middle.sizes["step"]) == ("running", 2, 3)
        assert_equal(open_runs(tmp_path), middle)
        steps(model, optimizer, 2)
    assert recorder.to_dataset().step.values.tolist() == [0, 1, 2, 3, 4]
    assert_equal(open_runs(tmp_path), recorder.to_dataset())


@pytest.mark.parametrize("flush_every", [1, 3])
def test_sparse_spectra_leave_gaps_and_layers_of_all_sizes_fit(flush_every: int) -> None:
    run = recorded(6, probes=all_probes(spectra_every=4), flush_every=flush_every).to_dataset()
    there = run.spectrum_real.notnull()
    assert run.sizes["mode"] == 8
    assert there.any(["layer", "mode"]).values.tolist() == [True, False, False, False, True, False]
    assert there.isel(step=0).sum("mode").values.tolist() == [
        0,
        8,
        4,
    ]  # one number a unit; nothing below the first
    assert run.gradient_angle.notnull().all()
    assert run.descent_fraction.sel(layer=["4", "6"]).notnull().all()


def test_what_is_not_defined_is_absent_or_not_a_number() -> None:
    run = recorded(2).to_dataset()
    assert np.isnan(run.weight_angle.sel(layer="0")).all()  # its feedback is never used
    assert run.weight_angle.sel(layer=["4", "6"]).notnull().all()
    single = recorded(2, world=WORLDS["root"]).to_dataset()
    assert "weight_angle" not in single
    assert single.layer.values.tolist() == ["root"]


def test_detaching_twice_is_harmless(tmp_path: Path) -> None:
    recorder = recorded(path=tmp_path)
    before = open_runs(tmp_path)
    recorder.detach("crashed")
    recorder.detach()
    assert recorder.status == "finished"
    assert_equal(open_runs(tmp_path), before)


def test_a_status_that_is_none_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    recorder = Recorder(model, sgd(model), [Loss()], path=tmp_path).attach()
    with pytest.raises(ValueError, match="status is 'done', expected one of running, finished, diverged"):
        recorder.detach("done")
    recorder.detach()
    assert open_runs(tmp_path)["status"].item() == "finished"


def test_a_recorder_serves_one_run() -> None:
    with pytest.raises(RuntimeError, match="has been used"):
        recorded().attach()


def test_an_exception_in_the_loop_is_raised_again_and_the_store_says_crashed(tmp_path: Path) -> None:
    model = WORLD.model("fa")
    optimizer = sgd(model)
    with pytest.raises(ZeroDivisionError), Recorder(model, optimizer, all_probes(), path=tmp_path):  # noqa: PT012
        steps(model, optimizer, 3)
        raise ZeroDivisionError
    run = open_runs(tmp_path)
    assert (run.status, run.last_step) == ("crashed", 2)
    assert run.gradient_angle.notnull().all()


def test_the_loops_own_exception_wins_over_the_recorders() -> None:
    def disk_full(status: str) -> None:
        raise StoreError("disk full")

    recorder = Recorder(model := WORLD.model("fa"), sgd(model), [GradientAngle()])
    recorder._recording.end = disk_full  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError) as caught, recorder:
        raise ZeroDivisionError
    assert caught.value.__notes__ == ["and the recorder could not write what was left: disk full"]


@pytest.mark.parametrize("rule", ["fa", "dfa", None])
def test_a_run_that_diverges_is_kept_as_diverged(tmp_path: Path, rule: str | None) -> None:
    model = WORLD.model(rule, dtype=torch.float32)
    optimizer = sgd(model, 1e20)
    with Recorder(model, optimizer, all_probes(), path=tmp_path) as recorder:
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, *WORLD.batch(step, dtype=torch.float32)).backward()
            optimizer.step()
    run = open_runs(tmp_path)
    assert recorder.status == run.status == "diverged"
    assert run.last_step == 5
    assert np.isfinite(run.gradient_angle.isel(step=0)).all()
    assert np.isnan(run.gradient_angle.isel(step=5)).all()


@pytest.mark.parametrize(("probes", "status"), [([Loss()], "diverged"), ([WeightAngle()], "finished")])
def test_a_run_whose_last_loss_is_not_finite_has_diverged(probes: list[Probe], status: str) -> None:
    """It was finished where its weights were finite yet: a saturated net at a rate of 50 ended at losses of 1e36, and inf."""
    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, 1e25)
    optimizer = sgd(model, 0.0)
    with Recorder(model, optimizer, probes) as recorder:
        model(torch.ones(4, 2)).square().mean().backward()
        optimizer.step()
    assert recorder.status == recorder.to_dataset().status == status


def test_a_folder_that_cannot_be_written_fails_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    model = WORLD.model("fa")
    with pytest.raises(StoreError, match="file"):
        Recorder(model, sgd(model), [GradientAngle()], path=tmp_path / "file" / "run")


def test_what_cannot_be_stored_fails_before_training() -> None:
    model = WORLD.model("fa")
    for bad in ({"attrs": {"model": model}}, {"coords": {"seed": "three"}}):
        with pytest.raises(ContractError, match=r"model|seed"):
            Recorder(model, sgd(model), [GradientAngle()], **bad).attach()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["step", "layer", "mode", "run_id", "status", "last_step"])
def test_a_coordinate_called_as_a_dim_or_as_the_recorders_own_fails_before_training(
    name: str, tmp_path: Path
) -> None:
    """With mode="eager" all that was recorded was lost at the end, or the store opened no more, or "eager" was."""
    model = WORLD.model("fa")
    for path in (None, tmp_path):
        with pytest.raises(ContractError, match=rf"^{name}: .* expected another name"):
            Recorder(model, sgd(model), [GradientAngle()], path=path, coords={name: "eager"}).attach()


def test_a_killed_run_loses_its_unflushed_tail_alone(tmp_path: Path) -> None:
    script = f"""
        import os, signal, sys, torch
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from probe_worlds import WORLDS, sgd
        from test_probe_recording import all_probes, steps
        torch.set_num_threads(1)
        from alignlab.probes import Recorder
        model = WORLDS["mlp"].model("fa")
        optimizer = sgd(model)
        Recorder(model, optimizer, all_probes(), path={str(tmp_path)!r}, flush_every=4).attach()
        torch.manual_seed(0)
        steps(model, optimizer, 10)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert ended.returncode == -signal.SIGKILL
    run = open_runs(tmp_path)
    assert run.step.values.tolist() == list(range(8))
    assert (run.status, run.last_step) == ("running", 7)
    with seeded(0):
        xr.testing.assert_equal(
            run.drop_vars(NOT_OF_THE_RUN), recorded(8).to_dataset().drop_vars(NOT_OF_THE_RUN)
        )


def test_two_runs_share_a_folder(tmp_path: Path) -> None:
    for rule in ("fa", "bp"):
        recorded(2, rule, path=tmp_path, run_id=rule)
    runs = open_runs(tmp_path)
    assert runs.run_id.values.tolist() == ["bp", "fa"]
    assert (runs.gradient_angle.sel(run=0) < 1e-5).all()


@pytest.mark.parametrize("run_id", ["x" * 300, "x" * 240, "ü" * 80])
def test_a_run_id_that_no_file_can_bear_fails_before_the_run(tmp_path: Path, run_id: str) -> None:
    model = WORLD.model("fa")
    with pytest.raises(StoreError, match="choose a shorter run_id") as told:
        Recorder(model, sgd(model), [Loss()], path=tmp_path, run_id=run_id)
    assert "\n" not in str(told.value)
    Recorder(model, sgd(model), [Loss()], run_id=run_id)  # in memory any will do


def test_what_a_probe_returns_is_copied() -> None:
    """A view of a weight must not show later weights at the flush."""

    class First(Probe):
        quantities = ("first_weight", "row")

        def measure(self, layer: Any) -> dict[str, torch.Tensor]:
            return {"first_weight": layer.layer.weight[0, 0], "row": layer.layer.weight[0]}

    with seeded(0):  # of the dropout: a unit without a gradient keeps its weight
        run = recorded(3, probes=[First()]).to_dataset()
    assert len(np.unique(run.first_weight.sel(layer="0"))) == 3
    np.testing.assert_array_equal(run.row.isel(mode=0), run.first_weight)


def test_a_value_that_is_neither_number_nor_vector_is_an_error() -> None:
    class Matrix(Probe):
        def measure(self, layer: Any) -> dict[str, torch.Tensor]:
            return {"weight": layer.weight}

    with pytest.raises(ValueError, match=r"weight has shape \(10, 6\)"):
        recorded(1, probes=[Matrix()])


def test_nothing_measured_is_an_empty_run(tmp_path: Path) -> None:
    recorded(3, schedule=lambda step: False, path=tmp_path)
    run = open_runs(tmp_path)
    assert (run.sizes["step"], run.status, run.last_step) == (0, "finished", 2)


def test_an_optimizer_that_takes_no_step_is_told() -> None:
    model = torch.nn.Linear(3, 2)
    of_the_loop, given = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    recorder = Recorder(model, given, [EffectiveLR()]).attach()
    model(torch.ones(1, 3)).sum().backward()
    of_the_loop.step()
    with pytest.warns(UserWarning, match="the optimizer that the recorder was given took no step"):
        recorder.detach()
    assert recorder.to_dataset().sizes["step"] == 0


def _stepped(optimizer: torch.optim.Optimizer, model: torch.nn.Module, times: int) -> None:
    for _ in range(times):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("new", [torch.optim.SGD, torch.optim.Adam])
def test_a_loop_that_goes_on_with_another_optimizer_is_told_where_its_record_ends(new: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))

    def loop() -> None:
        with Recorder(model, old := torch.optim.Adam(model.parameters()), [EffectiveLR()]):
            _stepped(old, model, 20)
            _stepped(new(model.parameters(), lr=0.1), model, 20)

    with pytest.warns(
        UserWarning, match=r"changing after step 19, the last of the .* optimizer \(Adam\)"
    ) as told:
        loop()
    assert [w.filename for w in told] == [__file__]


@pytest.mark.filterwarnings("error")
def test_a_record_is_written_where_the_warning_of_its_end_is_an_error(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    recorder = Recorder(model, old := torch.optim.SGD(model.parameters()), [EffectiveLR()], path=tmp_path)
    recorder.attach()
    _stepped(old, model, 3)
    _stepped(torch.optim.SGD(model.parameters()), model, 20)
    with pytest.raises(UserWarning, match="went on changing after step 2"):
        recorder.detach()
    stored = open_runs(tmp_path)
    assert (stored["status"].item(), stored.sizes["step"]) == ("finished", 3)


def test_best_weights_put_back_after_the_last_step_are_no_optimizers() -> None:
    model = torch.nn.Linear(3, 2)
    best = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Recorder(model, optimizer := torch.optim.SGD(model.parameters()), [EffectiveLR()]) as recorder:
            _stepped(optimizer, model, 3)
            model.load_state_dict(best)
    assert recorder.step == 3


def test_a_probe_that_is_due_rarely_is_measured_rarely() -> None:
    class Rare(Probe):
        quantities = ("rare", "rare_step")

        def due(self, count: int) -> bool:
            return count % 2 == 1

        def measure(self, layer: Any) -> dict[str, torch.Tensor]:
            return {"rare": layer.weight.norm()}

        def measure_step(self, observation: Any) -> dict[str, torch.Tensor | float]:
            return {"rare_step": 1.0}

    run = recorded(4, probes=[Rare()], schedule=every(1)).to_dataset()
    for variable in (run.rare.isel(layer=0), run.rare_step):
        assert variable.notnull().values.tolist() == [False, True, False, True]


def test_an_error_of_the_recorder_ends_the_run_as_crashed(tmp_path: Path) -> None:
    model = WORLD.model("fa")
    optimizer = sgd(model)
    with pytest.raises(ProbeError), Recorder(model, optimizer, all_probes(), path=tmp_path):  # noqa: PT012
        steps(model, optimizer, 2)
        optimizer.step()
    run = open_runs(tmp_path)
    assert (run.status, run.sizes["step"]) == ("crashed", 2)
