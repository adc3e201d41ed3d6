"""One process imports for all workers, beside its caller; it ends with its caller, and hides nothing of its environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from worker_jobs import alive, environment, parent

from alignlab.training import forking
from alignlab.training.workers import Workers

linux = pytest.mark.skipif(
    forking.METHOD != "forkserver", reason="worker processes are forked on Linux alone"
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_it_is_started_without_torch() -> None:
    code = "import sys; from alignlab.training import forking; forking.start(); print('torch' in sys.modules)"
    assert run(code) == "False"


@linux
def test_it_ends_with_its_caller() -> None:
    code = (
        "from alignlab.training import forking; forking.start(); forking.start()\n"
        "from multiprocessing import forkserver; print(forkserver._forkserver._forkserver_pid)"
    )
    assert not alive(int(run(code)))


def test_its_environment_is_not_the_callers() -> None:
    before = dict(os.environ)
    forking.start()
    assert dict(os.environ) == before


@linux
def test_workers_come_from_one_process_and_have_the_callers_environment_of_now(
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
