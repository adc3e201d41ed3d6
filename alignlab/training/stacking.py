"""Many networks of one shape as one network: what :mod:`alignlab.training.population` trains.

Linear layers and convolutions become stacked ones (:mod:`alignlab.rules.stacked`). Of what lies between them, nonlinearities
work on any leading dimensions as they are, and pooling sees the samples of all runs as those of one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from alignlab.rules import FeedbackLayer
from alignlab.rules.choosing import make_rules
from alignlab.rules.conversion import hook_output
from alignlab.rules.credit import Credit
from alignlab.rules.stacked import Stacked, company, lane_of, mixes
from alignlab.rules.stacked_maps import stack_layers
from alignlab.training.spec import RunSpec

# what members of a population may differ in; whether their rules may, lane() says
OWN = (
    "seed", "order", "lr", "lr_schedule", "warmup", "momentum", "nesterov", "weight_decay", "clip",
    "weight_init", "weight_scale", "rule", "rule_args", "graft", "step_sizes",
)  # fmt: skip


def shared(spec: RunSpec) -> RunSpec:
    """What runs must have in common to be trained together, as a spec with everything else at its default."""
    defaults = {name: RunSpec.model_fields[name].get_default(call_default_factory=True) for name in OWN}
    return spec.changed(**defaults)


def lane(spec: RunSpec) -> str:
    """A text that is equal for runs whose layers learn by the same rules with the same settings."""
    return "; ".join(
        f"{pattern}: {lane_of(rule)}" for pattern, rule in make_rules(spec.rule, **spec.rule_args).items()
    )


def family(spec: RunSpec) -> str:
    """A text that is equal for runs whose rules can stand side by side; empty where a rule acts on single runs alone.

    Layerwise rules all can, runs of noise at a given cosine with tables of their own too; those that hand the error straight to
    the layers, compare passes or learn B by the optimizer stand beside runs of the same rule and setting.
    """
    rules = list(make_rules(spec.rule, **spec.rule_args).values())
    if not all(rule.stacks for rule in rules):
        return ""
    if all(mixes(rule) for rule in rules):
        return "layerwise"
    return company(rules[0]) if rules[0].each_its_own else lane(spec)


class SamplesOfAll(nn.Sequential):
    """A module for samples, applied to those of K runs together, (K, N, …) → (K, N, …)."""

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = super().forward(input.flatten(0, 1))  # type: ignore[no-untyped-call]
        return found.view(*input.shape[:2], *found.shape[1:])


def stacked_model(models: Sequence[nn.Module]) -> nn.Sequential:
    """K networks of layers one after the other as one, for inputs (K, N, …); its parameters are copies."""
    credit, layers = Credit(), dict[str, nn.Module]()
    for (name, first), *others in zip(*(model.named_children() for model in models), strict=True):
        if isinstance(first, FeedbackLayer):
            layers[name] = stack_layers([first, *(module for _, module in others)], credit)
        else:
            layers[name] = _for_runs(first)
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    hook_output(model, credit, stacked_layers(model)[0].rule)
    return model


def _for_runs(module: nn.Module) -> nn.Module:
    """A module without weights as it works on the samples of several runs."""
    if isinstance(module, nn.Flatten):
        return nn.Flatten(2)
    return SamplesOfAll(module) if isinstance(module, nn.MaxPool2d) else module


def stacked_layers(model: nn.Module) -> list[Stacked]:
    """The layers of a stacked model that have a dimension of runs, in its order."""
    return [m for m in model.modules() if isinstance(m, Stacked)]
