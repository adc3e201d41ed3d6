"""A claim is one holder's at a time, ends with the process that holds it, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignlab.store import Segments, StoreError, atomic
from alignlab.store.claims import claim_file, claimed


def test_a_claim_has_one_holder(tmp_path: Path) -> None:
    with claimed(tmp_path, "a") as first, claimed(tmp_path, "a") as second, claimed(tmp_path, "b") as other:
        assert (first, second, other) == (True, False, True)
    with claimed(tmp_path, "a") as again:
        assert again
    assert list(tmp_path.iterdir()) == []


def test_who_was_refused_leaves_the_holders_claim_alone(tmp_path: Path) -> None:
    with claimed(tmp_path, "a"):
        for _ in range(2):
            with claimed(tmp_path, "a") as refused:
                assert not refused
        assert claim_file(tmp_path, "a").exists()


def test_a_claim_opened_before_its_holder_was_done_is_not_had(tmp_path: Path) -> None:
    real, path = os.open, claim_file(tmp_path, "a")

    def late(*args: object) -> int:
        descriptor = real(*args)  # type: ignore[arg-type]
        path.unlink()  # what the holder does at this moment
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", late)
        with claimed(tmp_path, "a") as had:
            assert not had


def test_an_error_within_ends_the_claim(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path, "a"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_leaves_its_claim_to_others_and_its_file_to_the_sweep(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\nfrom alignlab.store.claims import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1]), 'a'):\n    print('mine', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with claimed(tmp_path, "a") as had:
        assert not had
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    old = time.time() - 2 * atomic.FRESH
    os.utime(claim_file(tmp_path, "a"), (old, old))
    atomic.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_gives_every_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "lock", lambda descriptor: False)
    with claimed(tmp_path, "a") as first, claimed(tmp_path, "a") as second:
        assert first
        assert second


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(StoreError, match=f"cannot write {tmp_path}: Read-only"), claimed(tmp_path, "a"):
        pass


def test_claims_are_no_segments(tmp_path: Path) -> None:
    with claimed(tmp_path, "a"):
        assert Segments(tmp_path).names() == []
