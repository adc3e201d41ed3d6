"""A sweep runs every cell exactly once, keeps what is finished, and tells what failed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from training_runs import TINY

from alignlab.store import Segments, StoreError, open_runs
from alignlab.training import RunSpec, sweep, tasks, train
from alignlab.training.sweep import SweepError, cell_name, code_hash, missing_cells, run_cell, run_cells

BASE = RunSpec(
    task="xor", hidden=(3,), rule="fa", batch_size=2, steps=4, evaluations=2, record_every=2, lr=0.1
)
CELLS = [BASE.changed(seed=seed) for seed in range(3)]
IMPOSSIBLE = RunSpec(task="xor", model="lenet", steps=2)  # xor is no image: fails when its model is built


class Training:
    """Stands in for ``train``: counts, and fails for some seeds."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, failing: dict[int, BaseException] | None = None
    ) -> None:
        self.failing = failing or {}
        self.seeds: list[int] = []
        self.threads: list[int] = []
        monkeypatch.setattr(sweep, "train", self)

    def __call__(self, spec: RunSpec, progress: object = None) -> xr.Dataset:
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
    first = run_cells(CELLS, tmp_path, notify=counted.append)
    assert first == ({spec: cell_name(spec) for spec in CELLS}, 3)
    assert counted == [1, 1, 1]
    before = contents(tmp_path)
    assert run_cells(CELLS, tmp_path, notify=counted.append) == (first[0], 0)
    assert run_cells(iter(CELLS[:1]), tmp_path, workers=2) == ({CELLS[0]: first[0][CELLS[0]]}, 0)
    assert counted == [1, 1, 1]
    assert training.seeds == [0, 1, 2]
    assert contents(tmp_path) == before


def test_equal_specs_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch)
    names, computed = run_cells([CELLS[0], CELLS[1], BASE.changed(seed=0), CELLS[0]], tmp_path)
    assert training.seeds == [0, 1]
    assert (len(names), computed) == (2, 2)


def test_only_what_is_missing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_cells(CELLS, tmp_path / "nowhere") == CELLS
    run_cells(CELLS[1:2], tmp_path)
    assert missing_cells([*CELLS, CELLS[0]], tmp_path) == [CELLS[0], CELLS[2]]
    training = Training(monkeypatch)
    assert run_cells(CELLS, tmp_path)[1] == 2
    assert training.seeds == [0, 2]
    assert missing_cells(CELLS, tmp_path) == []


def test_the_stored_runs_are_those_of_train_under_their_names(tmp_path: Path) -> None:
    names, _ = run_cells(CELLS, tmp_path)
    runs = open_runs(tmp_path)
    assert sorted(runs["run_id"].values) == sorted(names.values())
    for spec, name in names.items():
        stored = Segments(tmp_path).read(name)
        assert stored["run_id"].item() == name
        assert stored["seed"].item() == spec.seed
        fresh = train(spec)
        np.testing.assert_array_equal(stored["train_loss"], fresh["train_loss"])
        np.testing.assert_array_equal(stored["gradient_angle"], fresh["gradient_angle"])


def test_a_cell_that_another_process_stored_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    name = cell_name(BASE)
    run_cell(BASE, tmp_path, name)
    before = contents(tmp_path)
    run_cell(BASE, tmp_path, name)
    assert contents(tmp_path) == before


# Names ----------------------------------------------------------------------------------------------------------------


def test_a_cells_name_follows_spec_data_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    name = cell_name(BASE)
    assert re.fullmatch("[0-9a-f]{24}", name)
    assert cell_name(RunSpec.from_yaml(BASE.to_yaml())) == name
    names = {name, cell_name(BASE.changed(seed=1)), cell_name(BASE.changed(lr=0.2))}
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "load", lambda task: TINY)
        names.add(cell_name(BASE))
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "code_hash", lambda: "other code")
        names.add(cell_name(BASE))
    assert len(names) == 5
    assert cell_name(BASE) == name


def test_the_code_hash_follows_every_source_that_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed() -> str:
        code_hash.cache_clear()
        return code_hash()

    files = [tmp_path / floor / "a.py" for floor in (*sweep.COMPUTING, "figures")]
    for file in files:
        file.parent.mkdir()
        file.write_text("x = 1\n")
    real = hashed()
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "PACKAGE", tmp_path)
        seen = [hashed()]
        for file in files[:-1]:
            file.write_text("x = 2\n")
            seen.append(hashed())
        files[0].rename(files[0].with_name("b.py"))
        seen.append(hashed())
        files[-1].write_text("x = 2\n")  # how a run is drawn does not change it
        assert hashed() == seen[-1]
        patch.setattr(torch, "__version__", "0.0")
        seen.append(hashed())
    assert len({real, *seen}) == len(seen) + 1
    assert hashed() == real


def test_the_code_that_computes_is_where_the_hash_looks() -> None:
    assert {"measures", "rules", "probes", "training"} <= set(sweep.COMPUTING)
    assert all((sweep.PACKAGE / floor / "__init__.py").is_file() for floor in sweep.COMPUTING)


# When something goes wrong --------------------------------------------------------------------------------------------


def test_a_failing_cell_is_listed_and_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    with monkeypatch.context() as patch:
        Training(patch, {1: ZeroDivisionError("by nought")})
        with pytest.raises(SweepError) as caught:
            run_cells(CELLS, tmp_path, notify=counted.append)
    line = str(caught.value)
    assert line.startswith(f"1 of 3 runs failed, the others are stored in {tmp_path}")
    assert "fa lr=0.1 seed=1: ZeroDivisionError: by nought" in line
    assert len(counted) == 3
    assert missing_cells(CELLS, tmp_path) == [CELLS[1]]
    training = Training(monkeypatch)
    assert run_cells(CELLS, tmp_path)[1] == 1
    assert training.seeds == [1]


def test_many_failures_are_counted_not_all_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Training(monkeypatch, {seed: ValueError(f"number {seed}") for seed in range(13)})
    with pytest.raises(SweepError, match=r"^13 of 13 .*number 9; and 3 more reasons$"):
        run_cells([BASE.changed(seed=seed) for seed in range(13)], tmp_path)


def test_failures_for_one_reason_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Training(monkeypatch, {seed: ValueError("no luck") for seed in range(13)})
    with pytest.raises(SweepError, match=r"seed=0, fa .*seed=9 and 3 more: ValueError: no luck$") as caught:
        run_cells([BASE.changed(seed=seed) for seed in range(13)], tmp_path)
    assert str(caught.value).count("no luck") == 1


def test_a_grafted_cell_is_named_with_its_graft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Training(monkeypatch, {0: ValueError("no")})
    with pytest.raises(SweepError, match="graft bp/rule: ValueError: no"):
        run_cells([BASE.changed(graft={"direction": "bp", "magnitude": "rule"})], tmp_path)


def test_a_diverging_cell_is_stored_like_any_other(tmp_path: Path) -> None:
    wild = BASE.changed(task="linear_toy", activation="linear", lr=100.0, steps=100)
    names, computed = run_cells([wild, BASE], tmp_path)
    assert computed == 2
    stored = Segments(tmp_path).read(names[wild])
    assert stored["status"].item() == "diverged"
    assert 0 < stored["last_step"].item() < 100
    assert run_cells([wild, BASE], tmp_path)[1] == 0
    assert sorted(open_runs(tmp_path)["status"].values) == ["diverged", "finished"]


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        Training(patch, {2: KeyboardInterrupt()})
        with pytest.raises(KeyboardInterrupt):
            run_cells(CELLS, tmp_path)
    assert missing_cells(CELLS, tmp_path) == [CELLS[2]]
    training = Training(monkeypatch)
    run_cells(CELLS, tmp_path)
    assert training.seeds == [2]


def test_a_store_that_cannot_be_written_fails_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        run_cells(CELLS, tmp_path / "file")
    assert training.seeds == []


# Threads and processes ------------------------------------------------------------------------------------------------


def test_cells_run_on_one_thread_and_the_callers_number_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(monkeypatch, {1: ValueError("no")})
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(SweepError):
            run_cells(CELLS, tmp_path)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert training.threads == [1, 1, 1]


def test_processes_give_the_numbers_of_one_process(tmp_path: Path) -> None:
    loud = BASE.changed(rule="sign_sync", graft={"direction": "rule", "magnitude": "bp"})
    cells = [*CELLS, loud]
    counted: list[int] = []
    with pytest.raises(SweepError, match=r"^1 of 5 runs failed.*SpecError: lenet needs images"):
        run_cells([*cells, IMPOSSIBLE], tmp_path / "two", workers=2, notify=counted.append)
    assert len(counted) == 5
    run_cells(cells, tmp_path / "one")
    for spec in cells:
        name = cell_name(spec)
        one, two = (Segments(tmp_path / where).read(name).drop_vars("wall_time") for where in ("one", "two"))
        xr.testing.assert_identical(one, two)
    assert missing_cells([*cells, IMPOSSIBLE], tmp_path / "two") == [IMPOSSIBLE]


def test_a_dead_worker_is_told_as_such(tmp_path: Path) -> None:
    from concurrent.futures.process import BrokenProcessPool

    reason = sweep._reason(BrokenProcessPool("A process in the process pool was terminated abruptly"))
    assert "its worker process died" in reason
    assert "__main__" in reason
