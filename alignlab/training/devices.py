"""The device that runs are trained on: whether it is there, its seed, its clock and its free memory."""

from __future__ import annotations

from typing import Any

import torch

from alignlab.training import memory
from alignlab.training.errors import SpecError

CPU = torch.device("cpu")


def named(given: Any) -> torch.device:
    """The device of a name, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, looked for by nobody yet.

    Raises:
        SpecError: for what names none, and for ``meta``, whose tensors hold no numbers.
    """
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise SpecError(f"device is {given!r:.60}, expected 'cpu', 'cuda', 'cuda:1' or the like") from error
    if device.type == "meta":
        raise SpecError("device is 'meta', whose tensors hold no numbers: expected 'cpu', 'cuda' or the like")
    return device


def present(given: Any) -> torch.device:
    """The device of a name, which is here and works.

    Raises:
        SpecError: where it is not, or names none.
    """
    device = named(given)
    try:
        torch.empty(1, device=device).fill_(0)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch has no one error for it
        why = str(error).partition("\n")[0].rstrip(".")
        raise SpecError(
            f"device {str(device)!r} is not to be had here ({why}): leave it out to train on the CPU, or install a PyTorch "
            "that is made for it (https://pytorch.org/get-started/locally)"
        ) from error
    return device


def seed(number: int, device: torch.device) -> None:
    """Seed the CPU and ``device`` alone; ``torch.manual_seed`` would seed every GPU there is."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
    elif device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(number)  # of mps there is but one


def wait_for(device: torch.device) -> None:
    """Until it has done what it was given: a CPU has, always."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def free_memory(device: torch.device) -> int:
    """Bytes that are free on it; those that this process may still take of the machine's, where the device has none of its own
    or does not tell."""
    tell = getattr(torch.get_device_module(device), "mem_get_info", None) if device.type != "cpu" else None
    return int(tell(device)[0]) if tell else memory.available()
