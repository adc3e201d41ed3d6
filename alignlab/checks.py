"""What every floor asks of what it is given: is it a number, and which name was meant. Imports nothing heavy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any


def is_whole(value: Any, least: float = 1) -> bool:
    """Whether a value is a whole number of at least ``least``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def did_you_mean(
    name: str, known: Iterable[str], n: int = 2, cutoff: float = 0.6, told: Callable[[str], str] = repr
) -> str:
    """The known names near an unknown one, at most ``n``, as a question with a space behind it; nothing where none is near.

    >>> did_you_mean("kaimin", ["kaiming", "xavier"])
    "did you mean 'kaiming'? "
    """
    near = difflib.get_close_matches(name, known, n=n, cutoff=cutoff)
    return f"did you mean {' or '.join(map(told, near))}? " if near else ""
