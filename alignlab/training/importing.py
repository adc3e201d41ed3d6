"""Modules of the user's own, which add rules to ``RULES`` and tasks to ``TASKS``: imported here by name, and by every worker
before its first job. So are, where a worker finds them, those that define the rules, draws and tasks that are there."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from alignlab.training.errors import SpecError, SweepError

_imported: list[str] = []


def import_own(modules: Iterable[str]) -> None:
    """Import modules, also from the current folder. Raises :class:`SpecError` where one cannot be imported."""
    with suppress(FileNotFoundError):  # it may have been removed
        folder = os.getcwd()
        if folder not in sys.path:
            sys.path.append(folder)  # last, so that a file there stands in no other module's place
    for name in modules:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            hint = f"; give a module's name, {name[:-3]}, not its file" if name.endswith(".py") else ""
            raise SpecError(f"cannot import {name!r} ({type(error).__name__}: {error}){hint}") from error
        if name not in _imported:
            _imported.append(name)


def ready(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function, for a worker that imports first what was imported here."""
    modules = tuple(_imported), _defining()
    return _Ready(function, *modules) if any(modules) else function


def _defining() -> tuple[str, ...]:
    from alignlab.rules import INITS, RULES
    from alignlab.training.tasks import TASKS

    things = (*RULES.values(), *INITS.values(), *TASKS.values())
    modules = dict.fromkeys(str(getattr(thing, "__module__", "__main__")) for thing in things)
    return tuple(name for name in modules if name.partition(".")[0] not in ("alignlab", "__main__"))


class _Ready:
    """The function itself, once it is unpickled: before its job is, which may hold what the modules define."""

    def __init__(
        self, function: Callable[[Any], Any], modules: tuple[str, ...], defining: tuple[str, ...]
    ) -> None:
        self.function, self.modules, self.defining = function, modules, defining
        self.__name__ = function.__name__

    def __call__(self, job: Any) -> Any:
        return self.function(job)

    def __reduce__(self) -> tuple[Any, ...]:
        return _imported_first, (self.function, self.modules, self.defining)


def _imported_first(
    function: Callable[[Any], Any], modules: tuple[str, ...], defining: tuple[str, ...]
) -> Callable[[Any], Any]:
    try:
        import_own(modules)
    except SpecError as error:
        raise SweepError(
            f"the worker on {socket.gethostname()}: {error}: put it where workers look for modules (PYTHONPATH)"
        ) from error
    for name in defining:  # the jobs may need none of them
        with suppress(SpecError):
            import_own([name])
    return function
