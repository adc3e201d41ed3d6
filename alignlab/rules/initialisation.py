"""The named distributions that feedback weights are drawn from, each after the paper that used it.

Feedback B has the shape of W, (out, in, …) for layerwise rules and (n_error, out) for direct ones. Signals enter it by
its *first* dimension, so ``fan_out`` (the first dimension times the kernel's size) plays for B the part that fan_in
plays for W. A seed gives one B on one kind of device in one dtype; another device or dtype draws another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from alignlab.checks import did_you_mean

Init = Callable[[Tensor, torch.Generator], Tensor]


def fans(like: Tensor) -> tuple[int, int]:
    """``(fan_in, fan_out)`` of a weight of shape (out, in, kernel…). As in torch's own initialisers, groups do not count."""
    receptive = math.prod(like.shape[2:])
    return like.shape[1] * receptive, like.shape[0] * receptive


BOUNDS: dict[Any, Callable[[Tensor], float]] = {  # of the inits that are uniform
    "lillicrap": lambda like: 0.5,
    "nokland": lambda like: 1 / math.sqrt(fans(like)[0]),
    "xavier": lambda like: math.sqrt(6 / sum(fans(like))),
    "like_forward": lambda like: 1 / math.sqrt(fans(like)[0]),
}


def _uniform(like: Tensor, bound: float, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like).uniform_(-bound, bound, generator=generator)


def lillicrap(like: Tensor, generator: torch.Generator) -> Tensor:
    """U(−0.5, 0.5), whatever the size. Lillicrap et al. 2016."""
    return _uniform(like, BOUNDS["lillicrap"](like), generator)


def nokland(like: Tensor, generator: torch.Generator) -> Tensor:
    """U(±1/√n), n being how many units an entry of the error is sent to: the hidden ones under dfa. Nøkland 2016.

    He calls n the fan_out of B, whose input is the error; in the names here, which are W's, it is fan_in, so that his bound is
    that of ``like_forward``, as in his code (github.com/anokland/dfa-torch, ``ErrorFeedback.lua`` and ``Linear.lua``).
    """
    return _uniform(like, BOUNDS["nokland"](like), generator)


def gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1), whatever the size: what small demonstrations draw weights and feedback from."""
    return torch.empty_like(like).normal_(generator=generator)


def xavier(like: Tensor, generator: torch.Generator) -> Tensor:
    """U(±√(6/(fan_in + fan_out))). Glorot & Bengio 2010."""
    return _uniform(like, BOUNDS["xavier"](like), generator)


def kaiming(like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 2/fan_out): keeps the size of what is sent *down* through ReLUs. He et al. 2015, equation 14."""
    return torch.empty_like(like).normal_(0, math.sqrt(2 / fans(like)[1]), generator=generator)


def like_forward(like: Tensor, generator: torch.Generator) -> Tensor:
    """U(±1/√fan_in): what PyTorch draws the forward weights of linear and convolutional layers from."""
    return _uniform(like, BOUNDS["like_forward"](like), generator)


def orthogonal(like: Tensor, generator: torch.Generator) -> Tensor:
    """A random (semi-)orthogonal matrix, kernels flattened. Saxe et al. 2014."""
    result: Tensor = torch.nn.init.orthogonal_(
        torch.empty_like(like, dtype=torch.promote_types(like.dtype, torch.float32)), generator=generator
    )
    return result


INITS: dict[str, Init] = {
    f.__name__: f for f in (lillicrap, nokland, gaussian, xavier, kaiming, like_forward, orthogonal)
}


def resolve_init(init: str | Init) -> Init:
    """The drawing function of a name, or the callable itself: ``init(like, generator) -> tensor shaped as like``."""
    if callable(init):
        return init
    if init not in INITS:
        hint = did_you_mean(str(init), INITS)
        raise ValueError(
            f"unknown feedback initialisation {init!r}: {hint}known are {', '.join(INITS)}, or a callable"
        )
    return INITS[init]


def draw(init: str | Init, like: Tensor, seed: int) -> Tensor:
    """One draw of B in the shape, dtype and device of ``like``, from a seed of its own."""
    return draw_from(init, like, torch.Generator(like.device).manual_seed(seed))


def draw_from(init: str | Init, like: Tensor, generator: torch.Generator) -> Tensor:
    """The same from a generator; ``ValueError`` where a callable returns anything but a tensor of that shape."""
    with torch.no_grad():
        # contiguous: numbers are drawn in the order of memory, in which channels_last weights, say, lie otherwise
        feedback = resolve_init(init)(like.detach().contiguous(), generator)
    if not isinstance(feedback, Tensor) or feedback.shape != like.shape:
        got = tuple(feedback.shape) if isinstance(feedback, Tensor) else type(feedback).__name__
        raise ValueError(
            f"the feedback initialisation {init!r} returned {got}, expected a tensor of {tuple(like.shape)}"
        )
    if not like.is_contiguous():
        return torch.empty_like(like).copy_(feedback.detach())
    return feedback.detach().to(
        like, copy=callable(init)
    )  # a callable may return W itself, or one tensor twice


def draw_magnitude(init: str | Init, like: Tensor, seed: int) -> Tensor:
    """The absolute values of one draw of B, for rules that draw at each step.

    Uniform ones are made of 16 random bits each, (k + ½)/2¹⁶ of the bound: never 0, and at a fifth of the price, since a
    generator gives four of them at a time. They are other numbers than ``draw(init, like, seed).abs()``.
    """
    if init not in BOUNDS:
        return draw(init, like, seed).abs_()
    generator = torch.Generator(like.device).manual_seed(seed)
    fours = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    bits = fours.random_(-(2**63), None, generator=generator).view(torch.int16)[: like.numel()]
    exact = bits.to(torch.promote_types(like.dtype, torch.float32)).add_(2**15 + 0.5)
    return exact.mul_(BOUNDS[init](like) / 2**16).view(like.shape).to(like.dtype)
