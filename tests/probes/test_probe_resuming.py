"""A run that goes on from a checkpoint is one run, the same as if it had never stopped."""

from __future__ import annotations

import copy
import enum
import errno
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from probe_worlds import WORLDS, loss_of, seeded, sgd
from torch import nn

from alignlab.probes import (
    EffectiveLR,
    FeedbackSpectrum,
    GradientAngle,
    Loss,
    Probe,
    Recorder,
    WeightAngle,
    every,
    log_spaced,
    roots,
)
from alignlab.store import StoreError, atomic, compact, open_runs

WORLD = WORLDS["mlp"]
TOTAL = 14


class Recalled(Probe):
    """A sum over all measured steps: a probe with a state of its own."""

    quantities = ("recalled",)
    needs_truth = False

    def __init__(self) -> None:
        self._seen = torch.zeros(())

    def measure_step(self, observation: Any) -> dict[str, Any]:
        self._seen = self._seen + math.sqrt(observation.step)
        return {"recalled": self._seen}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen = state["seen"]


def odd_or_ninth(step: int) -> bool:
    return step % 2 == 1 or step == 9


SCHEDULES: Mapping[str, Any] = {
    "every": every(3), "log_spaced": log_spaced(TOTAL, 8), "function": odd_or_ninth, "all": None,
    "always": lambda step: True, "seldom": lambda step: step % 4 == 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nobody_listens() -> Iterator[None]:
    """A recorder that was abandoned would go on listening to whatever the next tests differentiate."""
    yield
    for left in tuple(roots._listeners):
        left.remove()


@dataclass(frozen=True)
class Case:
    """A run stopped after ``crash`` steps, whose checkpoint is of after ``saved`` steps."""

    optimizer: str = "sgd"
    rule: str | None = "fa"
    schedule: str = "every"
    saved: int = 7
    crash: int = 10
    stored: bool = True
    flush_every: int = 100
    left: str = "abandoned"  # or by an exception, or not left before it was finished

    def model(self) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = WORLD.model(self.rule)
        optimizer: torch.optim.Optimizer = sgd(model)
        if self.optimizer == "adam":
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def recorder(self, model: nn.Module, optimizer: Any, path: Path | None, **kwargs: Any) -> Recorder:
        probes = [
            GradientAngle(),
            WeightAngle(),
            EffectiveLR(),
            FeedbackSpectrum(every=2),
            Loss(),
            Recalled(),
        ]
        kwargs = {"flush_every": self.flush_every, "attrs": {"note": "mine"}, "coords": {"seed": 3}} | kwargs
        return Recorder(
            model, optimizer, probes, SCHEDULES[self.schedule], path if self.stored else None, **kwargs
        )


CASES = [
    Case(),
    Case(schedule="function", saved=8, crash=12, left="exception"),
    Case(schedule="log_spaced", saved=4, crash=11, optimizer="adam"),
    Case(rule="bp", saved=6, crash=13, flush_every=1),
    Case(rule="bp", saved=6, crash=13, stored=False, optimizer="adam"),
    Case(rule=None, schedule="function", saved=9, flush_every=2, left="exception"),
    Case(schedule="all", saved=5, crash=5, flush_every=3),
    Case(schedule="all", saved=5, crash=9, flush_every=1, optimizer="adam", left="exception"),
    Case(schedule="log_spaced", saved=7, stored=False),
    Case(schedule="function", saved=1, crash=6),  # before anything was measured
    Case(schedule="function", saved=0, crash=6, flush_every=1),
    Case(saved=7, crash=7, left="finished"),
    Case(rule="dfa", saved=8, crash=9, stored=False, left="finished"),
    Case(rule="sign_sync", saved=7, crash=8, flush_every=1),
]  # fmt: skip


def train(made: Any, start: int, stop: int) -> None:
    model, optimizer, scheduler = made
    for step in range(start, stop):
        with seeded(step):  # for dropout
            optimizer.zero_grad()
            loss_of(model, *WORLD.batch(step)).backward()
            optimizer.step()
        scheduler.step()


def checkpoint(made: Any, recorder: Recorder) -> bytes:
    states = [part.state_dict() for part in (*made, recorder)]
    torch.save(states, file := io.BytesIO())
    return file.getvalue()


def resumed(case: Case, path: Path | None, saved: bytes, **kwargs: Any) -> tuple[Any, Recorder]:
    """New objects, as a new process makes them, in the state of a checkpoint."""
    made = case.model()
    recorder = case.recorder(*made[:2], path, **kwargs)
    for part, state in zip((*made, recorder), torch.load(io.BytesIO(saved), weights_only=True), strict=True):
        part.load_state_dict(state)
    return made, recorder


def stopped(case: Case, path: Path | None, **kwargs: Any) -> tuple[bytes, Recorder]:
    """A run's checkpoint, and its recorder, which has gone on and was stopped."""
    made = case.model()
    recorder = case.recorder(*made[:2], path, **kwargs)
    if case.left == "exception":
        with pytest.raises(KeyboardInterrupt), recorder:  # noqa: PT012
            train(made, 0, case.saved)
            saved = checkpoint(made, recorder)
            train(made, case.saved, case.crash)
            raise KeyboardInterrupt
        return saved, recorder
    recorder.attach()
    train(made, 0, case.saved)
    if case.left == "finished":
        recorder.detach()
    saved = checkpoint(made, recorder)
    if case.left != "finished":
        train(made, case.saved, case.crash)
    return saved, recorder


def whole(case: Case, path: Path | None = None, **kwargs: Any) -> xr.Dataset:
    made = case.model()
    with case.recorder(*made[:2], path, **kwargs) as recorder:
        train(made, 0, TOTAL)
    return recorder.to_dataset()


def assert_same_run(found: xr.Dataset, expected: xr.Dataset) -> None:
    """In everything but its name and the time."""
    apart = ["wall_time", "run_id"]
    xr.testing.assert_identical(found.drop_vars(apart), expected.drop_vars(apart))
    for name in expected.variables:
        assert found[name].dtype == expected[name].dtype or name == "run_id", name
        assert found[name].attrs == expected[name].attrs
    assert np.isfinite(found.wall_time).all()
    assert (np.diff(found.wall_time) >= 0).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_resumed_run_is_the_run_that_never_stopped(case: Case, tmp_path: Path) -> None:
    expected = whole(case)
    saved, first = stopped(case, tmp_path / "store")
    made, recorder = resumed(case, tmp_path / "store", saved)
    with recorder:
        train(made, case.saved, TOTAL)
    assert recorder.run_id == first.run_id
    assert_same_run(recorder.to_dataset(), expected)
    if case.stored:
        stored = open_runs(tmp_path / "store")
        assert_same_run(stored, expected)
        assert stored.run_id == first.run_id
        xr.testing.assert_identical(open_runs(compact(tmp_path / "store")).load(), stored)


def test_a_run_may_be_resumed_many_times_and_compacted_in_between(tmp_path: Path) -> None:
    case = Case(schedule="all", flush_every=1)
    expected, ids = whole(case), set()
    saved, _ = stopped(case, tmp_path)
    done = case.saved
    for stop in (9, 11, 12):  # the last of them leaves off two steps behind its checkpoint
        compact(tmp_path)
        made, recorder = resumed(case, tmp_path, saved)
        recorder.attach()
        train(made, done, stop)
        saved, done = checkpoint(made, recorder), stop
        train(made, stop, stop + 2)
        ids.add(recorder.run_id)
    made, recorder = resumed(case, tmp_path, saved)
    with recorder:
        train(made, done, TOTAL)
    assert len(ids) == 1
    assert_same_run(open_runs(tmp_path), expected)
    compact(tmp_path)
    assert_same_run(open_runs(tmp_path).load(), expected)


def test_what_was_recorded_after_the_checkpoint_is_dropped_as_the_run_goes_on(tmp_path: Path) -> None:
    case = Case(schedule="all", saved=6, crash=11, flush_every=1, left="exception")
    saved, _ = stopped(case, tmp_path)
    assert open_runs(tmp_path).sizes["step"] == 11
    made, recorder = resumed(case, tmp_path, saved)
    assert open_runs(tmp_path).sizes["step"] == 11
    recorder.attach()
    run = open_runs(tmp_path)
    assert (run.step.values.tolist(), run.status, run.last_step) == ([*range(6)], "running", 5)
    train(made, 6, 8)
    assert open_runs(tmp_path).step.values.tolist() == [*range(8)]
    xr.testing.assert_identical(recorder.to_dataset(), open_runs(tmp_path))


def test_steps_that_are_not_measured_again_are_dropped_too(tmp_path: Path) -> None:
    saved, _ = stopped(Case(schedule="always", saved=6, crash=11, flush_every=1), tmp_path)
    made, recorder = resumed(Case(schedule="seldom"), tmp_path, saved)
    with recorder:
        train(made, 6, TOTAL)
    assert open_runs(tmp_path).step.values.tolist() == [*range(6), 8, 12]
    xr.testing.assert_identical(recorder.to_dataset(), open_runs(tmp_path))


def test_a_state_after_the_end_goes_on_with_a_finished_run(tmp_path: Path) -> None:
    case = Case(saved=7, left="finished")
    saved, _ = stopped(case, tmp_path)
    assert open_runs(tmp_path).status == "finished"
    _, recorder = resumed(case, tmp_path, saved)
    recorder.attach()
    assert open_runs(tmp_path).status == "running"


def test_time_counts_while_the_run_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    case = Case(schedule="all", stored=False)
    made = case.model()
    with case.recorder(*made[:2], None) as recorder:
        clock[0] += 5.0
        train(made, 0, 3)
        clock[0] += 2.0
    clock[0] += 1000.0
    saved = checkpoint(made, recorder)
    made, recorder = resumed(case, None, saved)
    clock[0] += 1000.0
    with recorder:
        clock[0] += 1.0
        train(made, 3, 4)
    assert recorder.to_dataset().wall_time.values.tolist() == [5.0, 5.0, 5.0, 8.0]


def test_two_that_resume_one_checkpoint_do_not_mix(tmp_path: Path) -> None:
    case = Case(schedule="all", flush_every=1)
    expected = whole(case)
    saved, _ = stopped(case, tmp_path)
    made, recorder = resumed(case, tmp_path, saved)
    recorder.attach()
    train(made, 7, 9)
    made_later, later = resumed(case, tmp_path, saved)
    later.attach()
    with pytest.raises(StoreError, match=r"recorded by another process too.* resumed twice"):
        train(made, 9, 10)
    train(made_later, 7, TOTAL)
    later.detach()
    assert_same_run(open_runs(tmp_path), expected)


def test_the_abandoned_recorder_cannot_end_a_run_that_goes_on(tmp_path: Path) -> None:
    case = Case()
    saved, first = stopped(case, tmp_path)
    made, recorder = resumed(case, tmp_path, saved)
    recorder.attach()
    with pytest.raises(StoreError, match="another process"):
        first.detach("crashed")
    train(made, 7, TOTAL)
    recorder.detach()
    assert_same_run(open_runs(tmp_path), whole(case))


def test_two_runs_of_one_run_id_that_begin_at_once_do_not_mix(tmp_path: Path) -> None:
    case = Case(schedule="all", flush_every=1)
    first, second = case.model(), case.model()
    case.recorder(*first[:2], tmp_path, run_id="mine").attach()
    case.recorder(*second[:2], tmp_path, run_id="mine").attach()
    train(first, 0, 1)
    with pytest.raises(StoreError, match="'mine' is recorded by another process too"):
        train(second, 0, 1)


def test_a_checkpoint_whose_steps_were_dropped_is_refused(tmp_path: Path) -> None:
    case = Case(schedule="all", flush_every=1, saved=4)
    early, _ = stopped(case, tmp_path)
    made, recorder = resumed(case, tmp_path, early)
    recorder.attach()
    train(made, 4, 7)
    late = checkpoint(made, recorder)
    train(made, 7, 9)
    made, recorder = resumed(case, tmp_path, early)
    recorder.attach()
    train(made, 4, TOTAL)
    before = open_runs(tmp_path)
    _, recorder = resumed(case, tmp_path, late)
    with pytest.raises(StoreError, match=r"taken up again after step 3, .* after step 6, .* made since"):
        recorder.attach()
    xr.testing.assert_identical(open_runs(tmp_path), before)


def test_a_store_without_the_state_is_refused(tmp_path: Path) -> None:
    case = Case(schedule="all", flush_every=2)
    saved, first = stopped(case, tmp_path / "store")
    _, recorder = resumed(case, tmp_path / "empty", saved)
    with pytest.raises(
        StoreError, match=r"has 0 measured steps before step 7 in .*empty, .* tells of 7: pass"
    ):
        recorder.attach()
    (tmp_path / "store" / f"{first.run_id}-000001.nc").unlink()
    _, recorder = resumed(case, tmp_path / "store", saved)
    with pytest.raises(StoreError, match=r"has 5 measured steps before step 7 .* tells of 7"):
        recorder.attach()
    assert not (tmp_path / "store" / f"{first.run_id}-000006.nc").exists()


@pytest.mark.parametrize(
    ("name", "other", "told"),
    [
        (
            "probes",
            {"probes": [GradientAngle()]},
            r"probes: GradientAngle\(samples=True\) here, .* FeedbackSp",
        ),
        ("probes", {"every": 4}, r"probes: FeedbackSpectrum\(every=4,.* here, .* FeedbackSpectrum\(every=2"),
        ("layers", {"layers": ["0", "4"]}, "layers: 0, 4 here, .* with 0, 4, 6"),
        ("schedule", {"schedule": every(4)}, r"schedule: Every\(n=4\) here, .* Every\(n=3\)"),
        ("schedule", {"schedule": odd_or_ninth}, r"schedule: a function here, .* Every\(n=3\)"),
        ("path", {"path": None}, "path: None here, .* with a folder"),
        (
            "run_id",
            {"run_id": "other"},
            "run_id is 'other', but the state is of run 'mine': pass run_id='mine'",
        ),
    ],
)
def test_a_state_of_another_recorder_is_refused(name: str, other: Any, told: str, tmp_path: Path) -> None:
    case = Case()
    made = case.model()
    with case.recorder(*made[:2], tmp_path, run_id="mine") as recorder:
        train(made, 0, 2)
    state, arguments = recorder.state_dict(), {"schedule": every(3), "path": tmp_path, **other}
    spectra = FeedbackSpectrum(every=arguments.pop("every", 2))
    own = [GradientAngle(), WeightAngle(), EffectiveLR(), spectra, Loss(), Recalled()]
    probes = arguments.pop("probes", own)
    with pytest.raises(ValueError, match=told):
        Recorder(*case.model()[:2], probes, **arguments).load_state_dict(state)


def recorded(case: Case, path: Path, stop: int) -> tuple[bytes, Recorder]:
    made = case.model()
    with case.recorder(*made[:2], path, run_id="mine") as recorder:
        train(made, 0, stop)
    return checkpoint(made, recorder), recorder


def test_two_recordings_of_one_run_id_that_are_copied_together_do_not_mix(tmp_path: Path) -> None:
    case = Case(schedule="all", flush_every=2)
    for name, stop in (("here", 9), ("there", 4)):
        recorded(case, tmp_path / name, stop)
        assert open_runs(tmp_path / name).sizes["step"] == stop
    shutil.copytree(tmp_path / "there", tmp_path / "here", dirs_exist_ok=True)
    with pytest.raises(StoreError, match=r"run 'mine' is two recordings.*mine-000003.nc does not go on"):
        open_runs(tmp_path / "here")


def test_a_run_that_went_on_in_a_copy_of_its_store_comes_back_by_copying(tmp_path: Path) -> None:
    case, here, there = Case(schedule="all", flush_every=1), tmp_path / "here", tmp_path / "there"
    saved, _ = stopped(case, here)
    shutil.copytree(here, there)
    made, recorder = resumed(case, there, saved)
    with recorder:
        train(made, case.saved, TOTAL)
    shutil.copytree(there, here, dirs_exist_ok=True)
    assert_same_run(open_runs(here), whole(case))


def test_a_run_that_went_on_in_two_copies_of_its_store_does_not_mix(tmp_path: Path) -> None:
    case, here, there = Case(schedule="all", flush_every=1), tmp_path / "here", tmp_path / "there"
    saved, _ = stopped(case, here)
    shutil.copytree(here, there)
    for store, stop in ((here, 12), (there, 10)):
        made, recorder = resumed(case, store, saved)
        recorder.attach()
        train(made, case.saved, stop)
        assert open_runs(store).sizes["step"] == stop
    shutil.copytree(there, here, dirs_exist_ok=True)
    with pytest.raises(StoreError, match="is two recordings"):
        open_runs(here)


def test_a_state_goes_on_with_no_other_recording(tmp_path: Path) -> None:
    case = Case(schedule="all", flush_every=1)
    saved, _ = recorded(case, tmp_path / "here", 5)
    recorded(case, tmp_path / "there", 5)
    before = open_runs(tmp_path / "there")
    _, recorder = resumed(case, tmp_path / "there", saved)
    with pytest.raises(StoreError, match=r"'mine' in .*there is not the recording that this state is of"):
        recorder.attach()
    xr.testing.assert_identical(open_runs(tmp_path / "there"), before)


def test_probes_of_a_recorder_that_could_not_go_on_are_free(tmp_path: Path) -> None:
    case = Case(schedule="all", flush_every=1, left="exception")
    saved, _ = stopped(case, tmp_path / "store")
    _, elsewhere = resumed(case, tmp_path / "empty", saved)
    with pytest.raises(StoreError, match="0 measured steps"):
        elsewhere.attach()
    made, other = resumed(case, tmp_path / "store", saved)
    other.probes = elsewhere.probes
    with other:
        train(made, case.saved, TOTAL)
    assert_same_run(open_runs(tmp_path / "store"), whole(case))


def test_a_state_without_tokens_goes_on(tmp_path: Path) -> None:
    case = Case(schedule="all", flush_every=1)
    saved, _ = stopped(case, tmp_path)
    made, *states, state = case.model(), *torch.load(io.BytesIO(saved), weights_only=True)
    del state["recording"]["tokens"]  # as of older versions
    recorder = case.recorder(*made[:2], tmp_path)
    for part, own in zip((*made, recorder), (*states, state), strict=True):
        part.load_state_dict(own)
    with recorder:
        train(made, case.saved, TOTAL)
    assert_same_run(open_runs(tmp_path), whole(case))


@pytest.mark.parametrize("flush_every", [1, 3])
def test_what_a_full_disk_did_not_take_is_written_when_it_does(
    flush_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, write, tries = Case(schedule="all", flush_every=flush_every), atomic.write_new, []

    def often_full(path: Path, content: bytes) -> None:
        tries.append(path)
        if len(tries) in (1, 3, 4):
            raise OSError(errno.ENOSPC, "no space left")
        write(path, content)

    monkeypatch.setattr(atomic, "write_new", often_full)
    made = case.model()
    with case.recorder(*made[:2], tmp_path):
        for step in range(TOTAL):
            try:
                train(made, step, step + 1)
            except StoreError:
                made[-1].step()  # which the error left out
    assert len(tries) > 4
    assert_same_run(open_runs(tmp_path), whole(case))


def test_a_state_tells_of_nothing_that_a_full_disk_did_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    case = Case(schedule="all")
    made = case.model()
    recorder = case.recorder(*made[:2], tmp_path).attach()
    train(made, 0, 7)
    with monkeypatch.context() as disk:
        disk.setattr(atomic, "write_new", full)
        for _ in range(2):
            with pytest.raises(StoreError, match="no space left"):
                recorder.state_dict()
    saved = checkpoint(made, recorder)
    train(made, 7, 9)
    made, recorder = resumed(case, tmp_path, saved)
    with recorder:
        train(made, 7, TOTAL)
    assert_same_run(open_runs(tmp_path), whole(case))


def test_a_run_stays_in_its_folder_where_a_link_or_the_script_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, latest = Case(schedule="all", flush_every=2), tmp_path / "latest"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    latest.symlink_to("first")
    monkeypatch.chdir(tmp_path)
    made = case.model()
    with case.recorder(*made[:2], Path("latest")):
        train(made, 0, 5)
        latest.unlink()
        latest.symlink_to("second")
        monkeypatch.chdir("second")
        train(made, 5, TOTAL)
    assert [*(tmp_path / "second").iterdir()] == []
    assert_same_run(open_runs(tmp_path / "first"), whole(case))


def test_a_process_forked_while_it_records_leaves_the_run_to_one(tmp_path: Path) -> None:
    case = Case(schedule="all", flush_every=1)
    made = case.model()
    recorder = case.recorder(*made[:2], tmp_path).attach()
    train(made, 0, 2)
    child = copy.copy(recorder._recording)  # as after a fork
    train(made, 2, 3)
    for _ in range(2):
        with pytest.raises(StoreError, match="recorded by another process too"):
            child.end("crashed")
    train(made, 3, TOTAL)
    recorder.detach()
    assert_same_run(open_runs(tmp_path), whole(case))


@pytest.mark.parametrize("when", range(1, 6))
def test_an_interrupted_flush_is_written_once_the_recorder_ends(
    when: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, calls = Case(schedule="all", flush_every=3, crash=8), []

    def interrupted(call: Any) -> Any:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            calls.append(call)
            if len(calls) == when:
                raise KeyboardInterrupt
            return call(*args, **kwargs)

        return replacement

    made = case.model()
    with pytest.raises(KeyboardInterrupt) as caught, case.recorder(*made[:2], tmp_path):  # noqa: PT012
        train(made, 0, 5)
        for name in ("write", "fsync", "link", "unlink"):
            monkeypatch.setattr(os, name, interrupted(getattr(os, name)))
        train(made, 5, 8)
        raise KeyboardInterrupt
    assert not hasattr(caught.value, "__notes__")
    run = open_runs(tmp_path)
    assert run.status == "crashed"
    assert run.step.values.tolist() == [*range(int(run.last_step) + 1)]


def test_a_state_comes_before_the_recorder_attaches_and_of_one_that_has(tmp_path: Path) -> None:
    case = Case()
    recorder = case.recorder(*(made := case.model())[:2], None)
    with pytest.raises(RuntimeError, match="state_dict: it has not attached yet"):
        recorder.state_dict()
    with recorder:
        train(made, 0, 1)
        state = recorder.state_dict()
        with pytest.raises(RuntimeError, match="load_state_dict: it has attached already"):
            recorder.load_state_dict(state)
    other = case.recorder(*case.model()[:2], None)
    with pytest.raises(ValueError, match="version 2, and this alignlab knows 1"):
        other.load_state_dict(state | {"version": 2})
    for nonsense in ({}, [1, 2], None, {"step": 3}, {"version": 1}):
        with pytest.raises(ValueError, match=r"expected what Recorder.state_dict\(\) gave"):
            other.load_state_dict(nonsense)  # type: ignore[arg-type]


def test_a_model_of_another_rule_is_refused(tmp_path: Path) -> None:
    case = Case()
    saved, _ = stopped(case, tmp_path)
    state = torch.load(io.BytesIO(saved), weights_only=True)[-1]
    plain = Case(rule=None)
    other = plain.recorder(*plain.model()[:2], tmp_path)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="rule: 'none' here, but the state is of a run with 'fa'; convert"):
        other.attach()
    other = case.recorder(*case.model()[:2], tmp_path, coords={"seed": 4})
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="seed: 4 here, but the state is of a run with 3"):
        other.attach()


def test_another_version_or_device_is_told(tmp_path: Path) -> None:
    case = Case()
    saved, _ = stopped(case, tmp_path)
    states = torch.load(io.BytesIO(saved), weights_only=True)
    state = states[-1]
    state["environment"]["torch_version"] = state["attrs"]["torch_version"] = "1.0"
    recorder = case.recorder(*case.model()[:2], tmp_path)
    recorder.load_state_dict(state)
    recorder.attach()
    assert open_runs(tmp_path).attrs["torch_version"] == f"1.0; from step 7: {torch.__version__}"


class Kind(enum.StrEnum):
    MINE = "mine"


def test_a_state_is_plain_whatever_describes_the_run() -> None:
    attrs = {"kind": Kind.MINE, "many": (np.float32(0.5), np.nan, None), "torch": torch.__version__}
    case = Case(stored=False)
    made = case.model()
    with case.recorder(*made[:2], None, attrs=attrs, coords={"seed": np.int64(3)}) as recorder:
        train(made, 0, 2)
    _, other = resumed(case, None, checkpoint(made, recorder), attrs=attrs, coords={"seed": 3})
    other.attach()
    found = other.to_dataset().attrs
    assert (found["kind"], found["many"][0], found["torch"]) == ("mine", 0.5, str(torch.__version__))


def penalised_step(made: Any, layer: int) -> None:
    model, optimizer, _ = made
    optimizer.zero_grad()
    (loss_of(model, *WORLD.batch(0)) + (model[layer].weight ** 4).sum()).backward()
    with pytest.warns(UserWarning, match="another gradient than"):
        optimizer.step()


def test_what_was_told_of_a_run_stays_told() -> None:
    case = Case(schedule="all", stored=False)
    made = case.model()
    recorder = case.recorder(*made[:2], None, attrs={"job": "first"}).attach()
    penalised_step(made, 0)
    first = recorder.to_dataset().attrs
    made, recorder = resumed(case, None, checkpoint(made, recorder), attrs={"job": "second"})
    recorder.attach()
    train(made, 1, 2)  # no spectra are due
    assert recorder.to_dataset().attrs == first
    made, recorder = resumed(case, None, checkpoint(made, recorder))
    recorder.attach()
    penalised_step(made, 4)
    assert recorder.to_dataset().attrs["weights_that_learn_elsewhere_too"] == "0, 4"


PREEMPTED = """
    import os, signal, sys, torch
    from pathlib import Path
    from test_probe_resuming import Case, checkpoint, resumed, train

    torch.set_num_threads(1)  # as here: products are summed in another order by two
    store, file, case = Path(sys.argv[1]), Path(sys.argv[2]), Case(schedule="all", flush_every=1)
    if file.exists():
        made, recorder = resumed(case, store, file.read_bytes())
    else:
        made = case.model()
        recorder = case.recorder(*made[:2], store)
    recorder.attach()
    done = recorder.step
    train(made, done, done + 3)
    file.write_bytes(checkpoint(made, recorder))
    train(made, done + 3, done + 5)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_is_killed_twice_goes_on(tmp_path: Path) -> None:
    case, file, store = Case(schedule="all", flush_every=1), tmp_path / "checkpoint", tmp_path / "store"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    for _ in range(2):
        command = [sys.executable, "-c", textwrap.dedent(PREEMPTED), str(store), str(file)]
        assert subprocess.run(command, env=environment, timeout=60).returncode == -signal.SIGKILL
    assert open_runs(store).sizes["step"] == 8
    made, recorder = resumed(case, store, file.read_bytes())
    with recorder:
        train(made, 6, TOTAL)
    assert_same_run(open_runs(store), whole(case))
