"""What a function or an object computes by, as a hash: the files of its code, and what it holds.

Equal in every process that has the same of both, so that it may be part of a run's name. Of a function: its file, its
defaults, what it encloses, and so on with the functions, classes and values of the user's own that its code names. What
belongs to alignlab, torch, numpy or Python goes by its name: their versions are in every run's name already. What an installed
package defines goes by its file alone.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignlab.training.belonging import (
    PLAIN,
    file_of,
    holds_settings,
    is_builtin,
    is_own,
    is_users,
    is_value,
    state_of,
)
from alignlab.training.errors import SpecError
from alignlab.training.referring import installed, known, named_by
from alignlab.training.sources import code_of, content

VALUES = (tuple, frozenset, Tensor, np.ndarray, np.generic)
BUILT_IN = (*PLAIN, *VALUES, Mapping, list, deque, set)


def identity(thing: Any, *, held: bool = True) -> str:
    """A hash of the code behind ``thing``, and of the values that it holds unless ``held`` is false.

    Raises :class:`SpecError` for code that comes from no file, and for a value that cannot be hashed.
    """
    walk = _Walk(held)
    walk.add(thing)
    return hashlib.sha256("\n".join(walk.parts).encode()).hexdigest()[:16]


class _Walk:
    """Through all that a thing is made of; ``parts``: what was met, in an order that is the same everywhere."""

    def __init__(self, held: bool) -> None:
        self.held = held
        self.parts: list[str] = []
        self.seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no other gets the address of one that was met

    def add(self, thing: Any) -> None:
        if is_users(type(thing)) and isinstance(thing, BUILT_IN):  # a tuple with names and methods, say
            self._all("of", type(thing), getattr(thing, "__dict__", None))
        if isinstance(thing, PLAIN):
            self._note(f"{type(thing).__name__} {thing!r}")
        elif isinstance(thing, VALUES):  # two of one content may be one object, or not
            self._added(thing)
        elif id(thing) in self.seen:
            self._note(f"as {self.seen[id(thing)]}")
        else:
            self.seen[id(thing)] = len(self.seen)
            self._kept.append(thing)
            self._added(thing)

    def _note(self, text: str) -> None:
        self.parts.append(text)

    def _added(self, thing: Any) -> None:
        if isinstance(thing, FunctionType):
            self._function(thing)
        elif isinstance(thing, type):
            self._class(thing)
        elif isinstance(thing, functools.partial):
            self._all("partial", thing.func, thing.args, thing.keywords)
        elif isinstance(thing, MethodType):
            self._all("method", thing.__func__, thing.__self__)
        elif isinstance(thing, staticmethod | classmethod):
            self.add(thing.__func__)
        elif isinstance(thing, property):
            self._all("property", thing.fget)
        elif isinstance(thing, BuiltinFunctionType):
            self._builtin(thing)
        elif isinstance(thing, Tensor | np.ndarray | np.generic):
            self._numbers(thing)
        elif isinstance(thing, Mapping):
            self._all(
                f"{type(thing).__name__} {len(thing)}", *(part for item in thing.items() for part in item)
            )
        elif isinstance(thing, list | tuple | deque):
            self._all(f"{type(thing).__name__} {len(thing)}", *thing)
        elif isinstance(thing, set | frozenset):
            self._note(f"set {sorted(identity(part, held=self.held) for part in thing)}")
        elif isinstance(thing, ModuleType):
            self._note(f"module {thing.__name__}")
        elif callable(thing) and isinstance(
            getattr(thing, "__wrapped__", None), FunctionType
        ):  # functools.cache
            self._all(type(thing).__name__, thing.__wrapped__)
        else:
            self._instance(thing)

    def _all(self, what: str, *parts: Any) -> None:
        self._note(what)
        for part in parts:
            self.add(part)

    def _function(self, thing: FunctionType) -> None:
        file = thing.__code__.co_filename
        module = thing.__globals__.get("__name__", thing.__module__)
        if str(module).startswith("torch._dynamo"):  # which holds what differs from process to process
            raise SpecError(
                f"{thing.__qualname__} is compiled, and has no identity: give the function itself"
            )
        code = code_of(thing, file, module)
        self._note(f"function {thing.__qualname__} {_place(thing.__code__)} {code}")
        if self.held:
            self._all("holding", thing.__defaults__, thing.__kwdefaults__, vars(thing), *_enclosed(thing))
        else:
            for part in (*vars(thing).values(), *_enclosed(thing)):
                self._named(part)
        if not known(file) and not installed(file):
            for part in named_by(thing):
                self._named(part)

    def _named(self, thing: Any) -> None:
        """What code refers to by a name: other code, and values that are surely a part of what it computes."""
        code = isinstance(thing, FunctionType | type | functools.partial | MethodType)
        if code or (self.held and (is_value(thing) or is_own(thing))):
            return self.add(thing)
        if is_users(type(thing)):
            self.add(type(thing))
        if isinstance(thing, list | tuple | dict) and id(thing) not in self.seen:  # of functions, say
            self.seen[id(thing)] = len(self.seen)
            self._kept.append(thing)
            for part in thing.values() if isinstance(thing, dict) else thing:
                self._named(part)
        elif self.held and (callable(thing) or holds_settings(thing)):
            self._if_it_can_be(thing)

    def _if_it_can_be(self, thing: Any) -> None:
        """An installed package's function may be in C, and an object may hold an open file."""
        before = len(self.parts)
        try:
            self.add(thing)
        except SpecError:
            del self.parts[before:]

    def _class(self, thing: type) -> None:
        for base in thing.__mro__:
            file = file_of(base)
            if known(file) or is_builtin(base):
                self._note(f"class {base.__module__}.{base.__qualname__}")
                continue
            self._note(f"class {base.__qualname__} {code_of(base, file, base.__module__)}")
            if not installed(file):
                self._members(base)

    def _members(self, thing: type) -> None:
        for name, member in list(vars(thing).items()):
            part = getattr(member, "__func__", getattr(member, "fget", member))
            part = member.func if isinstance(member, functools.cached_property) else part
            if isinstance(part, FunctionType):
                if Path(
                    inspect.unwrap(part).__code__.co_filename
                ).is_file():  # what a dataclass makes comes from none
                    self.add(part)
            elif self.held and not name.startswith("__") and is_value(part):
                self._all(name, part)
            elif not name.startswith("__"):
                self._named(part)

    def _builtin(self, thing: Any) -> None:
        """A function in C."""
        module = sys.modules.get(thing.__module__ or "")
        file = getattr(module, "__file__", None) or ""
        of_file = content(file) if file and not known(file) else ""
        self._note(f"builtin {thing.__module__}.{thing.__qualname__} {of_file}")
        if not isinstance(thing.__self__, ModuleType | type(None)):
            self.add(thing.__self__)

    def _numbers(self, thing: Any) -> None:
        if not self.held:
            return
        if isinstance(thing, np.ma.MaskedArray):
            self.add(np.ma.getmaskarray(thing))
        if isinstance(thing, Tensor) and thing.layout is not torch.strided:
            entries = thing.detach().to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
            return self._all(f"{thing.layout} {tuple(thing.shape)}", entries.indices(), entries.values())
        if isinstance(thing, Tensor):
            plain = thing.detach().cpu().resolve_conj().resolve_neg().contiguous()
            raw = plain.unsqueeze(-1).view(torch.uint8).numpy()
        elif thing.dtype.hasobject:
            return self._all(f"objects {thing.shape}", thing.tolist())
        else:
            raw = np.ascontiguousarray(thing).reshape(-1).view(np.uint8)
        digest = hashlib.sha256(raw.data).hexdigest()
        self._note(f"{type(thing).__name__} {thing.dtype} {tuple(thing.shape)} {digest}")

    def _instance(self, thing: Any) -> None:
        state = state_of(thing) if self.held else None
        self.add(type(thing))
        if self.held:
            self.add(state)


def _enclosed(thing: FunctionType) -> Iterator[Any]:
    for cell in thing.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # nothing yet
            continue


def _place(code: CodeType) -> tuple[int, int]:
    """Where in its file a function begins: lambdas have one name."""
    places = [
        (line, column) for line, _, column, end in code.co_positions() if line and column is not None and end
    ]
    return min(places, default=(code.co_firstlineno, 0))
