"""Whether what runs is what its file says: a module that was edited after it was imported runs on as it was, and a store that
went by the file would hold the old code's numbers under the new code's name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

from alignlab.training.errors import SpecError


def check_unedited(codes: Iterable[CodeType], file: str, module: str) -> None:
    """Raise :class:`SpecError` where one of the functions' ``codes`` is no more what ``file`` holds.

    Of modules that Python itself made from their files alone: pytest, for one, writes other code than theirs.
    """
    if type(getattr(sys.modules.get(module), "__loader__", None)) is not SourceFileLoader:
        return
    about = Path(file).stat()
    there = _codes_of(file, about.st_mtime_ns, about.st_size)
    own = [code for code in codes if code.co_filename == file]
    if not there.issuperset(own):
        raise SpecError(
            f"{file} was edited after it was imported: what runs is not what it says, and a store goes by that. Restart "
            f"Python, or import it anew: importlib.reload({module})"
        )


@functools.lru_cache(maxsize=64)
def _codes_of(file: str, time: int, size: int) -> frozenset[CodeType]:
    """Of all that the file defines; nothing where it is not Python any more."""
    try:
        return frozenset(_within(compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):
        return frozenset()


def _within(code: CodeType) -> Iterator[CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _within(part)
