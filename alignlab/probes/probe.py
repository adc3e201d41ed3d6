"""The base of all probes. A probe is a few lines: the names of what it measures, and a function of one layer's tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from alignlab.probes.observation import LayerObservation, Observation

TAKEN = (
    "step", "layer", "mode", "run", "run_id", "status", "last_step", "rule", "lr", "kind", "fan_in", "fan_out",
    "learning_rate", "wall_time",
)  # fmt: skip


class Probe:
    """Measures something at every scheduled step. Subclass it, set ``quantities`` and write :meth:`measure`.

    >>> class StableRank(Probe):
    ...     quantities = ("stable_rank",)
    ...     needs_truth = False  # it asks nothing of backprop
    ...     def measure(self, layer):
    ...         W = layer.weight.flatten(1)
    ...         return {"stable_rank": (W.norm() / torch.linalg.matrix_norm(W, 2)) ** 2}

    ``Recorder(model, optimizer, [StableRank()])`` records it; ``alignlab.measures.QUANTITIES["stable_rank"] = Quantity(…)``
    says what it is, for attributes and figures.

    What it reads: :class:`LayerObservation` and :class:`Observation`. Not the model itself: that has stepped already where any
    probe of the recorder needs the update (``EffectiveLR``), and has not where none does; a probe that evaluates it says
    ``needs_update = True``, and so always meets the new weights.

    What must be cheap is written in two stages instead: :meth:`keep` takes the few numbers at the step that the formulas
    need, and :meth:`finish` has the formulas, applied later to many steps at once.

    ``quantities``: the variables that it records. ``needs_update``: whether it reads ΔW, which costs a copy of the weights.
    ``needs_truth``: whether it reads what backprop would have sent, which costs a second backward pass; where no probe of a
    recorder does, ``delta_bp`` is not there.
    """

    quantities: tuple[str, ...] = ()
    needs_update: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = True

    user: str = ""  # which recorder it is at work in

    def attach(self, model: nn.Module) -> None:
        """Called once when recording starts."""

    def detach(self) -> None:
        """Called once when recording ends."""

    def due(self, count: int) -> bool:
        """Whether to measure at the ``count``-th scheduled step (from 0): for probes sparser than their recorder."""
        return True

    def prepare(self) -> None:
        """Called before the forward pass of a step that will be measured."""

    def measure(self, layer: LayerObservation) -> dict[str, Tensor]:
        """Values for one layer by their names in ``quantities``: real scalars, or vectors along ``mode``; a recorder of several
        runs takes one of these for each run, in a leading dimension. Leave out what is not defined there."""
        kept = self.keep(layer).items()
        return self.finish(
            {
                k: v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64, device="cpu")
                for k, v in kept
            }
        )

    def keep(self, layer: LayerObservation) -> Mapping[str, Tensor | float]:
        """For probes without a ``measure`` of their own: small tensors of one layer, or numbers, from which ``finish`` finds
        its values. They are copied. Read none back here (``float``, ``if``): a GPU would wait."""
        return {}

    def finish(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values, as ``measure`` returns them, from what :meth:`keep` kept. The tensors lead with a dimension of steps,
        so reduce over last dimensions only; the values lead with it too. What was not kept is not there."""
        return {}

    @property
    def in_two_stages(self) -> bool:
        """Whether values are to be found by :meth:`keep` now and :meth:`finish` later."""
        return type(self).measure is Probe.measure

    def measure_step(self, observation: Observation) -> dict[str, Tensor | float]:
        """Values for the whole step. What a layer's observation computes, it computes anew: the layers have been let go of."""
        return {}

    def attrs(self) -> dict[str, object]:
        """What to remember about how it measured."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What it must know to go on from a checkpoint, for probes whose values depend on earlier steps: numbers, texts,
        tensors, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave; called after :meth:`attach`."""


def checked(probes: Sequence[Probe], coords: Collection[str] = ()) -> list[Probe]:
    """The probes as a list, for a run that has these coordinates.

    Raises ``TypeError`` for what is no probe or has no tuple of names, ``ValueError`` where two probes would record one
    quantity, or a probe one that is the recorder's or a coordinate.
    """
    if isinstance(probes, str) or not isinstance(probes, Probe | Iterable):
        raise TypeError(f"probes is {probes!r}, expected a list of probes, [GradientAngle()]")
    probes = [probes] if isinstance(probes, Probe) else list(probes)
    owner: dict[str, Probe] = {}
    for probe in probes:
        if not isinstance(probe, Probe):
            hint = (
                f": write {probe.__name__}()" if isinstance(probe, type) and issubclass(probe, Probe) else ""
            )
            raise TypeError(f"{probe!r} is not a probe{hint}")
        if isinstance(probe.quantities, str):
            raise TypeError(
                f"{type(probe).__name__}.quantities is {probe.quantities!r}, expected a tuple: ({probe.quantities!r},)"
            )
        for name in probe.quantities:
            if name in TAKEN or name in coords:  # a coordinate would take the place of what was recorded
                whose = "every run has already" if name in TAKEN else "one of its coordinates has"
                raise ValueError(
                    f"{type(probe).__name__} records {name!r}, a name that {whose}: choose another"
                )
            if name in owner:
                raise ValueError(
                    f"{type(probe).__name__} and {type(owner[name]).__name__} both record {name!r}: drop one"
                )
            owner[name] = probe
    return probes
