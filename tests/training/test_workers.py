"""Processes are kept between calls, end when they are to, and a dead one is told, not waited for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from alignlab.training import workers
from alignlab.training.workers import Workers


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked processes start at once, and the functions of this module need no import there."""
    forked = multiprocessing.get_context("fork")
    monkeypatch.setattr(workers, "get_context", lambda method: forked)


def leave_pid(folder: Path, number: int) -> None:
    time.sleep(0.05)
    (folder / f"{number}-{os.getpid()}").touch()


def pids(folder: Path) -> set[int]:
    return {int(path.name.split("-")[1]) for path in folder.iterdir()}


def fail(number: int) -> None:
    if number % 2:
        raise ValueError(f"number {number}")


def die(number: int) -> None:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def silent(count: int) -> None:
    assert count == 1


@pytest.mark.parametrize("count", [0, -1])
def test_no_workers_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"workers is {count}"):
        Workers(count)


def test_processes_are_kept_between_calls_and_end_with_the_block(tmp_path: Path) -> None:
    with Workers(2) as two:
        for group in range(4):
            assert two.run(leave_pid, [(tmp_path, 3 * group + i) for i in range(3)], silent) == [None] * 3
        assert len(list(tmp_path.iterdir())) == 12
        assert 1 <= len(pids(tmp_path)) <= 2
        assert os.getpid() not in pids(tmp_path)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("count", "jobs"), [(1, 3), (2, 1)])
def test_no_process_is_started_without_need(count: int, jobs: int, tmp_path: Path) -> None:
    with Workers(count) as some:
        some.run(leave_pid, [(tmp_path, i) for i in range(jobs)], silent)
    assert pids(tmp_path) == {os.getpid()}


def test_no_job_does_nothing() -> None:
    with Workers(2) as two:
        assert two.run(fail, [], silent) == []
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("count", [1, 2])
def test_errors_come_back_in_the_order_of_the_jobs(count: int) -> None:
    counted: list[int] = []
    with Workers(count) as some:
        errors = some.run(fail, [(i,) for i in range(4)], counted.append)
    assert [str(error) for error in errors] == ["None", "number 1", "None", "number 3"]
    assert counted == [1] * 4


def test_an_interrupt_stops_the_processes_soon(tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    two = Workers(2)
    with pytest.raises(KeyboardInterrupt):
        two.run(leave_pid, [(tmp_path, i) for i in range(60)], interrupt)
    assert not multiprocessing.active_children()
    assert 0 < len(list(tmp_path.iterdir())) < 30  # those that ran or were handed out, not all the others


def test_a_dead_process_is_an_error_of_its_jobs_and_the_next_call_has_others(tmp_path: Path) -> None:
    with Workers(2) as two:
        errors = two.run(die, [(i,) for i in range(4)], silent)
        assert isinstance(errors[1], BrokenProcessPool)
        assert two.run(leave_pid, [(tmp_path, i) for i in range(2)], silent) == [None, None]
    assert len(list(tmp_path.iterdir())) == 2
