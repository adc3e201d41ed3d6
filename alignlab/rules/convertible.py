"""Which modules of a model can be converted, into what, and what a reader is told of those that cannot."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from alignlab.rules.attention import FeedbackMultiheadAttention, FeedbackOutProjection
from alignlab.rules.cells import FeedbackGRUCell, FeedbackLSTMCell, FeedbackRNNCell
from alignlab.rules.convolution import (
    FeedbackConv1d,
    FeedbackConv2d,
    FeedbackConv3d,
    FeedbackConvTranspose2d,
)
from alignlab.rules.hosts import FeedbackHost
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.linear import FeedbackLinear
from alignlab.rules.local import FeedbackLocallyConnected2d, LocallyConnected2d

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

_KNOWN = ", ".join(t.__name__ for t in CONVERTIBLE if t is not NonDynamicallyQuantizableLinear)
_OWN = "its own"
_OWN_WAY_OUT = (
    ". Put tokens, positions and scales of your own into an nn.Embedding, nn.LayerNorm or nn.RMSNorm; or, for a layerwise "
    "rule, convert the parts around them one by one"
)


def feedback_layers(model: nn.Module) -> dict[str, FeedbackLayer]:
    """The converted layers by module name, in the model's order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FeedbackLayer)}


def convertible(model: nn.Module) -> dict[str, nn.Module]:
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


def _hint(module: nn.Module) -> str:
    """What a reader of the refusal needs to know of a module."""
    if (known := next((text for kind, text in HINTS.items() if isinstance(module, kind)), None)) is not None:
        return f" ({known})"
    if type(module).__module__.startswith("torch.nn") or isinstance(module, tuple(CONVERTIBLE)):
        return ""
    return f" ({_OWN} {', '.join(name for name, _ in module.named_parameters(recurse=False))})"


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
