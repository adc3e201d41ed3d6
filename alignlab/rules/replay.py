"""The same forward pass again: one batch, one dropout mask, the same running statistics, whatever is changed on purpose.

Rules that compare losses (:mod:`alignlab.rules.perturbation`, :mod:`alignlab.rules.soap`) measure the effect of a
perturbation; a mask drawn anew would drown it. Every further pass starts from the random state and the buffers that the
first one started from, and leaves both as the first one left them, so that a training step looks like one pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.randomness import RandomStates
from alignlab.rules.runs import Seeds


class _State(threading.local):
    depth = 0


_state = _State()


def replaying() -> bool:
    """Whether the forward pass that runs is a further one of a training step: no business of observers."""
    return _state.depth > 0


class Replay:
    """The random state and buffers of ``model`` as they are now; :meth:`again` brings them back for a while.

    Random numbers that do not come from PyTorch's global generators (NumPy's, a generator of the loop's own) are not
    held: the closure has to use the same batch each time.
    """

    def __init__(self, model: nn.Module) -> None:
        self._states = RandomStates(p.device for p in model.parameters())
        self._random = self._states.get()
        self._buffers = [  # feedback is no part of the forward pass
            (module, name, buffer.clone())
            for module in model.modules()
            if not isinstance(module, FeedbackLayer)
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within the block, the state of the start; after it, the state from before the block."""
        after = self._states.get()
        kept = [module._buffers[name] for module, name, _ in self._buffers]
        _state.depth += 1
        try:
            self._states.set(self._random)
            for (
                module,
                name,
                start,
            ) in self._buffers:  # other tensors: the graph may hold on to the first ones
                module._buffers[name] = start.clone()
            yield
        finally:
            for (module, name, _), buffer in zip(self._buffers, kept, strict=True):
                module._buffers[name] = buffer
            self._states.set(after)
            _state.depth -= 1


class Noise:
    """Standard normal numbers from a seed of their own, or for several runs from one each: the global random state is left
    alone."""

    def __init__(self, seed: int | Seeds) -> None:
        self._seed = seed
        self._generators: dict[torch.device, list[torch.Generator]] = {}

    def like(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The next draw, for several runs (K, …); float32 at least, then rounded to ``dtype``."""
        several = isinstance(self._seed, Seeds)
        if device not in self._generators:
            seeds = self._seed if isinstance(self._seed, Seeds) else (self._seed,)
            self._generators[device] = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        drawn = torch.empty(shape, dtype=torch.promote_types(dtype, torch.float32), device=device)
        for own, generator in zip(drawn if several else [drawn], self._generators[device], strict=True):
            own.normal_(generator=generator)
        return drawn.to(dtype)
