"""A claim is one holder's at a time, ends with the process that holds it, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alignlab.store import Segments, StoreError, atomic
from alignlab.store.claims import Claims, claim_file


def test_a_claim_has_one_holder(tmp_path: Path) -> None:
    with Claims(tmp_path) as mine, Claims(tmp_path) as others:
        assert [mine.take("a"), others.take("a"), others.take("b"), mine.take("b")] == [
            True,
            False,
            True,
            False,
        ]
    with Claims(tmp_path) as again:
        assert again.take("a")
    assert list(tmp_path.iterdir()) == []


def test_who_was_refused_leaves_the_holders_claim_alone(tmp_path: Path) -> None:
    with Claims(tmp_path) as mine:
        mine.take("a")
        for _ in range(2):
            with Claims(tmp_path) as others:
                assert not others.take("a")
        assert claim_file(tmp_path, "a").exists()


def test_a_claim_made_while_one_looks_is_its_makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Claims(tmp_path) as mine, Claims(tmp_path) as others:

        def looking(path: Path) -> bool:
            monkeypatch.undo()
            return not others.take("a")

        monkeypatch.setattr(Path, "exists", looking)
        assert not mine.take("a")


def test_an_old_claim_that_was_renewed_while_one_looks_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = claim_file(tmp_path, "a")
    path.touch()  # of one who is dead
    with Claims(tmp_path) as others, Claims(tmp_path) as mine:
        real = os.open

        def late(*args: Any) -> int:
            descriptor = real(*args)
            monkeypatch.setattr(os, "open", real)
            assert others.take("a")
            return descriptor

        monkeypatch.setattr(os, "open", late)
        assert not mine.take("a")
        assert path.samefile(others._files[0])


def test_another_users_claim_holds_while_she_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def of_another(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR and not flags & os.O_CREAT:  # what she may write, a group may only read
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *mode)

    with Claims(tmp_path) as mine:
        with Claims(tmp_path) as hers:
            assert hers.take("a")
            monkeypatch.setattr(os, "open", of_another)
            assert not mine.take("a")
        claim_file(tmp_path, "a").touch()  # of one who is dead
        assert mine.take("a")


def test_an_error_within_ends_the_claims(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Claims(tmp_path) as claims:
        assert claims.take("a") / 0
    assert list(tmp_path.iterdir()) == []


def test_claims_end_although_their_files_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that became read-only. Where it is writable again, the same process takes them."""

    def refused(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as readonly, Claims(tmp_path) as claims:
        assert claims.take("a")
        readonly.setattr(Path, "unlink", refused)
    with Claims(tmp_path) as again:
        assert again.take("a")


def test_a_second_interrupt_as_claims_end_leaves_them_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    claims = Claims(tmp_path).__enter__()
    assert claims.take("a")
    with monkeypatch.context() as twice:
        twice.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            claims.__exit__()
    with Claims(tmp_path) as again:
        assert again.take("a")


def test_thousands_of_claims_take_one_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with Claims(tmp_path) as claims:
        assert all([claims.take(str(i)) for i in range(2000)])
        assert len(os.listdir("/dev/fd")) == before + 1


def test_a_killed_holder_leaves_its_claims_to_others_and_its_files_to_the_sweep(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\nfrom alignlab.store.claims import Claims\n"
        "with Claims(pathlib.Path(sys.argv[1])) as claims:\n    print(claims.take('a'), claims.take('b'), flush=True)\n"
        "    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"True True\n"
    with Claims(tmp_path) as mine:
        assert not mine.take("a")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with Claims(tmp_path) as mine:
        assert mine.take("a")
    assert len(list(tmp_path.iterdir())) == 2  # the holder's own, and "b"
    old = time.time() - 2 * atomic.FRESH
    os.utime(claim_file(tmp_path, "b"), (old, old))
    atomic.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lacking", ["locks", "links"])
def test_a_file_system_without_locks_or_links_gives_every_claim(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if lacking == "locks":
        monkeypatch.setattr(atomic, "lock", lambda descriptor: False)
    else:
        monkeypatch.setattr(os, "link", refused)
    with Claims(tmp_path) as mine, Claims(tmp_path) as others:
        assert mine.take("a")
        assert others.take("a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(StoreError, match=f"cannot write {tmp_path}: Read-only"), Claims(tmp_path):
        pass


def test_claims_are_no_segments(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        claims.take("a")
        assert Segments(tmp_path).names() == []
