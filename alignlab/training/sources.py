"""Which code a function or a class is, by its file, and whether what runs is what that says.

A module that was edited after it was imported runs on as it was: a store that went by the file would hold the old code's
numbers under the new code's name. For :mod:`alignlab.training.identity`.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from alignlab.training.errors import SpecError
from alignlab.training.referring import installed, known

_named: dict[Any, tuple[list[CodeType], str]] = {}


def code_of(thing: Any, file: str, module: str) -> str:
    """A hash of the file, as it was when the code of a function or class was first asked for.

    By the function or class itself: after a reload there is another one of the name, and perhaps another content; where
    IPython's autoreload puts the edited code into the old one, it is the code that is another. Raises :class:`SpecError`
    where there is no file, or it was edited after it was imported.
    """
    if known(file):
        return f"of {module}"
    codes = _codes_in(thing)
    before, found = _named.get(thing, ([], ""))
    if not found or list(map(id, before)) != list(map(id, codes)):
        if not file or not Path(file).is_file():
            raise SpecError(
                f"{thing.__qualname__} comes from no file ({module}), so that a store could not tell a changed one from "
                "this: put it into a module and import it, or train(spec) without a store"
            )
        if not installed(file):
            _check_unedited(codes, file, module)
        found = content(file)
        _named[thing] = codes, found
    return found


def content(file: str) -> str:
    """A hash of what is in it."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def _codes_in(thing: Any) -> list[CodeType]:
    parts = list(vars(thing).values()) if isinstance(thing, type) else [thing]
    return [part.__code__ for part in parts if isinstance(part, FunctionType)]


def _check_unedited(codes: Iterable[CodeType], file: str, module: str) -> None:
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
