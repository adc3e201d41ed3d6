"""Which layers a recorder observes, and which of the optimizer's learning rates is theirs."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from alignlab.probes.compiled import unwrapped
from alignlab.probes.errors import ProbeError
from alignlab.probes.geometry import MEASURABLE
from alignlab.probes.uses import parameter_of, weights_behind
from alignlab.rules.convertible import ROOT, is_sharded
from alignlab.rules.hosts import hosted_parameters

Wanted = Sequence[str] | Callable[[str, nn.Module], bool] | None


def select_layers(model: nn.Module, wanted: Wanted) -> dict[str, nn.Module]:
    """The layers (of the kinds that can be measured) of ``model`` that ``wanted`` names, in the model's order."""
    chosen = _chosen(model, wanted)
    if lazy := [name for name, layer in chosen.items() if any(map(is_lazy, weights_behind(layer)))]:
        raise ValueError(
            f"{', '.join(lazy)}: the weight gets its shape in the first call of the layer: call model(x) once before"
        )
    if split := [name for name, layer in chosen.items() if any(map(is_sharded, layer.modules()))]:
        raise ValueError(
            f"{', '.join(split)}: a process holds but a part of each weight (fully_shard, tensor parallelism), whose angles "
            "are not the weight's: record where weights are whole, on one device or under DistributedDataParallel"
        )
    return chosen


def _chosen(model: nn.Module, wanted: Wanted) -> dict[str, nn.Module]:
    inner = unwrapped(model)
    found: dict[str, nn.Module] = {
        name or ROOT: m for name, m in inner.named_modules() if isinstance(m, MEASURABLE)
    }
    if not found:
        raise ValueError(
            f"{type(inner).__name__} has no layer to observe: expected one of {', '.join(t.__name__ for t in MEASURABLE)}"
        )
    if wanted is None:
        others = {
            id(p)
            for m in inner.modules()
            if not isinstance(m, MEASURABLE)
            for key, p in m._parameters.items()
            if key not in hosted_parameters(m)
        }
        tied = [
            name for name, m in found.items() if parameter_of(m) is not None and id(parameter_of(m)) in others
        ]
        if tied and len(tied) < len(found):
            warnings.warn(
                f"not observed: {', '.join(tied)}; the weight is shared with a module that is no such layer (an "
                "embedding), so that its gradient is not that of the layer alone",
                stacklevel=3,
            )
            found = {name: m for name, m in found.items() if name not in tied}
        return found
    if callable(wanted) and not isinstance(wanted, nn.Module):
        chosen = {name: m for name, m in found.items() if wanted(name, m)}
    else:
        patterns: list[Any] = (
            [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else list(wanted)
        )
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise TypeError(
                f"layers is {wanted!r}, expected names, patterns of names, or a function (name, module) -> bool"
            )
        named = {p: [name for name in found if fnmatch.fnmatchcase(name, p)] for p in patterns}
        idle = [repr(p) for p, names in named.items() if not names]
        if idle:
            raise ValueError(f"layers: {', '.join(idle)} names no layer; there are {', '.join(found)}")
        chosen = {name: m for name, m in found.items() if any(name in names for names in named.values())}
    if not chosen:
        raise ValueError(f"layers: the filter leaves none of {', '.join(found)}")
    return chosen


def rate_of(group: Mapping[str, Any]) -> float | Tensor:
    """The learning rate of an optimizer's parameter group; of one that trains K runs at once a tensor, (K,)."""
    rate = group.get("lr", torch.nan)
    return rate.detach() if isinstance(rate, Tensor) and rate.dim() else float(rate)


def main_rate(optimizer: torch.optim.Optimizer, layers: Mapping[str, nn.Module]) -> float | Tensor:
    """The learning rate of the first parameter group with a weight of the layers; before it there may be one of biases."""
    weights = {id(weight) for layer in layers.values() for weight in weights_behind(layer)}
    groups = optimizer.param_groups
    return rate_of(next((g for g in groups if any(id(p) in weights for p in g["params"])), groups[0]))


def learning_rates(
    optimizer: torch.optim.Optimizer, layers: Mapping[str, nn.Module]
) -> dict[str, float | Tensor]:
    """The current learning rate of each layer's weight; layers that the optimizer does not train are left out."""
    rates = {id(p): rate_of(group) for group in optimizer.param_groups for p in group["params"]}
    trained = {
        name: next((id(p) for p in weights_behind(layer) if id(p) in rates), None)
        for name, layer in layers.items()
    }
    return {name: rates[key] for name, key in trained.items() if key is not None}


def is_stepped(optimizer: torch.optim.Optimizer | None, weight: nn.Parameter) -> bool:
    """Whether the optimizer, if there is one, knows a weight."""
    groups = [] if optimizer is None else optimizer.param_groups
    return any(p is weight for group in groups for p in group["params"])


class Replaced:
    """Tells of weights, and layers of ``model``, that others took the place of, so that the ``optimizer`` steps what the model
    does not use."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, layers: Mapping[str, nn.Module]
    ) -> None:
        self.model, self.optimizer = unwrapped(model), optimizer
        self.layers = {name: layers[name] for name in learning_rates(optimizer, layers)}
        # by their ids, which are theirs while the optimizer has them; torch swaps no weights that somebody refers to weakly
        self._known = {name: [id(w) for w in weights_behind(layer)] for name, layer in self.layers.items()}

    def check(self, heard: Callable[[str, nn.Parameter], bool]) -> None:
        """Raise :class:`ProbeError` for a layer whose new weight learns and is not the optimizer's, or was not ``heard``."""
        for name, layer in self.layers.items():
            weights = weights_behind(layer)
            if (found := [id(w) for w in weights]) == self._known[name]:
                continue
            stepped = [w for w in weights if is_stepped(self.optimizer, w)]
            if not stepped and any(w.requires_grad for w in weights):
                raise ProbeError(
                    f"the weight of layer {name!r} was replaced by another (layer.weight = ..., load_state_dict with "
                    "assign=True, a weight that is now computed from others), which the optimizer does not step: add it to the "
                    "optimizer, freeze it (requires_grad_(False)), or copy values into the old one (weight.data.copy_(...))"
                )
            if any(w.requires_grad and not heard(name, w) for w in stepped):
                raise ProbeError(
                    f"the weight of layer {name!r} was replaced by another that the optimizer did not have when the layer was "
                    "called: in a measured step, replace it and add it to the optimizer before"
                )
            if stepped:
                self._known[name] = found

    def check_layers(self, called: Container[str]) -> None:
        """Raise :class:`ProbeError` for a layer that is not called any more, since another one has its name."""
        for name, layer in self.layers.items():
            if (
                name not in called
                and (now := _module(self.model, name)) is not layer
                and isinstance(now, MEASURABLE)
            ):
                raise ProbeError(
                    f"layer {name!r} was replaced by another {type(now).__name__} while recording, to which nobody listens: "
                    "end this recorder before, and start another after; or leave the layer out with layers="
                )


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model if name == ROOT else model.get_submodule(name)
    except AttributeError:
        return None
