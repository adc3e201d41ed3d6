"""Claims on names in a store: while one process holds a claim, the others leave that name to it.

A holder has one locked temporary file (see `atomic`), and each of its claims is a link to it, made in one step. So claims end
with their process, however that dies and on whichever host of a shared file system, a thousand of them take one descriptor,
and what they leave is swept. Where a file system has no locks or links everybody gets every claim: work is then done twice
at worst, and still written once.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Self

from alignlab.store import atomic


def claim_file(folder: Path, name: str) -> Path:
    """The file that stands for the claim on `name`."""
    return folder / f".{name}.claim{atomic.SUFFIX}"


class Claims:
    """The claims of one holder in `folder`; a context manager, at whose end they end.

    Raises:
        StoreError: where `folder` cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._files = folder, [claim_file(folder, uuid.uuid4().hex)]

    def __enter__(self) -> Self:
        try:
            self._descriptor = os.open(self._files[0], os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise atomic.cannot_write(self.folder, error) from error
        atomic.lock(self._descriptor)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for path in self._files:  # before the lock goes, lest they be another's by then
                with suppress(OSError):  # a disk may be read-only by now
                    path.unlink()
        finally:
            os.close(self._descriptor)  # without its lock what is left is nobody's

    def take(self, name: str) -> bool:
        """Claim `name`; False, at once, where another holds it."""
        path = claim_file(self.folder, name)
        try:
            if path.exists() and not _freed(path):
                return False
            os.link(self._files[0], path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in atomic.NO_LINKS:
                return True
            raise atomic.cannot_write(self.folder, error) from error
        self._files.append(path)
        return True


def _freed(path: Path) -> bool:
    """Whether a claim is nobody's any more; what a dead holder left is removed."""
    try:
        descriptor = _to_lock(path)
    except FileNotFoundError:
        return True
    try:
        atomic.lock(descriptor)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # not another's claim since
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    finally:
        os.close(descriptor)
    return True


def _to_lock(path: Path) -> int:
    """A descriptor to try the lock by: one to write by, which network file systems ask for, or else to read by."""
    try:
        return os.open(path, os.O_RDWR)
    except PermissionError:  # another user's
        return os.open(path, os.O_RDONLY)
