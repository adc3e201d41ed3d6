"""One process imports for all workers, beside its caller; it ends with its caller, and hides nothing of its environment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from worker_jobs import environment, gone, parent

from alignlab.training import forking
from alignlab.training.workers import Workers

JOBS = str(Path(__file__).parent)
linux = pytest.mark.skipif(sys.platform != "linux", reason="worker processes are forked on Linux alone")
SERVER = "from multiprocessing import forkserver; print(forkserver._forkserver._forkserver_pid, flush=True)"


def run(code: str, folder: Path, **environment: str) -> str:
    """What it prints. Waits for itself alone, not for what it has started."""
    printed = folder / "printed"
    with printed.open("w") as out:
        command = [sys.executable, "-c", code]
        subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, check=True, env=os.environ | environment
        )
    return printed.read_text().strip()


def test_it_is_started_without_torch(tmp_path: Path) -> None:
    code = "import sys; from alignlab.training import forking; forking.start(); print('torch' in sys.modules)"
    assert run(code, tmp_path) == "False"


@linux
def test_it_ends_with_its_caller_though_it_has_not_imported_all(tmp_path: Path) -> None:
    code = f"from alignlab.training import forking; forking.start(); forking.start(); {SERVER}"
    assert gone([int(run(code, tmp_path))], 0.5)


@linux
def test_the_callers_own_is_left_alone(tmp_path: Path) -> None:
    code = (
        "from multiprocessing import forkserver; forkserver.ensure_running(); one = forkserver._forkserver._forkserver_pid\n"
        "from alignlab.training import forking; print(forking.start(), forkserver._forkserver._forkserver_pid == one)"
    )
    assert run(code, tmp_path) == "spawn True"


@linux
def test_where_there_can_be_none_workers_are_spawned(tmp_path: Path) -> None:
    long = tmp_path / ("a" * 100)
    long.mkdir()
    code = "from alignlab.training import forking; print(forking.start())"
    assert run(code, tmp_path, TMPDIR=str(long)) == "spawn"


@linux
def test_modules_of_the_callers_folder_are_not_taken_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('not the one that was meant')")
    monkeypatch.chdir(tmp_path)
    code = (
        f"import sys; sys.path.remove(''); from alignlab.training import forking\n"
        f"from worker_jobs import parent; from alignlab.training.workers import Workers; sys.path.append({JOBS!r})\n"
        "with Workers(2) as some: print(len(dict(some.each(parent, [0, 1]))))"
    )
    assert run(code, tmp_path, PYTHONSAFEPATH="", PYTHONPATH=JOBS) == "2"


def test_its_environment_is_not_the_callers() -> None:
    before = dict(os.environ)
    forking.start()
    assert dict(os.environ) == before


def test_two_threads_that_start_workers_at_once_leave_the_environment_as_it_was() -> None:
    before, begun = dict(os.environ), threading.Event()

    def first() -> None:
        with forking.environment():
            begun.set()
            time.sleep(0.1)

    def second() -> None:
        begun.wait()
        with forking.environment():
            time.sleep(0.2)

    with ThreadPoolExecutor(2) as pool:
        for thread in [pool.submit(first), pool.submit(second)]:
            thread.result()
    assert dict(os.environ) == before


@linux
def test_workers_come_from_one_process_and_have_what_the_caller_set_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parents = set()
    for value in ("one", "two"):
        monkeypatch.setenv("ALIGNLAB_TEST", value)
        with Workers(2) as some:
            found = dict(some.each(environment, ["ALIGNLAB_TEST", "MALLOC_ARENA_MAX"]))
            parents |= set(dict(some.each(parent, [0, 1])).values())
        assert found == {"ALIGNLAB_TEST": value, "MALLOC_ARENA_MAX": "1"}
    assert len(parents - {os.getpid()}) == len(parents) == 1
