"""What a worker does with a job: takes what is still to do, fails for single cells, and refuses what it is not fit for."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

from alignlab.rules import RULES, Rule
from alignlab.store import Segments, StoreError, atomic
from alignlab.store.claims import Claims
from alignlab.training import RunSpec, cells, train
from alignlab.training.cells import Job, Outcome, run_cell, run_job
from alignlab.training.errors import SpecError, SweepError
from alignlab.training.naming import cell_name, code_hash
from alignlab.training.population import train_population
from alignlab.training.sweep import Sweep

BASE = RunSpec(task="xor", hidden=(3,), rule="fa", batch_size=2, steps=2, evaluations=2, record_every=0)
CELLS = tuple(BASE.changed(seed=seed) for seed in range(4))
DONE, THERE, BUSY = Outcome("computed"), Outcome("there"), Outcome("busy")


def job(store: Path, *, lockstep: bool = False) -> Job:
    return Job(CELLS, tuple(map(cell_name, CELLS)), store, code_hash(), "mark", lockstep)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Claims(tmp_path) as claims:
        assert claims.take("mark")
        assert claims.take("another")
        yield tmp_path


NO_LUCK = ValueError("no luck")


def trained(failing: int, tried: list[list[int]], error: BaseException = NO_LUCK) -> Any:
    """Stands in for ``train_population``; fails where one seed is among those asked for."""

    def stand_in(specs: list[RunSpec], device: torch.device) -> list[xr.Dataset]:
        tried.append([spec.seed for spec in specs])
        if failing in tried[-1]:
            raise error
        return [train(spec) for spec in specs]

    return stand_in


@pytest.mark.parametrize("lockstep", [False, True])
def test_a_job_computes_what_is_neither_stored_nor_under_way(store: Path, lockstep: bool) -> None:
    own = job(store, lockstep=lockstep)
    another = replace(own, sweep="another")
    with Claims(store) as others:
        assert others.take(own.names[2])
        assert run_job(replace(another, specs=own.specs[:1], names=own.names[:1])) == [DONE]
        assert run_job(own) == [THERE, DONE, BUSY, DONE]
    assert run_job(another) == [DONE, THERE, DONE, THERE]  # what either did, whenever it is asked
    assert run_job(own) == [THERE, DONE, THERE, DONE]


def test_a_run_that_is_copied_there_meanwhile_costs_no_other(store: Path, tmp_path: Path) -> None:
    own = job(store)
    run_cell(CELLS[1], tmp_path / "elsewhere", own.names[1])
    whole = Segments(tmp_path / "elsewhere").file(own.names[1]).read_bytes()
    Segments(store).file(own.names[1]).write_bytes(whole[: len(whole) // 2])
    assert run_job(own) == [DONE, THERE, DONE, DONE]


def test_a_cell_that_another_stored_while_it_was_trained_is_no_failure(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a file system has no locks, and both have its claim."""
    own = job(store)

    def slow(spec: RunSpec, device: torch.device) -> xr.Dataset:
        cells._store(train(spec), store, own.names[0])
        return train(spec)

    monkeypatch.setattr(cells, "train", slow)
    assert run_job(replace(own, specs=own.specs[:1], names=own.names[:1])) == [DONE]


def test_a_cell_stored_just_before_its_claim_ended_is_not_computed_again(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = job(store)

    def late(self: Claims, name: str) -> bool:
        monkeypatch.undo()
        run_cell(CELLS[0], store, name)  # another's, whose claim is gone by now
        return True

    monkeypatch.setattr(Claims, "take", late)
    assert run_job(replace(own, specs=own.specs[:1], names=own.names[:1])) == [THERE]


def test_a_pack_fails_only_for_those_that_cannot_be_trained(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[int]] = []
    monkeypatch.setattr(cells, "train_population", trained(2, tried))
    failed = Outcome("failed", "ValueError: no luck")
    assert run_job(job(store, lockstep=True)) == [DONE, DONE, failed, DONE]
    assert tried == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3]]


def test_a_loss_that_calls_exit_costs_no_other_cell(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended the sweep, or one worker after the other."""
    monkeypatch.setattr(cells, "train_population", trained(2, [], SystemExit("no\ndata")))
    failed = Outcome("failed", "SystemExit: no data")
    assert run_job(job(store, lockstep=True)) == [DONE, DONE, failed, DONE]


class Mute(Exception):
    def __str__(self) -> str:
        return self.message  # type: ignore[attr-defined, no-any-return]  # which it never got


def test_an_error_that_cannot_tell_what_it_is_costs_no_other_cell(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "train_population", trained(2, [], Mute()))
    failed = Outcome("failed", "Mute: an error whose message cannot be read")
    assert run_job(job(store, lockstep=True)) == [DONE, DONE, failed, DONE]


class Stop(BaseException):
    """What no ``except Exception`` catches."""


@pytest.mark.parametrize("error", [Stop("no"), GeneratorExit("no"), asyncio.CancelledError("no")], ids=repr)
def test_what_ends_no_worker_costs_no_other_cell_there_and_ends_the_callers_own_process(
    error: BaseException, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dask never tells of it, and the sweep waited for ever. In this process a signal's handler may have raised it."""
    monkeypatch.setattr(cells, "train_population", trained(2, [], error))
    with ThreadPoolExecutor(1) as worker:
        found = worker.submit(run_job, job(store, lockstep=True)).result()
    assert found == [DONE, DONE, Outcome("failed", f"{type(error).__name__}: no"), DONE]
    with pytest.raises(type(error)):
        run_job(job(store, lockstep=True))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("out"), RuntimeError("can't allocate memory")], ids=repr
)
def test_where_memory_runs_out_halves_are_trained_and_nothing_is_lost(
    store: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def train(specs: Sequence[RunSpec], device: torch.device) -> list[xr.Dataset]:
        tried.append(len(specs))
        if len(specs) > 2:
            raise error
        return train_population(specs)

    monkeypatch.setattr(cells, "train_population", train)
    assert run_job(job(store, lockstep=True)) == [DONE] * 4
    assert tried == [4, 2, 2]


@pytest.mark.parametrize("lockstep", [False, True])
def test_a_full_disk_costs_the_cells_that_had_no_room(
    store: Path, lockstep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, write = job(store, lockstep=lockstep), atomic.write_new

    def full(path: Path, content: bytes) -> None:
        if path.stem == own.names[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_new", full)
        outcomes = run_job(own)
    assert [outcome.state for outcome in outcomes] == ["computed", "failed", "computed", "computed"]
    assert "No space left on device; free some space" in outcomes[1].reason
    assert run_job(replace(own, sweep="another")) == [THERE, DONE, THERE, THERE]


def test_a_claim_without_room_is_a_failure_of_its_cell(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_with(number: int) -> Any:
        def refused(self: Claims, name: str) -> bool:
            raise atomic.cannot_write(store, OSError(number, os.strerror(number))) from OSError(number, "")

        return refused

    own = job(store)
    monkeypatch.setattr(Claims, "take", fail_with(errno.ENOSPC))
    assert {outcome.state for outcome in run_job(own)} == {"failed"}
    monkeypatch.setattr(Claims, "take", fail_with(errno.EROFS))
    with pytest.raises(SweepError, match=r"the worker on \S+: cannot write .*Read-only"):
        run_job(own)


def test_a_worker_with_other_code_or_another_folder_refuses(tmp_path: Path, store: Path) -> None:
    own = job(store)
    with pytest.raises(SweepError, match=rf"\(hash {code_hash()}\) than the sweep \(hash 0123\)"):
        run_job(replace(own, code="0123"))
    with pytest.raises(SweepError, match=r"does not see the sweep's store .*elsewhere"):
        run_job(replace(own, store=tmp_path / "elsewhere"))
    assert Segments(store).names() == []


def test_a_spec_that_changed_after_it_was_named_is_not_stored(tmp_path: Path) -> None:
    spec = BASE.changed(rule_args={"init": "xavier"})
    sweep = Sweep([spec, CELLS[0]], tmp_path)
    spec.rule_args["init"] = "kaiming"
    with pytest.raises(SpecError, match=r"^fa lr=0.05 seed=0 changed after the sweep named it"):
        sweep.run()
    assert list(tmp_path.iterdir()) == []


def test_a_job_whose_data_changed_on_the_way_is_not_stored(store: Path) -> None:
    own = job(store)
    first, *others = run_job(replace(own, names=("another", *own.names[1:])))
    assert first.state == "failed"
    assert first.reason.startswith("its spec or its data changed after the sweep began")
    assert others == [DONE] * 3


def test_a_cell_that_holds_another_run_is_told_by_who_reads_it(tmp_path: Path) -> None:
    from alignlab.audit import Arm, Claim
    from alignlab.audit.bench import Bench

    Sweep(CELLS, tmp_path).run()
    (tmp_path / f"{cell_name(CELLS[0])}.nc").replace(tmp_path / f"{cell_name(CELLS[1])}.nc")
    claim = Claim(
        statement="a",
        treatment=Arm(rule="fa"),
        baseline=Arm(rule="bp"),
        task="xor",
        smallest_effect=0.1,
        seeds=(0, 1),
    )
    bench = Bench(claim, tmp_path)
    bench.run("all", CELLS)
    with pytest.raises(
        StoreError, match=f"{cell_name(CELLS[1])}.nc holds a run of another spec .* fa lr=0.05 seed=1"
    ):
        bench.values(CELLS)


class Own(Rule):
    """A rule that the caller has put into RULES, and a worker has not."""

    name = "own"


def test_a_rule_that_a_worker_does_not_know_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as caller:
        caller.setitem(RULES, "own", Own)
        spec = BASE.changed(rule="own")
        asked = Job((spec,), (cell_name(spec),), store, code_hash(), "mark")
    (outcome,) = run_job(asked)
    assert outcome.state == "failed"
    assert "unknown rule 'own'" in outcome.reason
    assert "put a rule of your own into RULES where workers do too" in outcome.reason
