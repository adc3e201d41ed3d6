"""Several runs in one tensor, (K, …), as rules meet them: a seed for each run, and sums over what is each run's own.

A rule that takes every number by itself need not know of runs. One that draws numbers, or adds up a batch or a weight, does
it here run by run, so that each run gets what it would get by itself.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor


class Seeds(tuple[int, ...]):
    """A seed for each run, to which a clock can be added."""

    def __add__(self, clock: int) -> Seeds:  # type: ignore[override]
        return Seeds(seed + clock for seed in self)

    def __mod__(self, limit: int) -> Seeds:
        return Seeds(seed % limit for seed in self)


def each_run(x: Tensor, runs: int | None) -> Tensor:
    """``x`` with a row a run, (K, all else); of one run, which leads with no dimension of its own, one row."""
    return x.reshape(1 if runs is None else runs, -1)


def beside(each: Tensor, x: Tensor) -> Tensor:
    """A number of everything, of each run, or of each sample, to be broadcast with ``x``, whose dimensions lead with these."""
    return each.view(each.shape + (1,) * (x.dim() - each.dim()))


def objective_of(loss: Tensor, runs: int | None) -> Tensor:
    """What a loss amounts to: itself, or its mean where it is of each sample; of several runs one number each, (K,)."""
    return loss.mean(-1) if samples_of(loss, runs) else loss


def samples_of(loss: Tensor, runs: int | None) -> int:
    """Of how many samples' losses a loss is made; 0 where it is one number, or of several runs one each."""
    return loss.shape[-1] if loss.dim() > (runs is not None) else 0


def checked_loss(loss: Any, runs: int | None, who: str) -> Tensor:
    """What a closure returned. Raises ``ValueError`` where that is no number and none for each sample, of each run."""
    each = () if runs is None else (runs,)
    is_number = isinstance(loss, Tensor) and loss.numel() > 0 and loss.is_floating_point()
    if is_number and loss.shape[: len(each)] == each and loss.dim() <= len(each) + 1:
        return cast(Tensor, loss)
    got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise ValueError(
        f"{who}: the closure returned {got}, expected the loss: one number, or one for each sample"
        f"{'' if runs is None else f', of each of the {runs} runs'}"
    )


def require_graph(loss: Tensor, who: str) -> None:
    """Raise ``ValueError`` for a loss without a graph."""
    if loss.grad_fn is None:
        raise ValueError(
            f"{who}: the closure's loss depends on no trained parameter; it has to run the model, with gradients enabled"
        )
