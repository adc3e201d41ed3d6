"""What to remember about a run besides its numbers: versions, device, the rule and how its feedback began, the optimizer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from alignlab.probes.selection import main_rate
from alignlab.rules.layers import FeedbackLayer
from alignlab.store import SCHEMA_VERSION


def rule_name(model: nn.Module) -> str:
    """The coordinate ``rule``: ``none`` for an unconverted model."""
    names = {m.rule.name for m in model.modules() if isinstance(m, FeedbackLayer)}
    return "+".join(sorted(names)) if names else "none"


def run_coords(
    model: nn.Module, optimizer: torch.optim.Optimizer, layers: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """The coordinates that can be told from the objects alone: ``rule`` and ``lr``."""
    rate = main_rate(optimizer, layers)  # of several runs each has its own
    return {"rule": rule_name(model), "lr": rate if isinstance(rate, float) else np.nan}


def run_attrs(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Versions, device, rule with its arguments, optimizer with its settings."""
    rules = {repr(m.rule): m.rule for m in model.modules() if isinstance(m, FeedbackLayer)}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    local = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "schema_version": SCHEMA_VERSION,
        "alignlab_version": alignlab_version(),
        "torch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "device": str(device),
        "learning_rule": "; ".join(rules) or "the model's own gradients",
        "feedback_init": "; ".join(_name(rule.init) for rule in rules.values() if rule.draws),
        "optimizer": _describe(optimizer),
        "gradients": "of this process only" if local else "of the whole batch",
    }


@functools.cache
def alignlab_version() -> str:
    """The installed version, looked up once."""
    from alignlab import __version__

    return __version__


def _name(init: Any) -> str:
    return str(getattr(init, "__name__", init))


def _describe(optimizer: torch.optim.Optimizer) -> str:
    technical = {"params", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable", "maximize"}
    settings = {k: v for k, v in optimizer.param_groups[0].items() if k not in technical}
    return f"{type(optimizer).__name__}({', '.join(f'{k}={v}' for k, v in settings.items())})"
