"""Products of full precision, whatever faster ones the user's settings allow training.

On a GPU a float32 product may round its factors to 10 bits (TF32: for convolutions PyTorch's default, for matrices by
``torch.set_float32_matmul_precision("high")``), on some CPUs to 7 (bfloat16: "medium"). An angle that is read off such products
is wrong by √(2·2⁻¹¹) = 1.8° where it should be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from threading import Lock
from typing import Any, NamedTuple

import torch

FULL = ("none", "ieee", "highest", False)


class Switch(NamedTuple):
    """One setting of PyTorch's, and the value that asks for full precision."""

    get: Callable[[], Any]
    set: Callable[[Any], None]
    full: str | bool


def switches(backends: Any) -> tuple[list[Switch], dict[str, list[Switch]]]:
    """The settings that others inherit, the topmost first, and those of each type of device."""
    if not hasattr(backends, "fp32_precision"):  # before torch 2.9
        matrices = Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")
        return [], {"cpu": [matrices], "cuda": [matrices, _attribute(backends.cudnn, "allow_tf32", False)]}
    cpu, cuda = backends.mkldnn, backends.cudnn
    kinds = {"cpu": [cpu.matmul, cpu.conv], "cuda": [backends.cuda.matmul, cuda.conv]}
    return [_named(backends), _named(cuda)], {
        kind: [_named(one) for one in own] for kind, own in kinds.items()
    }


def _named(holder: Any) -> Switch:
    return _attribute(holder, "fp32_precision", "ieee")


def _attribute(holder: Any, name: str, full: str | bool) -> Switch:
    return Switch(partial(getattr, holder, name), partial(setattr, holder, name), full)


PARENTS, SWITCHES = switches(torch.backends)
_lock, _blocks = Lock(), 0  # how many are entered, in all threads
_before: list[tuple[Switch, Any]] = []


def is_full(device: str) -> bool:
    """Whether float32 products on this type of device are of full precision as things stand."""
    return _blocks > 0 or _set_full(device)


def _set_full(device: str) -> bool:
    return all(switch.get() in FULL for switch in SWITCHES.get(device, ()))


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products have full precision within the block. The settings belong to all threads: they are what they were when
    the last of the blocks has ended that are open at a time."""
    global _blocks
    with _lock:
        _blocks += 1
        _switch()
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            while _before and not _blocks:
                switch, value = _before.pop()
                switch.set(value)


def _switch() -> None:
    if all(map(_set_full, SWITCHES)):
        return
    # parents first: what inherits follows, and goes on inheriting
    for switch in chain(PARENTS, *SWITCHES.values()):
        if (value := switch.get()) != switch.full:
            _before.append((switch, value))
            switch.set(switch.full)
