"""How good a stochastic rule's gradient is: its bias and variance against the true one, by noise scale and samples.

A perturbation rule estimates the gradient from noise. Its mean differs from the true gradient by what the noise's size does
to a curved loss; its spread falls with the number of samples. Both are measured here by drawing the estimate again and again on
one batch, and told apart without the bias that comes from doing so a finite number of times.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from alignlab import measures, rules
from alignlab.checks import is_whole
from alignlab.rules.randomness import random_states_kept

if TYPE_CHECKING:
    import xarray as xr

Losses = Callable[[nn.Module], Tensor]

WHOLE = "all"  # the entry of the dimension ``layer`` that stands for all trained parameters together

_ATTRS = {
    "squared_bias": ("‖E ĝ − g‖²", "unbiased: it may come out below 0 where there is no bias"),
    "squared_bias_error": ("SE of ‖E ĝ − g‖²", "jackknife over the repeats"),
    "variance": ("E‖ĝ − E ĝ‖²", "summed over the entries"),
    "variance_error": ("SE of E‖ĝ − E ĝ‖²", "jackknife over the repeats"),
    "squared_norm": ("‖g‖²", "of the true gradient, to compare the others with"),
    "cosine": ("E cos ∠(ĝ, g)", "of the single estimates, zero ones left out; NaN where g is zero"),
}


def estimator_statistics(
    model: nn.Module,
    losses: Losses,
    rule: str,
    sigmas: Sequence[float],
    samples: Sequence[int],
    *,
    repeats: int = 100,
    seed: int = 0,
    **rule_args: Any,
) -> xr.Dataset:
    """Bias and variance of a rule's weight gradient ĝ against the true g, on one batch; dims (sigma, samples, layer).

    ``model``: unconverted; it is copied, not touched. ``losses(model)``: the loss on the batch, of each sample or their mean.
    ``rule`` with ``rule_args`` (``antithetic=True``), and ``sigma`` and ``samples`` from the lists. ``repeats``: estimates for
    each pair; all use the random state of now, so that a dropout mask is the same in all of them and in the truth.

    With d_r = ĝ_r − g over R repeats, S = Σ d_r and Q = Σ‖d_r‖²: ``squared_bias`` = (‖S‖² − Q) / (R (R − 1)), the mean of
    ⟨d_r, d_s⟩ over r ≠ s, which has no contribution of the variance; ``variance`` = (Q − ‖S‖²/R) / (R − 1);
    ``squared_bias_error`` and ``variance_error``, their jackknife standard errors; ``squared_norm`` = ‖g‖²; ``cosine``, the
    mean cos ∠(ĝ_r, g) of the estimates that are not zero, NaN where there is none or g is zero. The layers' rows are of their
    weights, the row ``all`` is of all trained parameters. Keeps R gradients at a time.

    Raises ``ValueError`` for fewer than three repeats, or no sigma or samples, and as :func:`alignlab.rules.convert` does.
    """
    if not is_whole(repeats, 3):
        raise ValueError(f"estimator_statistics: repeats is {repeats!r}, expected a whole number, at least 3")
    if not len(sigmas) or not len(samples):
        raise ValueError("estimator_statistics: sigmas and samples need at least one entry each")
    settings = [{**rule_args, "sigma": s, "samples": k} for s, k in itertools.product(sigmas, samples)]
    made = [rules.make_rule(rule, **args) for args in settings]  # all are checked before the first is drawn
    truth = _gradients(copy.deepcopy(model), losses)
    columns = _columns(_converted(model, made[0], seed), truth)
    rows = [_statistics(_estimates(model, losses, one, repeats, seed), truth, columns) for one in made]
    attrs = {"rule": rule, "rule_args": str(rule_args), "repeats": repeats, "seed": seed}
    return _dataset(rows, sigmas, samples, columns, attrs)


def _gradients(model: nn.Module, losses: Losses) -> dict[str, Tensor]:
    """The gradients that one backward pass leaves, float64; the random state stays as it is."""
    model.zero_grad()
    with random_states_kept(*(p.device for p in model.parameters())):
        rules.backward(model, lambda: losses(model))
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def _estimates(
    model: nn.Module, losses: Losses, rule: rules.Rule, repeats: int, seed: int
) -> dict[str, Tensor]:
    """(R, entries) of each parameter. Every pass moves the clocks on, and so draws anew."""
    drawn = _converted(model, rule, seed)
    start = {name: buffer.clone() for name, buffer in drawn.named_buffers()}
    found = []
    for _ in range(repeats):
        found.append(_gradients(drawn, losses))
        for name, buffer in drawn.named_buffers():
            buffer.copy_(start[name])  # running statistics: one batch, one state
    return {name: torch.stack([g[name].flatten() for g in found]) for name in found[0]}


def _converted(model: nn.Module, rule: rules.Rule, seed: int) -> nn.Module:
    return rules.convert(copy.deepcopy(model), rule, generator=torch.Generator().manual_seed(seed))


def _columns(converted: nn.Module, truth: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Which parameters make up each entry of ``layer``."""
    layers = {name: f"{name}.weight".lstrip(".") for name in rules.feedback_layers(converted)}
    columns = {name or "root": [weight] for name, weight in layers.items() if weight in truth}
    return {**columns, WHOLE: list(truth)}


def _statistics(
    estimates: Mapping[str, Tensor], truth: Mapping[str, Tensor], columns: Mapping[str, list[str]]
) -> list[dict[str, float]]:
    found = []
    for names in columns.values():
        g = torch.cat([truth[name].flatten() for name in names])
        drawn = torch.cat([estimates[name] for name in names], dim=1)
        d = drawn - g
        cosine = float(measures.cosine(drawn, g).nanmean())
        found.append({**_moments(d @ d.T), "squared_norm": float(g @ g), "cosine": cosine})
    return found


def _moments(gram: Tensor) -> dict[str, float]:
    """Squared bias and variance from the products ⟨d_r, d_s⟩ (R, R), with their jackknife standard errors."""
    n = len(gram)
    total, own, rows = gram.sum(), gram.diagonal(), gram.sum(1)
    bias, variance = _split(total, own.sum(), n)
    # without the r-th: ‖S − d_r‖² = ‖S‖² − 2⟨S, d_r⟩ + ‖d_r‖²
    without = _split(total - 2 * rows + own, own.sum() - own, n - 1)
    errors = [float(((n - 1) ** 2 / n * part.var()).sqrt()) for part in without]
    return {
        "squared_bias": float(bias),
        "squared_bias_error": errors[0],
        "variance": float(variance),
        "variance_error": errors[1],
    }


def _split(total: Tensor, own: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """``(‖S‖² − Q) / (n (n − 1))`` and ``(Q − ‖S‖²/n) / (n − 1)``."""
    return (total - own) / (n * (n - 1)), (own - total / n) / (n - 1)


def _dataset(
    rows: list[list[dict[str, float]]],
    sigmas: Sequence[float],
    samples: Sequence[int],
    columns: Mapping[str, list[str]],
    attrs: dict[str, Any],
) -> xr.Dataset:
    import xarray as xr

    shape = (len(sigmas), len(samples), len(columns))
    variables = {
        name: (
            ("sigma", "samples", "layer"),
            np.array([[row[name] for row in table] for table in rows]).reshape(shape),
            {"symbol": symbol, "note": note, "source": "alignlab"},
        )
        for name, (symbol, note) in _ATTRS.items()
    }
    coords = {"sigma": list(map(float, sigmas)), "samples": list(samples), "layer": list(columns)}
    return xr.Dataset(variables, coords, attrs)
