"""Files and folders that are whole or not there: write under a temporary name, fsync, then give the name in one step.

While it writes, a writer holds an advisory lock on its temporary. The kernel drops the lock when the process dies,
however it dies and on whichever host of a shared file system, so `sweep` can tell a leftover from work in progress.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIX = ".tmp"
FRESH = 60.0  # s; a younger temporary may be between its creation and its lock
ABANDONED = 86400.0  # s; where the file system has no locks, a temporary of this age counts as left behind

_WAYS_OUT = {
    errno.ENOSPC: "free some space there, or choose a folder on another disk",
    errno.EDQUOT: "your quota is used up: free some space, or choose a folder on another disk",
    errno.EFBIG: "the limit on file sizes (ulimit -f) is too low, or flush more often",
    errno.EMFILE: "close some, or raise the limit on open files (ulimit -n)",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOTDIR: "a file lies in the way: choose another folder",
    errno.EEXIST: "a file lies in the way: choose another folder",
    errno.ENAMETOOLONG: "choose a shorter run_id or name",
}
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def cannot_write(path: Path, error: OSError) -> StoreError:
    """The error to raise for an `OSError` while writing `path`."""
    way_out = _WAYS_OUT.get(error.errno or 0, "choose a folder that exists or can be made")
    return StoreError(f"cannot write {path}: {error.strerror or error}; {way_out}")


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises StoreError where that cannot be."""
    if "\0" in str(path):
        raise StoreError(f"cannot write {str(path)!r}: a name has no null character; choose another folder")
    try:
        missing = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        if missing:
            fsync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_new(path: Path, content: bytes) -> None:
    """Write a new file that appears whole and on disk, or not at all.

    Raises:
        FileExistsError: where `path` exists already; it is left as it is.
        OSError: where it cannot be written; nothing is left behind.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with temporary_name(path) as temporary:
        descriptor = os.open(temporary, flags, 0o666)
        try:
            lock(descriptor)
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)  # unlocked before it can be seen: HDF5 refuses to read a locked file
        os.utime(temporary)  # and fresh, lest it be swept on the way
        _publish(temporary, path)
    fsync(path.parent)


@contextlib.contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`; whatever bears it at the end of the block is removed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{SUFFIX}")
    try:
        yield temporary
    finally:
        _remove(temporary)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Make the folder `path` and hold its lock, so that `sweep` leaves it alone."""
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def replace_folder(temporary: Path, path: Path) -> None:
    """Give a folder its name. One that bears it is moved aside first, and back again where that fails.

    No file system that Python knows exchanges two folders in one step: for an instant there is none, never half a one.
    """
    aside = temporary.with_name(temporary.name.removesuffix(SUFFIX) + f".old{SUFFIX}")
    if path.exists():
        os.replace(path, aside)
    try:
        os.replace(temporary, path)
    except OSError:
        if aside.exists():
            os.replace(aside, path)
        raise
    fsync(path.parent)
    _remove(aside)


def fsync(path: Path) -> None:
    """Bring a file's content or a folder's names to disk, where the file system can do that."""
    if os.name == "nt":  # has no way to do this
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove temporaries in `folder` whose writers are dead; never fails."""
    with contextlib.suppress(OSError):
        found = [*folder.glob(f".*{SUFFIX}")]
        now = _now(folder) if found else 0.0
        for path in found:
            if _left_behind(path, now):
                _remove(path)


def _publish(temporary: Path, path: Path) -> None:
    """Give the temporary its name, which must be free: a link fails where `os.replace` would overwrite."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        os.replace(temporary, path)


def _now(folder: Path) -> float:
    """The time by the clock that dates files in a folder: a file server's, of which this machine's may be far off."""
    with temporary_name(folder / "clock") as probe:
        probe.touch()
        return probe.stat().st_mtime


def _left_behind(path: Path, now: float) -> bool:
    try:
        age = now - path.stat().st_mtime
        if age < FRESH:
            return False
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        return False
    try:
        return lock(descriptor) or age > ABANDONED
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Take the lock; False where the file system has none. Raises BlockingIOError where another holds it."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return False
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
