"""Which samples each step learns from: an endless stream of index batches that the spec's order stream alone decides."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from alignlab.training.spec import RunSpec

_AT_ONCE = 1024  # batches drawn at a time; the stream does not depend on it


def batches(spec: RunSpec, n: int) -> Iterator[Tensor]:
    """``spec.steps`` batches of indices below ``n``, on the CPU.

    By ``epochs``: a new order of all samples each epoch, its incomplete last batch left out; a batch larger than the data is
    all of it. With ``replacement``: every sample drawn from all, alike and independently.
    """
    return (batch for block in blocks(spec, n) for batch in block)


def blocks(spec: RunSpec, n: int) -> Iterator[Tensor]:
    """The same, many batches at a time, (some, batch size): as many for every run with these steps, batch size and sampling."""
    generator = torch.Generator().manual_seed(spec.stream("order"))
    made = _drawn if spec.sampling == "replacement" else _epochs
    return made(spec.steps, spec.batch_size, n, generator)


def _epochs(left: int, size: int, n: int, generator: torch.Generator) -> Iterator[Tensor]:
    size = min(size, n)
    while left > 0:
        order = torch.randperm(n, generator=generator)
        block = order[: n - n % size].view(-1, size)[:left]
        left -= len(block)
        yield block


def _drawn(left: int, size: int, n: int, generator: torch.Generator) -> Iterator[Tensor]:
    while left > 0:
        rows = min(left, _AT_ONCE)
        yield torch.randint(n, (rows, size), generator=generator)
        left -= rows
