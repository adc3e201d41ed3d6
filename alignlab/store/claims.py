"""A claim on a name in a store: while one process holds it, the others leave that name to it.

A claim is a locked temporary file (see `atomic`), so it ends with its process, however that dies and on whichever host of a
shared file system, and what it leaves is swept. Where the file system has no locks everybody gets every claim: work is then
done twice at worst, and still written once.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.store import atomic

if TYPE_CHECKING:
    from collections.abc import Iterator


def claim_file(folder: Path, name: str) -> Path:
    """The file that is locked for the claim on `name`."""
    return folder / f".{name}.claim{atomic.SUFFIX}"


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Hold the claim on `name` for the block; yields False, at once, where another process or thread holds it.

    Raises:
        StoreError: where `folder` cannot be written.
    """
    path = claim_file(folder, name)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise atomic.cannot_write(folder, error) from error
    held = False
    try:
        held = _locked(descriptor)
        yield held
    finally:
        if held:
            path.unlink(missing_ok=True)  # before the lock goes, lest it be another's by then
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        atomic.lock(descriptor)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0  # 0: its holder was done between our open and our lock
