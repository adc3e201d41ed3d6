"""Processes are kept between calls, end when they are to, and one that dies costs no job that another can do."""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import pickle
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import dask
import pytest
from worker_jobs import (
    OfAnotherVersion,
    alive,
    die,
    gone,
    home_of,
    leave_pid,
    leave_pid_and_stay,
    page_faults,
    pids,
    threads,
)

from alignlab.rules import RULES, Rule
from alignlab.training import importing, workers
from alignlab.training.errors import SweepError
from alignlab.training.forking import THREADS
from alignlab.training.starting import DEATHS
from alignlab.training.workers import Lost, Workers, opened

ENVIRONMENT = dict(os.environ)


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with Workers(2) as started:
        assert list(started.each(threads, [THREADS] * 2)) == [(THREADS, [1, "1", "1", "1"])] * 2
        yield started


def results(some: Workers, function: Any, jobs: list[Any]) -> list[Any]:
    """In the order of the jobs, which must differ."""
    found = dict(some.each(function, jobs))
    return [found[job] for job in jobs]


@pytest.mark.parametrize("where", [0, -1, False, None, "", " ", 2.0, [2]])
def test_what_is_no_workers_is_refused(where: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"workers is {where!r}, expected a number of at least 1")):
        Workers(where)


@pytest.mark.parametrize(("count", "jobs"), [(1, 3), (2, 1), (2, 0)])
def test_no_process_is_started_without_need(count: int, jobs: int, tmp_path: Path) -> None:
    with Workers(count) as some:
        assert len(list(some.each(leave_pid, [(tmp_path, i) for i in range(jobs)]))) == jobs
    assert pids(tmp_path) == ({os.getpid()} if jobs else set())


def test_an_error_of_the_job_itself_is_raised() -> None:
    with Workers() as here, pytest.raises(ZeroDivisionError):
        list(here.each(lambda job: 1 / job, [0]))


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:1", "127.0.0.1:1", "nowhere://at:all", "not an address"]
)
def test_a_scheduler_that_does_not_answer_is_one_clear_line(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CONNECT", 0.3)
    with (
        Workers(address) as none,
        pytest.raises(SweepError, match=f"no dask scheduler .* {address} ") as error,
    ):
        list(none.each(leave_pid, [None]))
    assert "\n" not in str(error.value)


def test_workers_that_cannot_read_their_jobs_say_so() -> None:
    """As those with another alignlab do; each broke its connection over it, and the caller waited for ever."""
    with (
        Workers(2) as two,
        pytest.raises(SweepError, match=r"a worker cannot run cells \(TypeError: takes 4 .*install the same"),
    ):
        list(two.each(threads, [OfAnotherVersion(), OfAnotherVersion()]))


def test_jobs_may_hold_what_an_imported_module_defines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of the current folder, which workers look into when they are told to import it, and not before."""
    (tmp_path / "held_by_jobs.py").write_text("class Held:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(importing, "_imported", [])
    importing.import_own(["held_by_jobs"])
    held = sys.modules["held_by_jobs"]
    with Workers(2) as two:
        found = [home for _, home in two.each(home_of, [held.Held(), held.Held()])]
    assert found == ["held_by_jobs"] * 2


def test_workers_import_what_defines_the_rules_that_are_there_where_they_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dask worker imports no calling script, and a notebook is none."""
    module = tmp_path / "has_rule.py"
    module.write_text(
        "from alignlab.rules import RULES, Rule\nclass Own(Rule):\n    name = 'own'\nRULES['own'] = Own\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importing, "_imported", [])
    monkeypatch.setitem(RULES, "own", Rule)  # forgotten after the test
    importlib.import_module("has_rule")
    sent = cloudpickle.dumps(importing.ready(json.dumps))
    for _ in range(2):
        del sys.modules["has_rule"], RULES["own"]
        assert pickle.loads(sent)(3) == "3"
        assert RULES["own"].__module__ == "has_rule"
    del sys.modules["has_rule"], RULES["own"]
    module.unlink()
    importlib.invalidate_caches()
    assert pickle.loads(sent)(3) == "3"
    assert "own" not in RULES


@pytest.mark.skipif(os.name == "nt", reason="keeps a folder that a process is in")
def test_own_modules_are_there_although_the_current_folder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    monkeypatch.setattr(importing, "_imported", [])
    before = list(sys.path)
    importing.import_own(["json"])
    assert sys.path == before


def test_no_garbage_is_collected_while_dask_holds_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    collects = []
    monkeypatch.setattr(
        Workers, "_connected", lambda self: collects.append(gc.isenabled()) or SimpleNamespace()
    )
    Workers(2)._started()
    assert (collects, gc.isenabled()) == ([False], True)


def test_workers_have_one_thread_and_the_callers_environment_stays(two: Workers) -> None:
    assert dict(two.each(threads, [THREADS]))[THREADS] == [1, "1", "1", "1"]
    assert {name: os.environ.get(name) for name in ENVIRONMENT} == ENVIRONMENT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the pages that glibc asks Linux for")
def test_workers_keep_the_memory_that_they_will_need_again(two: Workers) -> None:
    pages = 2**20 // os.sysconf("SC_PAGE_SIZE")  # a MiB
    found = dict(two.each(page_faults, [8, 40]))
    assert found.keys() == {8, 40}
    assert all(faults < size * pages / 2 for size, faults in found.items()), found


def test_processes_are_kept_between_calls(two: Workers, tmp_path: Path) -> None:
    for group in range(4):
        assert len(list(two.each(leave_pid, [(tmp_path, 3 * group + i) for i in range(3)]))) == 3
    assert len(list(tmp_path.iterdir())) == 12
    assert 1 <= len(pids(tmp_path)) <= 2
    assert os.getpid() not in pids(tmp_path)


def test_workers_handed_in_stay_open(two: Workers, tmp_path: Path) -> None:
    with opened(two) as same:
        assert same is two
        list(same.each(leave_pid, [(tmp_path, 0)]))
    with opened(two._client) as handed:  # type: ignore[arg-type]
        list(handed.each(leave_pid, [(tmp_path, 1)]))
    assert all(map(alive, pids(tmp_path)))
    assert os.getpid() not in pids(tmp_path)


def test_a_job_whose_worker_dies_is_tried_again(two: Workers, tmp_path: Path) -> None:
    jobs = [(tmp_path, number, 1) for number in range(5)]
    assert results(two, die, jobs)[1] == 1


def test_a_job_that_kills_every_worker_is_lost_and_costs_no_other(two: Workers, tmp_path: Path) -> None:
    jobs = [(tmp_path, number, 99) for number in range(5)]
    found = results(two, die, jobs)
    assert isinstance(found[1], Lost)
    assert "died" in found[1]
    assert [type(other) for other in found[:1] + found[2:]] == [int] * 4
    assert len(list(tmp_path.iterdir())) == 1 + DEATHS


def test_a_machine_that_slept_for_an_hour_costs_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-Z or a clock that is set: no worker told dask meanwhile that it lives."""
    jobs = [(tmp_path, i) for i in range(2)]

    def sleep() -> None:
        monkeypatch.setattr("distributed.scheduler.time", lambda: time.time() + 3600)

    with dask.config.set({"distributed.scheduler.worker-ttl": "100ms"}), Workers(2) as some:
        some.start()
        threading.Timer(0.5, sleep).start()
        assert [result for _, result in some.each(leave_pid_and_stay, jobs)] == [None, None]
    assert len(list(tmp_path.iterdir())) == 2  # else a job was tried by more than one process


def test_an_interrupt_ends_the_processes_at_once_and_a_later_call_has_others(
    two: Workers, tmp_path: Path
) -> None:
    def interrupted() -> None:
        with closing(two.each(leave_pid, [(tmp_path, i) for i in range(60)])) as done:
            next(done)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert 0 < len(list(tmp_path.iterdir())) < 30  # those that ran or were handed out, not all the others
    assert gone(list(pids(tmp_path)))
    assert not multiprocessing.active_children()
    list(two.each(leave_pid, [(tmp_path, i) for i in (60, 61)]))
    assert pids(tmp_path) - {os.getpid()}
    two.close()
    assert gone(list(pids(tmp_path)), 0.0)
