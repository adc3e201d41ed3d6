"""Modules that hold several linear maps as parameters of their own: recurrent cells and attention.

Converted, such a *host* calls child modules instead, one a map, that are layers with feedback like any other: rules,
clocks, hooks and probes see each map by itself. A child's weight and bias *are* the host's parameters, under their old
names: the children add nothing to ``named_parameters()``, bring only their feedback to ``state_dict``, follow the host
where a parameter is replaced, and are gone after ``revert``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.rules.credit import Chain, Credit, Delivery
from alignlab.rules.linear import FeedbackLinear
from alignlab.rules.rule import Rule


class HostedLinear(FeedbackLinear):
    """A linear map with feedback whose weight and bias belong to the module around it."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)
        self.used_rows: slice | None = None  # of the weight, by the last call; None for all

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """The map of ``x``; with ``rows``, of these outputs alone, and zeros for the others."""
        self.used_rows = rows
        return super().forward(x)

    def transform(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor | None, chain: Chain
    ) -> Tensor:
        if (rows := self.used_rows) is None:
            return super().transform(x, weight, bias, feedback, chain)
        if isinstance(chain, Delivery):
            chain.above = True  # of the padded output
        parts = [None if t is None else t[rows] for t in (weight, bias, feedback)]
        z = super().transform(x, parts[0], parts[1], parts[2], chain)  # type: ignore[arg-type]
        return F.pad(z, (rows.start, self.out_features - rows.stop))

    def _apply(self, fn: Any, recurse: bool = True) -> HostedLinear:
        parameters = self._parameters
        own = {
            name: p for name, p in parameters.items() if name not in ("weight", "bias")
        }  # those the host moves
        self.__dict__["_parameters"] = own
        try:
            return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]
        finally:
            self.__dict__["_parameters"] = parameters | own

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("weight", "bias"):
            destination.pop(prefix + name, None)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        missing = args[2]
        for name in ("weight", "bias"):
            if prefix + name in missing:
                missing.remove(prefix + name)


class FeedbackHost(nn.Module):
    """What converted cells and attention share; ``maps``: each child's name with its weight's and its bias's."""

    maps: ClassVar[dict[str, tuple[str, str]]]

    def attach(self, rule: Rule, credit: Credit, seed: int) -> None:
        """Add the children and set them up for ``rule``; ``convert`` calls this after changing the class."""
        generator = torch.Generator().manual_seed(seed)
        own = list(self._modules)
        for name, (weight, bias) in self.maps.items():
            child = HostedLinear(self._parameters[weight], self._parameters[bias])  # type: ignore[arg-type]
            self.add_module(name, child.train(self.training))
            child.attach(rule, credit, int(torch.randint(2**62, (), generator=generator, device="cpu")))
        for name in own:
            self._modules[name] = self._modules.pop(name)  # behind the maps: in the order of use

    def detach_rule(self) -> None:
        """Undo :meth:`attach`."""
        for name in self.maps:
            if name in self._modules:
                self.hosted(name).detach_rule()
                del self._modules[name]

    def hosted(self, name: str) -> HostedLinear:
        """The child of a map, with the host's present parameters."""
        child = self._modules[name]
        assert isinstance(child, HostedLinear)
        for own, parameter in zip(("weight", "bias"), self.maps[name], strict=True):
            if parameter not in self._parameters:
                self._refuse_made_anew(parameter)
            elif child._parameters[own] is not self._parameters[parameter]:
                child._parameters[own] = self._parameters[parameter]
                if own == "weight":
                    child.replaced()
        return child

    def _refuse_made_anew(self, parameter: str) -> None:
        if not getattr(self, "_is_replica", False):  # DataParallel's hold tensors, the children as well
            raise RuntimeError(
                f"{parameter} of a {type(self).__name__} is made anew at each pass (pruned or reparametrised after "
                "convert), which its feedback cannot follow: revert the model, or make it permanent before converting"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> FeedbackHost:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._follow()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._follow()

    def _follow(self) -> None:
        for name in self.maps:
            self.hosted(name)


def hosted_parameters(module: nn.Module) -> set[str]:
    """The names of the module's own parameters that children with feedback use; of other modules none."""
    return (
        {name for names in module.maps.values() for name in names}
        if isinstance(module, FeedbackHost)
        else set()
    )
