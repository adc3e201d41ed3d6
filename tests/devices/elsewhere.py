"""The device ``elsewhere``, which stands for a GPU on machines that have none (``elsewhere.cpp``), as a module of PyTorch's.

PyTorch has one place for such a device in a process, and keeps it to the end: tests load it in a process of their own.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

import alignlab

NAME = "elsewhere"
PACKAGE = str(Path(alignlab.__file__).parent)
waits: Counter[tuple[str, str]] = Counter()  # by operation, and by the place in alignlab that reads


class Module:
    """What ``torch.cuda`` is to a GPU."""

    def __init__(self, library: Any) -> None:
        self.default_generator = library.default_generator

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def synchronize(self, device: Any = None) -> None:
        pass

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return 2**30, 2**31

    def manual_seed(self, seed: int) -> None:
        self.default_generator().manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        state: torch.Tensor = self.default_generator().get_state()
        return state

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        self.default_generator().set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def load(folder: Path) -> None:
    """Compile it into ``folder``, which takes half a minute, and give it to PyTorch."""
    source = Path(__file__).with_suffix(".cpp")
    library: Any = cpp_extension.load(
        NAME, [str(source)], build_directory=str(folder), extra_cflags=["-O1", "-std=c++20"]
    )
    library.begin(_told)
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, Module(library))
    torch.utils.generate_methods_for_privateuse1_backend()


def _told(operation: str) -> None:
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
    where = f"{Path(frames[-1].filename).name} {frames[-1].name}" if frames else "a test"
    waits[operation, where] += 1
