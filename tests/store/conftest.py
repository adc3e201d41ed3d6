"""Small seeded runs in the data contract, made without any training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr


def _make_run(
    run_id: str = "run",
    steps: Any = (0, 10, 20),
    layers: tuple[str, ...] = ("fc1", "fc2"),
    modes: int = 3,
    seed: int = 0,
    attrs: dict[str, Any] | None = None,
    **scalars: Any,
) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    steps = np.array(steps, dtype=np.int64)
    shape = (len(steps), len(layers), modes)
    variables = {
        "loss": ("step", rng.exponential(size=shape[:1]).astype(np.float32)),
        "samples_seen": ("step", 32 * (steps + 1)),
        "gradient_angle": (
            ("step", "layer"),
            rng.uniform(0, 180, shape[:2]).astype(np.float32),
            {"units": "degree"},
        ),
        "spectrum_real": (
            ("step", "layer", "mode"),
            rng.normal(size=shape).astype(np.float32),
            {"method": "exact"},
        ),
    }
    coords = {
        "step": steps,
        "layer": list(layers),
        "mode": np.arange(modes),
        "kind": ("layer", ["Linear"] * len(layers)),
        "fan_in": ("layer", np.arange(4, 4 + len(layers))),
        **{"run_id": run_id, "rule": "fa", "lr": 0.1, "seed": seed, "task": "xor", "arm": "", "control": ""},
        **{"status": "finished", "last_step": int(steps[-1]) if len(steps) else -1},
    }
    return xr.Dataset(variables, coords=coords | scalars, attrs={"device": "cpu", **(attrs or {})})


@pytest.fixture(scope="session")
def make_run() -> Callable[..., xr.Dataset]:
    return _make_run
