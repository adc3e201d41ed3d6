"""Reference implementations and synthetic runs, for alignlab's tests and for those of its users.

``naive`` is the slow twin of every measure; ``synthetic`` makes seeded datasets that keep the data contract, and is
loaded on first use. Nothing in alignlab outside this package imports it.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from alignlab.testing import naive

__all__ = ["naive", "synthetic"]


def __getattr__(name: str) -> ModuleType:
    if name == "synthetic":
        return import_module("alignlab.testing.synthetic")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
