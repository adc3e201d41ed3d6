"""Whether what was taken of a step is whole: true errors beside all that arrived, and every layer that learnt among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from alignlab.probes.arrivals import Taken
from alignlab.probes.errors import ProbeError
from alignlab.probes.uses import Use, parameter_of


def complete(taken: Mapping[str, Sequence[Use]], is_backprop: bool, asked: bool) -> None:
    """Note what is true where the rule's errors are the true ones. Raises :class:`ProbeError` where the true errors were
    ``asked`` for and are not known, or the input is no longer what it was."""
    for name, use in ((name, use) for name, uses in taken.items() for use in uses):
        if use.h._version != use.version:
            raise ProbeError(
                f"the input of layer {name!r} was overwritten in place after it was used, so its gradient cannot be "
                "measured. Give each micro-batch a tensor of its own"
            )
        if is_backprop or use.is_taught_by_backprop():
            use.delta_bp = use.delta_rule
        elif use.delta_bp is None and asked:
            raise ProbeError(
                f"layer {name!r} got its error signal without the model's output getting one, so its true gradient is "
                "unknown. Call the model that the recorder watches (not its parts), let it return tensors, or tuples, lists or "
                "dicts of them (no distribution or object of your own), pass use_reentrant=False to checkpoints; and where the "
                "loss holds a derivative of the model (create_graph=True), record the run under backprop"
            )


def check_seen(found: Taken, layers: Mapping[str, nn.Module]) -> None:
    """Raise :class:`ProbeError` where one of the ``layers`` learnt and none of its calls was seen."""
    known = {id(parameter_of(layers[name])) for name in found.uses}
    for name in layers:
        if name in found.learnt and id(parameter_of(layers[name])) not in known:
            if found.derived:
                raise ProbeError(
                    f"layer {name!r} learns by derivatives of the model alone (create_graph=True): no error came to its "
                    "output. Leave it out with layers="
                )
            raise ProbeError(
                f"layer {name!r} learns, but no call of it was seen: its weight is used without it, as inside "
                "nn.MultiheadAttention (convert(model, 'bp') makes layers of its maps; or leave it out with layers=) or it "
                "runs in an activation checkpoint without use_reentrant=False"
            )
