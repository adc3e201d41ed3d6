"""Turn a model's layers into layers with feedback, in place, and back; module tree and parameters stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from alignlab.rules.attention import FeedbackMultiheadAttention, FeedbackOutProjection
from alignlab.rules.backprop import Backprop
from alignlab.rules.cells import FeedbackGRUCell, FeedbackLSTMCell, FeedbackRNNCell
from alignlab.rules.choosing import Choice, assign, make_rules
from alignlab.rules.convolution import (
    FeedbackConv1d,
    FeedbackConv2d,
    FeedbackConv3d,
    FeedbackConvTranspose2d,
)
from alignlab.rules.credit import Credit
from alignlab.rules.direct import DirectOutput
from alignlab.rules.hosts import FeedbackHost
from alignlab.rules.initialisation import Init
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.linear import FeedbackLinear
from alignlab.rules.local import FeedbackLocallyConnected2d, LocallyConnected2d
from alignlab.rules.outlet import ModelOutput
from alignlab.rules.rule import Rule

Model = TypeVar("Model", bound=nn.Module)

ROOT = "root"  # the name of a model that is itself a layer

CONVERTIBLE: dict[type[nn.Module], type[FeedbackLayer | FeedbackHost]] = {
    nn.Linear: FeedbackLinear,
    nn.Conv1d: FeedbackConv1d,
    nn.Conv2d: FeedbackConv2d,
    nn.Conv3d: FeedbackConv3d,
    nn.ConvTranspose2d: FeedbackConvTranspose2d,
    LocallyConnected2d: FeedbackLocallyConnected2d,
    nn.RNNCell: FeedbackRNNCell,
    nn.GRUCell: FeedbackGRUCell,
    nn.LSTMCell: FeedbackLSTMCell,
    nn.MultiheadAttention: FeedbackMultiheadAttention,
    NonDynamicallyQuantizableLinear: FeedbackOutProjection,  # attention's out_proj
}

# Their parameters act on one channel each, or are looked up: no error travels between units here, so layerwise rules leave
# them to autograd, with the signal that reaches them. (Direct ones send none to an embedding below the first layer.)
PASSED: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
    nn.Embedding,
    nn.EmbeddingBag,
)

HINTS: dict[type[nn.Module], str] = {
    nn.RNNBase: "it hides the errors between its steps: loop over nn.RNNCell, nn.GRUCell or nn.LSTMCell",
    nn.MultiheadAttention: "kdim and vdim must be embed_dim",
}


def convert(
    model: Model,
    rule: Choice,
    *,
    init: str | Init | None = None,
    generator: torch.Generator | None = None,
    **rule_args: Any,
) -> Model:
    """Make ``model`` learn by ``rule``; in place, returns ``model``.

    Every layer of :data:`CONVERTIBLE` becomes one of the same class with feedback: it hands errors down through the
    buffer ``feedback`` instead of its weight. Forward values, parameters and their names do not change. Recurrent cells
    and attention, which hold several maps, get a child module with feedback for each. Normalisations, PReLU and
    embeddings stay as they are. Modules that share one parameter get the same feedback.

    ``rule``: a name of :data:`RULES`, or a :class:`Rule`. ``rule_args``: its arguments (``period=100``). Or a rule for each
    of several patterns of layer names, ``{"features.*": "bp", "classifier.*": {"rule": "fa", "init": "nokland"}}``: the first
    that matches a layer counts, and layers that none matches learn by backprop.
    ``init``: the distribution of B, a name of :data:`INITS` or a callable ``(like, generator) -> tensor``.
    ``generator``: where B comes from; without one, from torch's global seed. Processes that train one model together by
    DistributedDataParallel have one B, the first process's, whatever each has converted from (:mod:`alignlab.rules.ranks`); a
    loop that averages gradients itself has to convert from one seed.

    Raises ``ValueError`` for an unknown rule or argument, a model that is converted already or has nothing to convert,
    and ``TypeError`` that lists every module that cannot be converted, or names what is no model or generator. In either case
    the model was not changed.
    """
    _check_model(model)
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(
            f"generator is {generator!r:.60}, expected a torch.Generator: torch.Generator().manual_seed(0)"
        )
    made = make_rules(rule, init=init, **rule_args)
    named = _convertible(model)
    layers, learns_by = list(named.values()), assign(made, list(named), Backprop())
    for own in made.values():
        own.fits(list(named))
    seeds = _seeds(layers, generator)
    credit = Credit()
    done: list[nn.Module] = []
    try:
        for layer, own, seed in zip(layers, learns_by, seeds, strict=True):
            original = type(layer)
            layer.__class__ = CONVERTIBLE[original]
            assert isinstance(layer, FeedbackLayer | FeedbackHost)
            done.append(layer)
            layer.attach(own, credit, seed)
    except BaseException:
        for changed in done:
            _restore(changed)
        raise
    hook_output(model, credit, learns_by[0])
    return model


def revert(model: Model) -> Model:
    """Undo :func:`convert`: the original classes with the same parameter tensors, without feedback. In place.

    Raises ``ValueError`` for a model without converted layers.
    """
    _check_model(model)
    found = [m for m in model.modules() if type(m) in CONVERTIBLE.values()]
    if not found:
        raise ValueError("revert: the model has no converted layers")
    for layer in found:
        _restore(layer)
    for module in model.modules():
        _unhook_output(module)
    return model


def feedback_layers(model: nn.Module) -> dict[str, FeedbackLayer]:
    """The converted layers by module name, in the model's order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FeedbackLayer)}


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected an nn.Module")


def _convertible(model: nn.Module) -> dict[str, nn.Module]:
    """The layers to convert by name; the model itself is called ``root``, as where it is recorded."""
    if feedback_layers(model):
        first = next(iter(feedback_layers(model).values()))
        raise ValueError(
            f"the model is converted already, to {first.rule!r}: alignlab.rules.revert(model) first"
        )
    layers, unsupported = {}, []
    for name, module in model.named_modules():
        if _is_complex(module):
            unsupported.append(f"{name or '(the model itself)'}: {type(module).__name__} (complex weights)")
        elif is_sharded(module):
            unsupported.append(
                f"{name or '(the model itself)'}: {type(module).__name__} (weights split over processes)"
            )
        elif _accepts(module):
            layers[name or ROOT] = module
        elif _has_own_parameters(module) and not isinstance(module, PASSED):
            unsupported.append(f"{name or '(the model itself)'}: {type(module).__name__}{_hint(module)}")
    if unsupported:
        raise TypeError(
            f"cannot convert {'; '.join(unsupported)}. Convertible are {_KNOWN} (not their subclasses, and without "
            f"reparametrised weights){_OWN_WAY_OUT if any(f'({_OWN} ' in found for found in unsupported) else ''}"
        )
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer to convert: expected at least one of {_KNOWN}")
    return layers


_OWN = "its own"
_OWN_WAY_OUT = (
    ". Put tokens, positions and scales of your own into an nn.Embedding, nn.LayerNorm or nn.RMSNorm; or, for a layerwise "
    "rule, convert the parts around them one by one"
)


def _hint(module: nn.Module) -> str:
    """What a reader of the refusal needs to know of a module."""
    if (known := next((text for kind, text in HINTS.items() if isinstance(module, kind)), None)) is not None:
        return f" ({known})"
    if type(module).__module__.startswith("torch.nn") or isinstance(module, tuple(CONVERTIBLE)):
        return ""
    return f" ({_OWN} {', '.join(name for name, _ in module.named_parameters(recurse=False))})"


_KNOWN = ", ".join(t.__name__ for t in CONVERTIBLE if t is not NonDynamicallyQuantizableLinear)


def _accepts(module: nn.Module) -> bool:
    """Whether the module is of a kind that we know, with its weights as parameters."""
    made = CONVERTIBLE.get(type(module))
    if made is None:
        return False
    if not issubclass(made, FeedbackHost):
        return set(module._parameters) == {"weight", "bias"}
    weights = [weight for weight, _ in made.maps.values()]
    biases = [bias for _, bias in made.maps.values()]
    return all(module._parameters.get(w) is not None for w in weights) and set(biases) <= set(
        module._parameters
    )


def _is_complex(module: nn.Module) -> bool:
    """Whether a layer to convert has complex weights, whose errors go down conjugated: no rule says how."""
    return type(module) in CONVERTIBLE and any(p.is_complex() for p in module.parameters(recurse=False))


def is_sharded(module: nn.Module) -> bool:
    """Whether a process holds but a part of the module's own weights (``fully_shard``, tensor parallelism)."""
    return any(hasattr(p, "device_mesh") for p in module.parameters(recurse=False))  # that of a DTensor


def _has_own_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _seeds(layers: list[nn.Module], generator: torch.Generator | None) -> Iterator[int]:
    """One seed a weight, in the model's order: tied weights get the same, and so the same feedback."""
    drawn: dict[int, int] = {}
    for layer in layers:
        weight = id(_weight(layer))
        if weight not in drawn:
            device = generator.device if generator is not None else "cpu"
            drawn[weight] = int(torch.randint(2**62, (), generator=generator, device=device))
        yield drawn[weight]


def _weight(layer: nn.Module) -> Any:
    """What a layer, or the first map of a host, is tied by."""
    made = CONVERTIBLE[type(layer)]
    name = next(iter(made.maps.values()))[0] if issubclass(made, FeedbackHost) else "weight"
    return getattr(layer, name)


def hook_output(model: nn.Module, credit: Credit, first: Rule) -> None:
    """Put on the model the hooks of a rule that takes hold of it as a whole; no other rule stands beside such a one."""
    if not (first.direct or first.whole):
        return
    output = DirectOutput(credit) if first.direct else ModelOutput(credit, first)
    model.register_forward_pre_hook(output.before)
    model.register_forward_hook(output.after, always_call=True)  # a pass that fails is over too


def _unhook_output(module: nn.Module) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), DirectOutput | ModelOutput):
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)


def _restore(layer: nn.Module) -> None:
    assert isinstance(layer, FeedbackLayer | FeedbackHost)
    layer.detach_rule()
    original = next(plain for plain, made in CONVERTIBLE.items() if made is type(layer))
    layer.__class__ = original  # type: ignore[assignment]
