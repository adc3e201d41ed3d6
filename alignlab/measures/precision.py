"""Products of full precision, whatever faster ones the user's settings allow training.

On a GPU a float32 product may round its factors to 10 bits (TF32: for convolutions PyTorch's default, for matrices by
``torch.set_float32_matmul_precision("high")``), on some CPUs to 7 (bfloat16: "medium"). An angle that is read off such products
is wrong by √(2·2⁻¹¹) = 1.8° where it should be 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

FULL = ("none", "ieee", False)


class _Switch(NamedTuple):
    """One setting of PyTorch's, and the value that asks for full precision."""

    holder: Any
    name: str
    full: str | bool

    def get(self) -> Any:
        return getattr(self.holder, self.name)

    def set(self, value: Any) -> None:
        setattr(self.holder, self.name, value)


def _switches(of: str) -> list[_Switch]:
    """Those of ``cpu`` or ``cuda``; torch 2.9 and later have one for each kind of product."""
    if of == "cuda":
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        kinds = [(matmul, "allow_tf32"), (getattr(cudnn, "conv", cudnn), "allow_tf32")]
    else:
        kinds = [(getattr(torch.backends.mkldnn, name, None), "") for name in ("matmul", "conv")]
    named = [
        _Switch(kind, "fp32_precision", "ieee") if _is_new(kind) else _Switch(kind, old, False)
        for kind, old in kinds
    ]
    return [switch for switch in named if switch.name]


def _is_new(kind: Any) -> bool:
    return hasattr(kind, "fp32_precision")


SWITCHES = {kind: _switches(kind) for kind in ("cpu", "cuda")}


def is_full(device: str) -> bool:
    """Whether float32 products on this type of device are of full precision as things stand."""
    return all(switch.get() in FULL for switch in SWITCHES.get(device, ()))


@contextmanager
def full_precision(*devices: str) -> Iterator[None]:
    """Float32 products on these types of device have full precision within the block; then all is as it was."""
    every = [switch for device in devices for switch in SWITCHES.get(device, ())]
    changed = [(switch, before) for switch in every if (before := switch.get()) not in FULL]
    try:
        for switch, _ in changed:
            switch.set(switch.full)
        yield
    finally:
        for switch, before in changed:
            switch.set(before)
