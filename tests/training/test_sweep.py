"""A sweep runs every cell exactly once, keeps what is finished, and tells what failed."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from alignlab.store import Segments, StoreError, atomic, compact, open_runs, open_segments
from alignlab.store.claims import Claims
from alignlab.training import RunSpec, cells, naming, train
from alignlab.training import sweep as sweeping
from alignlab.training.cells import Job, Outcome, run_cell
from alignlab.training.errors import SpecError, SweepError
from alignlab.training.naming import cell_name
from alignlab.training.planner import best_size
from alignlab.training.population import train_population
from alignlab.training.workers import Lost, Workers

BASE = RunSpec(
    task="xor", hidden=(3,), rule="fa", batch_size=2, steps=4, evaluations=2, record_every=2, lr=0.1
)
CELLS = [BASE.changed(seed=seed) for seed in range(3)]
Sweep = functools.partial(sweeping.Sweep, lockstep=False)


class Training:
    """Stands in for ``train``: counts, and fails for some seeds."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, failing: dict[int, BaseException] | None = None
    ) -> None:
        self.failing = failing or {}
        self.seeds: list[int] = []
        self.threads: list[int] = []
        monkeypatch.setattr(cells, "train", self)

    def __call__(self, spec: RunSpec, progress: object = None, device: object = None) -> xr.Dataset:
        self.threads.append(torch.get_num_threads())
        if spec.seed in self.failing:
            raise self.failing[spec.seed]
        self.seeds.append(spec.seed)
        return train(spec)


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


# Once and once only ---------------------------------------------------------------------------------------------------


def test_a_second_call_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch)
    counted: list[int] = []
    sweep = Sweep(CELLS, tmp_path)
    assert sweep.names == {spec: cell_name(spec) for spec in CELLS}
    assert sweep.run(notify=counted.append) == 3
    assert counted == [1, 1, 1]
    before = contents(tmp_path)
    assert sweep.run(notify=counted.append) == 0
    assert Sweep(iter(CELLS[:1]), tmp_path).run(2) == 0
    assert counted == [1, 1, 1]
    assert training.seeds == [0, 1, 2]
    assert contents(tmp_path) == before


def test_unless_told_otherwise_runs_of_one_shape_train_together(tmp_path: Path) -> None:
    counted: list[int] = []
    specs = [*CELLS, BASE.changed(rule="soap", seed=0), BASE.changed(rule="sign_sync", seed=0)]
    sweep = sweeping.Sweep(specs, tmp_path)
    assert sweep.run(notify=counted.append) == 5
    assert sorted(counted) == [1, 4]
    together = train_population([specs[4], *CELLS])
    for spec, run in zip([specs[4], *CELLS], together, strict=True):
        stored = Segments(tmp_path).read(sweep.names[spec])
        np.testing.assert_array_equal(stored["train_loss"], run["train_loss"])


def test_a_folder_is_swept_once_however_many_cells_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[Path] = []
    monkeypatch.setattr(atomic, "sweep", swept.append)
    assert sweeping.Sweep(CELLS, tmp_path).run() == 3
    assert Sweep([BASE.changed(seed=3)], tmp_path).run() == 1
    assert swept == [tmp_path]


class Dying(Workers):
    """Two workers that die of the planner's questions."""

    def __init__(self) -> None:
        super().__init__()
        self.packs: list[int] = []

    def count(self) -> int:
        return 2

    def each(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Generator[tuple[Any, Any]]:
        if function is best_size:
            yield from ((job, Lost("died")) for job in jobs)
        else:
            self.packs += [len(job.specs) for job in jobs]
            yield from super().each(function, jobs)


def test_runs_that_nobody_could_plan_are_trained_one_by_one(tmp_path: Path) -> None:
    workers = Dying()
    assert sweeping.Sweep(CELLS, tmp_path).run(workers) == 3
    assert workers.packs == [1, 1, 1]


@pytest.mark.parametrize("missing", [0, 1])
def test_no_process_is_started_for_what_one_can_do(
    missing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeping.Sweep(CELLS[missing:], tmp_path).run()

    def started(self: Workers) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(Workers, "_connected", started)
    assert sweeping.Sweep(CELLS, tmp_path).run(2) == missing


def test_a_finished_store_that_cannot_be_written_serves_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Sweep(CELLS, tmp_path).run()

    def read_only(*what: object) -> None:
        raise StoreError("read-only")

    monkeypatch.setattr(Segments, "prepare", read_only)
    monkeypatch.setattr(sweeping, "Claims", read_only)
    assert Sweep(CELLS[:2], tmp_path).run() == 0
    with pytest.raises(StoreError, match="read-only"):
        Sweep([*CELLS, BASE.changed(seed=3)], tmp_path).run()


def test_equal_specs_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch)
    sweep = Sweep([CELLS[0], CELLS[1], BASE.changed(seed=0), CELLS[0]], tmp_path)
    assert (len(sweep.names), sweep.run()) == (2, 2)
    assert training.seeds == [0, 1]


def test_only_what_is_missing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Sweep(CELLS, tmp_path / "nowhere").missing() == CELLS
    Sweep(CELLS[1:2], tmp_path).run()
    assert Sweep([*CELLS, CELLS[0]], tmp_path).missing() == [CELLS[0], CELLS[2]]
    training = Training(monkeypatch)
    assert Sweep(CELLS, tmp_path).run() == 2
    assert training.seeds == [0, 2]
    assert Sweep(CELLS, tmp_path).missing() == []


def test_the_stored_runs_are_those_of_train_under_their_names(tmp_path: Path) -> None:
    sweep = Sweep(CELLS, tmp_path)
    sweep.run()
    runs = open_runs(tmp_path)
    assert sorted(runs["run_id"].values) == sorted(sweep.names.values())
    for spec, name in sweep.names.items():
        stored = Segments(tmp_path).read(name)
        assert stored["run_id"].item() == name
        assert stored["seed"].item() == spec.seed
        fresh = train(spec)
        np.testing.assert_array_equal(stored["train_loss"], fresh["train_loss"])
        np.testing.assert_array_equal(stored["gradient_angle"], fresh["gradient_angle"])


def test_runs_of_another_version_of_the_code_can_be_told_from_those_of_this(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in ("before", "after"):
        for module in (cells, naming, sweeping):
            monkeypatch.setattr(module, "code_hash", lambda code=code: code)
        Sweep([BASE], tmp_path).run()
    with pytest.warns(UserWarning, match="2 of 2 runs are of 1 spec, computed by several versions"):
        runs = open_runs(tmp_path)
    assert runs["seed"].values.tolist() == [0, 0]
    assert sorted(runs["code_hash"].values.tolist()) == ["after", "before"]


def test_a_cell_that_another_process_stored_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    name = cell_name(BASE)
    run_cell(BASE, tmp_path, name)
    before = contents(tmp_path)
    run_cell(BASE, tmp_path, name)
    assert contents(tmp_path) == before


# Stores of several machines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compacted", "times"), [("here", False), ("there", True), ("here there", True), ("here there", False)]
)
def test_stores_with_runs_in_common_are_merged_by_copying(
    compacted: str, times: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for store, own in ((there, CELLS[:2]), (here, CELLS[1:])):
        Sweep(own, store).run()
        if store.name in compacted.split():
            compact(store)
    Sweep([BASE.changed(seed=3)], here).run()  # after its compaction
    copy = shutil.copy2 if times else shutil.copy
    shutil.copytree(there, here, dirs_exist_ok=True, copy_function=copy)
    training = Training(monkeypatch)
    assert Sweep([BASE.changed(seed=seed) for seed in range(5)], here).run() == 1
    assert training.seeds == [4]
    for _ in range(2):  # with what the merged store has of compactions, and with its own
        runs = open_runs(here).load()
        assert sorted(runs["seed"].values) == [0, 1, 2, 3, 4]
        for name in runs["run_id"].values:
            own = runs.sel(run=runs["run_id"] == name).squeeze("run")
            for key, values in Segments(here).read(name).data_vars.items():
                np.testing.assert_array_equal(own[key], values)
        compact(here)


def test_a_run_that_was_copied_by_halves_is_named_and_computed_again_once_removed(tmp_path: Path) -> None:
    Sweep(CELLS, tmp_path).run()
    path = Segments(tmp_path).file(cell_name(BASE))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for look in (open_runs, compact):
        with pytest.raises(StoreError, match=rf"{path.name}: damaged.*; restore it from a copy, or move it"):
            look(tmp_path)
    told = rf"1 of 4 runs lie in files .* by halves: {path}; copy these again, or remove them and let"
    for end in (len(whole) // 2, 0, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(SweepError, match=told):
            Sweep([*CELLS, BASE.changed(seed=9)], tmp_path).run()
    assert open_segments(tmp_path, [cell_name(BASE.changed(seed=9))]).status == "finished"
    path.unlink()
    assert Sweep(CELLS, tmp_path).run() == 1
    assert open_runs(tmp_path).sizes["run"] == 4


def test_a_sweep_of_days_goes_on_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    def a_day_later(*args: Any, **kwargs: Any) -> xr.Dataset:
        for file in tmp_path.glob(f".*{atomic.SUFFIX}"):
            os.utime(file, (time.time() - 2 * atomic.ABANDONED,) * 2)
        return train(*args, **kwargs)

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(cells, "train", a_day_later)
    assert Sweep(CELLS, tmp_path).run() == 3


# Several sweeps at once -----------------------------------------------------------------------------------------------


def test_sweeps_at_once_in_one_store_compute_each_cell_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "PATIENCE", 0.02)
    training = Training(monkeypatch)
    specs = [BASE.changed(seed=seed) for seed in range(8)]
    counted: list[int] = []
    with ThreadPoolExecutor(3) as threads:
        sweeps = [
            threads.submit(Sweep(own, tmp_path).run, notify=counted.append)
            for own in (specs[:6], specs[2:], specs)
        ]
        computed = [future.result(timeout=60) for future in sweeps]
    assert sorted(training.seeds) == list(range(8))
    assert sum(computed) == 8
    assert Sweep(specs, tmp_path).missing() == []
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".nc"] * 8


def test_a_cell_whose_other_sweep_fails_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "PATIENCE", 0.02)
    training = Training(monkeypatch)
    with ThreadPoolExecutor(1) as thread:
        with Claims(tmp_path) as others:  # another sweep's
            assert others.take(cell_name(BASE))
            waiting = thread.submit(Sweep([*CELLS, BASE], tmp_path).run)
            while len(training.seeds) < 2:
                time.sleep(0.01)
            assert not waiting.done()
        assert waiting.result(timeout=60) == 3
    assert training.seeds == [1, 2, 0]


class Killed(Workers):
    """Workers that are killed when they have stored their job's runs, and of which ``again`` tries each job once more."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again

    def each(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Generator[tuple[Any, Any]]:
        for job in jobs:
            function(job)
            yield job, function(job) if self.again else Lost("died")


@pytest.mark.parametrize("again", [True, False])
def test_a_run_that_was_stored_by_a_worker_killed_before_it_could_tell_is_counted(
    again: bool, tmp_path: Path
) -> None:
    assert Sweep(CELLS, tmp_path).run(Killed(again)) == 3


class Slow(Workers):
    """Workers that outlive their scheduler: each job but the last is lost, and stored while the next is under way."""

    def each(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Generator[tuple[Any, Any]]:
        for job, next_one in zip(jobs, [*jobs[1:], None], strict=True):
            yield job, Lost("the connection to the dask scheduler was lost")
            if next_one is not None:
                function(job)


def test_a_run_that_is_stored_after_its_scheduler_was_lost_has_not_failed(tmp_path: Path) -> None:
    counted: list[int] = []
    with pytest.raises(SweepError) as told:
        Sweep(CELLS, tmp_path).run(Slow(), notify=counted.append)
    assert str(told.value).startswith(
        f"1 of 3 runs failed, the others are stored in {tmp_path}. fa lr=0.1 seed=2"
    )
    assert "seed=0" not in str(told.value)
    assert sum(counted) == 3
    assert Sweep(CELLS, tmp_path).missing() == [CELLS[2]]


class Beaten(Workers):
    """Workers to whom another sweep comes first, and who are ``lost`` or not."""

    def __init__(self, store: Path, lost: bool) -> None:
        super().__init__()
        self.store, self.lost = store, lost

    def each(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Generator[tuple[Any, Any]]:
        Sweep(CELLS[:2], self.store).run()
        for job in jobs:
            result = function(job)
            yield job, Lost("died") if self.lost else result


@pytest.mark.parametrize("lost", [True, False])
def test_a_run_that_another_sweep_stored_meanwhile_is_not_counted(lost: bool, tmp_path: Path) -> None:
    assert Sweep(CELLS, tmp_path).run(Beaten(tmp_path, lost)) == 1


def test_progress_counts_what_is_done_and_not_what_another_is_at() -> None:
    told: list[int] = []
    progress = sweeping._Progress(told.append)
    job = Job(tuple(CELLS), ("a", "b", "c"), Path(), "", "")
    outcomes = [Outcome("computed"), Outcome("busy"), Outcome("there")]
    assert progress.note(job, outcomes) == [CELLS[1]]
    assert progress.note(Job((CELLS[1],), ("b",), Path(), "", ""), [Outcome("busy")]) == [CELLS[1]]
    assert (told, progress.computed) == ([2], 1)


def test_a_failure_that_turns_out_to_be_stored_counts_for_who_computed_it() -> None:
    progress = sweeping._Progress(lambda n: None)
    progress.failures = [(cell, "lost") for cell in CELLS]
    found = dict(zip(CELLS, (Outcome("there"), Outcome("computed"), None), strict=True))
    progress.settle(found.__getitem__)
    assert (progress.computed, progress.failures) == (1, [(CELLS[2], "lost")])


# When something goes wrong --------------------------------------------------------------------------------------------


def test_a_failing_cell_is_listed_and_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    with monkeypatch.context() as patch:
        Training(patch, {1: ZeroDivisionError("by nought")})
        with pytest.raises(SweepError) as caught:
            Sweep(CELLS, tmp_path).run(notify=counted.append)
    line = str(caught.value)
    assert line.startswith(f"1 of 3 runs failed, the others are stored in {tmp_path}")
    assert "fa lr=0.1 seed=1: ZeroDivisionError: by nought" in line
    assert len(counted) == 3
    assert Sweep(CELLS, tmp_path).missing() == [CELLS[1]]
    training = Training(monkeypatch)
    assert Sweep(CELLS, tmp_path).run() == 1
    assert training.seeds == [1]


def test_many_failures_are_counted_not_all_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Training(monkeypatch, {seed: ValueError(f"number {seed}") for seed in range(13)})
    with pytest.raises(SweepError, match=r"^13 of 13 .*number 9; and 3 more reasons$"):
        Sweep([BASE.changed(seed=seed) for seed in range(13)], tmp_path).run()


def test_failures_for_one_reason_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Training(monkeypatch, {seed: ValueError("no luck") for seed in range(13)})
    with pytest.raises(SweepError, match=r"seed=0, fa .*seed=9 and 3 more: ValueError: no luck$") as caught:
        Sweep([BASE.changed(seed=seed) for seed in range(13)], tmp_path).run()
    assert str(caught.value).count("no luck") == 1


def test_a_grafted_cell_is_named_with_its_graft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Training(monkeypatch, {0: ValueError("no")})
    with pytest.raises(SweepError, match="graft bp/rule: ValueError: no"):
        Sweep([BASE.changed(graft={"direction": "bp", "magnitude": "rule"})], tmp_path).run()


def test_a_diverging_cell_is_stored_like_any_other(tmp_path: Path) -> None:
    wild = BASE.changed(task="linear_toy", activation="linear", lr=100.0, steps=100)
    assert Sweep([wild, BASE], tmp_path).run() == 2
    stored = Segments(tmp_path).read(cell_name(wild))
    assert stored["status"].item() == "diverged"
    assert 0 < stored["last_step"].item() < 100
    assert Sweep([wild, BASE], tmp_path).run() == 0
    assert sorted(open_runs(tmp_path)["status"].values) == ["diverged", "finished"]


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        Training(patch, {2: KeyboardInterrupt()})
        with pytest.raises(KeyboardInterrupt):
            Sweep(CELLS, tmp_path).run()
    assert Sweep(CELLS, tmp_path).missing() == [CELLS[2]]
    training = Training(monkeypatch)
    Sweep(CELLS, tmp_path).run()
    assert training.seeds == [2]


def test_a_store_that_cannot_be_written_fails_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Sweep(CELLS, tmp_path / "file" / "below").run()
    with pytest.raises(StoreError, match="file: it is a file; give the folder"):
        Sweep(CELLS, tmp_path / "file").run()
    assert training.seeds == []


@pytest.mark.parametrize("cells", [["bp"], [None], BASE, [BASE, "bp"]])
def test_a_cell_that_is_no_spec_is_named(cells: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"a cell of the sweep is .*, expected a RunSpec: give a list"):
        Sweep(cells, tmp_path)


def test_a_store_whose_name_no_folder_can_have_is_one_clear_error() -> None:
    with pytest.raises(StoreError, match=r"x\\x00y': a name has no null character"):
        Sweep(CELLS, "x\0y").run()


# Threads ---------------------------------------------------------------------------------------------------------------


def test_cells_run_on_one_thread_and_the_callers_number_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(monkeypatch, {1: ValueError("no")})
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(SweepError):
            Sweep(CELLS, tmp_path).run()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert training.threads == [1, 1, 1]
