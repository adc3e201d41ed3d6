"""From what was captured in a step to what probes see: weights, updates, rates, and the layers above a direct one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from alignlab.probes.arrivals import learning
from alignlab.probes.geometry import MEASURABLE, leads, rows
from alignlab.probes.observation import LayerObservation
from alignlab.probes.selection import learning_rates
from alignlab.probes.uses import Use, joined, parameter_of, weight_of
from alignlab.rules.layers import FeedbackLayer

Taken = Mapping[str, Sequence[Use]]


def weights_of(layers: Mapping[str, nn.Module], copy: bool) -> dict[str, Tensor]:
    """Each layer's weight, outside the graph; ``copy`` it where it will be needed after the update."""
    weights = {name: weight_of(layer) for name, layer in layers.items()}
    return {name: weight.clone() for name, weight in weights.items()} if copy else weights


def observe(
    taken: Taken,
    layers: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    before: Mapping[str, Tensor],
    updated: bool,
    complete: bool,
    landed: Mapping[str, Tensor],
) -> dict[str, LayerObservation]:
    """The observation of each layer that was ``taken``.

    ``before``: the weights before the update. ``updated``: whether they have been updated since. ``complete``: whether
    ``layers`` are all layers that the model has. ``landed``: the weights' gradients where they are the rule's own.
    """
    rates = learning_rates(optimizer, layers)
    names = {layer: name for name, layer in layers.items()}
    following = _following(taken) if complete else {}
    found = {}
    for name, uses in taken.items():
        layer: Any = layers[name]
        weight = parameter_of(layer)
        fresh = weight is not None or parametrize.is_parametrized(
            layer, "weight"
        )  # else as the last forward pass made it
        ours = name in rates or not learning(layer)  # what another optimizer does to it is not known
        after = weight_of(layer) if updated and ours and fresh else None
        sharing = [
            u
            for n, others in taken.items()
            if n == name or (weight is not None and parameter_of(layers[n]) is weight)
            for u in others
        ]
        made = LayerObservation(
            name,
            layer,
            list(uses),
            before[name],
            after,
            rates.get(name, float("nan")),
            sharing,
            landed=landed.get(name),
            derived=name in landed and not (isinstance(layer, FeedbackLayer) and layer.rule.explicit),
        )
        if made.direct and complete:
            above = _chain_above(uses, following)
            if above and all(use.error is not None and use.feedback is not None for use in uses):
                made.above = [before[names[other]] for other in above]
                if layer.rule.sends_error:  # else what its B carries is another thing
                    made.errors = joined([_error_rows(use) for use in uses])
        found[name] = made
    return found


def observes_all(model: nn.Module, layers: Mapping[str, nn.Module]) -> bool:
    """Whether no layer of the model that could be is left out."""
    observed = set(layers.values())
    return all(m in observed for m in model.modules() if isinstance(m, MEASURABLE))


def _following(taken: Taken) -> dict[Use, list[Use]]:
    """The uses whose input depends on a use, past no other layer; known of direct rules alone."""
    following: dict[Use, list[Use]] = defaultdict(list)
    for use in (use for uses in taken.values() for use in uses):
        for below in use.below:
            following[below].append(use)
    return following


def _chain_above(uses: Sequence[Use], following: Mapping[Use, Sequence[Use]]) -> Sequence[nn.Module] | None:
    """The layers from a layer's ``uses`` up to the output, if each depends on the one before alone, all are linear, and all
    uses have the same: a layer that is used at two depths has two products of weights above it, and one B."""
    ways = {_way_up(use, following) for use in uses}
    return ways.pop() if len(ways) == 1 else None


def _way_up(use: Use, following: Mapping[Use, Sequence[Use]]) -> tuple[nn.Module, ...] | None:
    way: list[nn.Module] = []
    while not use.feeds_output:
        after = following.get(use, ())
        if (
            len(after) != 1
            or len(after[0].below) != 1
            or not (after[0].is_linear and isinstance(after[0].layer, FeedbackLayer))
            or (way and after[0].h.shape != use.shape)  # flattened, pooled or gated between: no product
        ):
            return None
        use = after[0]
        way.append(use.layer)
    return tuple(way) if use.feeds_alone else None


def _error_rows(use: Use) -> Tensor:
    """The error at the model's output as rows that a direct layer's B takes: one a position, or one a sample."""
    assert use.error is not None
    assert use.feedback is not None
    if use.feedback.shape[-2] == use.error.shape[-1]:
        return rows(use.layer, use.error)
    return use.error.flatten(1 + leads(use.layer))
