"""Worker processes that cannot start are one clear error, which does not guess wrong."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest
from worker_jobs import parent

from alignlab.training.errors import SweepError
from alignlab.training.workers import Workers

JOBS = str(Path(__file__).parent)
START = f"""
import sys; sys.path.append({JOBS!r})
from worker_jobs import parent
from alignlab.training.workers import Workers
if __name__ == "__main__":
    with Workers(2) as two:
        print(len(list(two.each(parent, [0, 1]))))
"""


def lines(*command: str, script: str | None = None) -> list[str]:
    """What Python prints."""
    done = subprocess.run([sys.executable, *command], input=script, capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines()


def saved(script: str, folder: Path) -> str:
    (folder / "script.py").write_text(script)
    return str(folder / "script.py")


def test_a_script_without_a_guard_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with Workers(2) as none, pytest.raises(SweepError, match="if __name__ == '__main__'"):
        list(none.each(parent, [1, 2]))


def test_a_script_that_is_no_file_is_told_so() -> None:
    found = lines("-", script=START)
    assert "<stdin>, but there is no such file: put it into a file, or run(1)" in found[-1]
    assert sum(line.startswith("Traceback") for line in found) == 1


def test_code_without_a_script_has_workers() -> None:
    assert lines("-c", START) == ["2"]


def test_a_daemonic_caller_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    with (
        Workers(2) as none,
        pytest.raises(
            SweepError, match=r"2 .* in MainProcess, which is daemonic .*: use 1, or a scheduler's"
        ),
    ):
        list(none.each(parent, [1, 2]))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Also where the tests run in the background of a shell, which has its jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no interrupt waits")
def test_an_interrupt_while_workers_start_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook they would stay until its end."""
    made: list[distributed.LocalCluster] = []

    class Interrupted(distributed.LocalCluster):
        def __init__(self, **settings: Any) -> None:
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            super().__init__(**settings)  # type: ignore[no-untyped-call]
            made.append(self)

    monkeypatch.setattr(distributed, "LocalCluster", Interrupted)
    with Workers(2) as two, pytest.raises(KeyboardInterrupt):
        two.start()
    assert [cluster.status.name for cluster in made] == ["closed"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no forks")
def test_a_process_forked_from_one_that_had_workers_is_told_so(tmp_path: Path) -> None:
    """Where it has none of dask's threads, it would wait for ever."""
    forked = """
    import multiprocessing
    def again():
        with Workers(2) as two:
            list(two.each(parent, [0, 1]))
    child = multiprocessing.get_context("fork").Process(target=again)
    child.start()
    child.join(30)
    child.kill()
"""
    found = lines(saved(START + forked, tmp_path))
    assert found[0] == "2"
    assert (
        "2 worker processes were asked for in ForkProcess-3, which was forked from one that had some"
        in found[-1]
    )


@pytest.mark.skipif(os.name == "nt", reason="has no signals")
def test_a_worker_that_is_killed_as_it_starts_is_told_with_its_signal(tmp_path: Path) -> None:
    kill = 'if __name__ != "__main__": import os; os.kill(os.getpid(), 9)\n'
    found = lines(saved(kill + START, tmp_path))[-1]
    assert "did not start (Worker process " in found
    assert "was killed by signal 9). " in found


def test_a_worker_that_fails_as_it_starts_is_told_with_what_it_raised(tmp_path: Path) -> None:
    found = lines(saved('if __name__ != "__main__": raise ZeroDivisionError("mine")\n' + START, tmp_path))
    assert "ZeroDivisionError: mine" in found
    assert "did not start (Worker process " in found[-1]
