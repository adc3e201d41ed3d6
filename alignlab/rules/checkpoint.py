"""What a checkpoint holds of a layer with feedback beside its tensors: its state as a tensor, and whether it is this rule's.

Text as bytes in a tensor, for loops that take a checkpoint's values to be tensors (``v.clone()``, ``v.cpu()``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignlab.rules.rule import Rule


def packed(rule: Rule, state: Mapping[str, Any]) -> Tensor:
    """A layer's ``state`` of plain values, with the rule that it is of."""
    told = {"rule": rule.name, "settings": _plain(rule.settings()), **state}
    return torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8, device="cpu")


def unpacked(rule: Rule, state: Tensor | dict[str, Any]) -> dict[str, Any]:
    """The state that was packed. Raises ``ValueError`` where it is of another rule, or of other settings."""
    # of any dtype, where a loop cast all values; a dict: from before it was a tensor
    text = bytes(state.to(torch.uint8).tolist()) if isinstance(state, Tensor) else json.dumps(state)
    told = dict[str, Any](json.loads(text))
    if told["rule"] != rule.name:
        raise ValueError(
            f"the checkpoint's layers learn by {told['rule']!r}, this model's by {rule!r}: convert the model "
            f"to {told['rule']!r} before loading"
        )
    saved, own = told.get("settings", {}), json.loads(json.dumps(_plain(rule.settings())))
    differ = [f"{key}={saved[key]!r}" for key in saved if key in own and saved[key] != own[key]]
    if differ:
        raise ValueError(
            f"the checkpoint's layers learn with {', '.join(differ)}, this model's by {rule!r}: convert the "
            "model with the checkpoint's settings before loading"
        )
    return told


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint can hold and compare of a rule's settings, and of another rule's among them: no callables."""
    parts = {k: _plain(v) if isinstance(v, Mapping) else v for k, v in settings.items()}
    return {k: v for k, v in parts.items() if isinstance(v, str | int | float) or (isinstance(v, dict) and v)}
