"""PyTorch's global random states: the CPU's, and those of the devices that a computation is on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class RandomStates:
    """The states of the CPU and of ``devices``, to read and to write."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.devices = sorted({device for device in devices if device.type not in ("cpu", "meta")}, key=str)

    def get(self) -> list[Tensor]:
        states = [torch.get_device_module(d).get_rng_state(d) for d in self.devices]
        return [torch.get_rng_state(), *states]

    def set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def random_states_kept(*devices: torch.device) -> Iterator[None]:
    """After the block, the random states of the CPU and of the devices are what they were."""
    states = RandomStates(devices)
    before = states.get()
    try:
        yield
    finally:
        states.set(before)
