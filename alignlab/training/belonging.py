"""Whose a class or an object is that code refers to, what it is there for, and what it holds.
For :mod:`alignlab.training.identity`."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignlab.training.errors import SpecError
from alignlab.training.referring import installed, is_users_file, known

PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    PurePath,
    torch.dtype,
    np.dtype,
    torch.device,
    range,
    slice,
)

MADE_LATER = 1 << 9  # CPython's mark of a class that is not one of its own in C


def is_value(thing: Any) -> bool:
    """Whether it is plain, or holds nothing that is not."""
    if isinstance(thing, list | tuple | set | frozenset):
        return all(map(is_value, thing))
    if isinstance(thing, dict):
        return all(map(is_value, thing.values()))
    return isinstance(thing, (*PLAIN, Tensor, np.ndarray, np.generic))


def file_of(thing: type) -> str:
    """The file that a class is defined in; empty where there is none."""
    return getattr(sys.modules.get(thing.__module__), "__file__", None) or ""


def is_own(thing: Any) -> bool:
    """Whether an object is of a class of the user's own, and acts or holds settings."""
    file = file_of(type(thing))
    own = not (is_builtin(type(thing)) or known(file) or installed(file))
    return own and (callable(thing) or is_dataclass(thing))


def holds_settings(thing: Any) -> bool:
    """Whether an object that cannot be called is surely there for what it holds."""
    plain = SimpleNamespace | argparse.Namespace | torch.distributions.Distribution
    # a lazy table's name is another in each process
    lazy = hasattr(type(thing), "__dask_graph__") and thing.__dask_graph__() is not None
    table = hasattr(type(thing), "__array__") and not lazy  # of pandas or xarray
    return table or isinstance(thing, plain) or is_users(type(thing))


def is_users(thing: type) -> bool:
    """Whether a class is of the user's own."""
    return is_users_file(file_of(thing))


def is_builtin(thing: type) -> bool:
    """Whether a class is one of Python's own in C; what was typed in may say that it is of that module."""
    module = thing.__module__
    if module not in sys.builtin_module_names:
        return False
    named = vars(sys.modules[module]).get(thing.__name__) is thing
    return named or not thing.__flags__ & MADE_LATER  # that of str.lower has no name


def state_of(thing: Any) -> Any:
    """What an object holds; of an installed package's, which may hold it in C, that of which it would be made again.

    Raises :class:`SpecError` where that cannot be known.
    """
    file = file_of(type(thing))
    with suppress(Exception):  # of one that cannot be pickled
        if installed(file) and not known(file):
            return thing.__reduce_ex__(2)[1:3]
        if hasattr(thing, "__dict__") or hasattr(type(thing), "__slots__"):
            return object.__getstate__(thing)
    raise SpecError(
        f"{type(thing).__name__} cannot be hashed, so that a store could not tell what holds it from a changed one: "
        "hold numbers, text, tensors and functions, or train(spec) without a store"
    )
