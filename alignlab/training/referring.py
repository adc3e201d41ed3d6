"""What a function's code refers to, and whose it is: the globals that it names, what it names of modules, and of those that it
imports as it runs. For :mod:`alignlab.training.identity`."""

from __future__ import annotations

import dis
import functools
import importlib.util
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

INSTALLED = ("site-packages", "dist-packages")
KNOWN = tuple(
    Path(file).resolve().parent for file in (Path(__file__).parent, str(torch.__file__), str(np.__file__))
)
PYTHON = Path(sysconfig.get_paths()["stdlib"]).resolve()


def named_by(thing: FunctionType) -> Iterator[Any]:
    """The globals that a function's code names, and what it names of the user's own modules among them."""
    names = sorted(_names(thing.__code__))
    for found in (thing.__globals__[name] for name in names if name in thing.__globals__):
        yield from _of_module(found, names) if isinstance(found, ModuleType) else (found,)
    for module in _imported_by(thing.__code__, thing.__globals__):
        yield from _of_module(module, names)


def _of_module(module: ModuleType, names: list[str]) -> Iterator[Any]:
    """What has one of these names in a module of the user's own, or in one that it holds: ``package.losses.pinball``."""
    file = getattr(module, "__file__", None) or ""
    if file and not is_users_file(file):
        return
    for found in (vars(module)[name] for name in names if name in vars(module)):
        if not isinstance(found, ModuleType):
            yield from [found] if file else []  # of a package without a file, its modules alone
        elif found.__name__.startswith(f"{module.__name__}."):
            yield from _of_module(found, names)


def _imported_by(code: CodeType, space: Mapping[str, Any]) -> Iterator[ModuleType]:
    """The modules of the user's own that a function imports as it runs."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for place, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            yield from _imported(step.argval, steps[place - 2].argval, steps[place - 1].argval, space)
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _imported_by(part, space)


def _imported(
    name: str, level: int, parts: tuple[str, ...] | None, space: Mapping[str, Any]
) -> Iterator[ModuleType]:
    with suppress(Exception):  # one that is not here fails where it is needed
        whole = importlib.util.resolve_name("." * level + name, space.get("__package__") or "")
        for module in (whole, *(f"{whole}.{part}" for part in parts or ())):
            found = importlib.util.find_spec(module)
            if found is not None and is_users_file(found.origin or ""):
                yield importlib.import_module(module)


def _names(code: CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def is_users_file(file: str) -> bool:
    return bool(file) and not known(file) and not installed(file)


def installed(file: str) -> bool:
    return any(part in INSTALLED for part in Path(file).parts)


@functools.cache
def known(file: str) -> bool:
    """Whether a file is of alignlab, torch, numpy or Python itself."""
    path = Path(file).resolve()
    if file.startswith("<frozen "):
        return True
    if any(path.is_relative_to(folder) for folder in KNOWN):
        return True
    return path.is_relative_to(PYTHON) and not installed(file)
