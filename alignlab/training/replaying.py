"""From a recorded run to what repeats a part of it in another: noise at its angles, and steps of its sizes.

A rule that wins may do so by its direction or by how long its steps are. Backprop turned to the rule's own recorded cosine,
layer by layer and step by step, has the angle and, if wanted, the length, and nothing else of the rule (control ``alignment``);
a run that takes the recorded sizes has these, and directions of its own (``replayed_magnitude``, ``weight_norm``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def replayed_noise(run: xr.Dataset, *, gain: bool = True) -> dict[str, Any]:
    """The arguments ``{"cosine", "gain", "steps"}`` for the rule ``noisy_backprop``, as plain lists that a RunSpec carries.

    ``run``: one recorded run with ``gradient_angle`` on (step, layer), and ``feedback_gain`` unless ``gain`` is False, in which
    case gradients keep backprop's length. Steps without an angle (a zero gradient, evaluations) take the one before, the
    first ones the first there is; layers that never had one are left to backprop.

    >>> import xarray as xr
    >>> angles = xr.DataArray([[60.0], [float("nan")], [90.0]], {"step": [0, 5, 10], "layer": ["fc"]}, ("step", "layer"))
    >>> replayed_noise(xr.Dataset({"gradient_angle": angles}), gain=False)
    {'cosine': {'fc': [0.5, 0.0]}, 'steps': [0, 10]}

    Raises ``ValueError`` for a dataset without these variables, with several runs, or without any angle.
    """
    wanted = ["gradient_angle", *(["feedback_gain"] if gain else [])]
    recorded = _recorded("replayed_noise", run, wanted, "GradientAngle and EffectiveLR")
    cosines = np.cos(np.radians(_filled(recorded["gradient_angle"].values)))
    arguments: dict[str, Any] = {"cosine": _table(recorded, np.round(cosines, 12))}
    if gain:
        arguments["gain"] = _table(recorded, _filled(recorded["feedback_gain"].values))
    return arguments | {"steps": [int(step) for step in recorded["step"].values]}


def replayed_sizes(run: xr.Dataset, *, relative: bool = False) -> dict[str, Any]:
    """The arguments ``{"sizes", "steps", "relative"}`` of :class:`alignlab.training.StepSizes` that repeat a run's step sizes.

    ``run``: one recorded run with ``update_norm`` on (step, layer), or with ``relative_update`` where ``relative`` is true.
    Steps without a size, or without a finite one, take the one before, the first ones the first there is.

    >>> import xarray as xr
    >>> norms = xr.DataArray([[0.5], [float("nan")], [0.25]], {"step": [0, 5, 10], "layer": ["fc"]}, ("step", "layer"))
    >>> replayed_sizes(xr.Dataset({"update_norm": norms}))
    {'sizes': {'fc': [0.5, 0.25]}, 'steps': [0, 10], 'relative': False}

    Raises ``ValueError`` for a dataset without the variable, with several runs, or without any size.
    """
    name = "relative_update" if relative else "update_norm"
    recorded = _recorded("replayed_sizes", run, [name], "EffectiveLR")
    steps = [int(step) for step in recorded["step"].values]
    return {"sizes": _table(recorded, _filled(recorded[name].values)), "steps": steps, "relative": relative}


def _recorded(asked: str, run: xr.Dataset, wanted: list[str], probes: str) -> xr.Dataset:
    """The ``wanted`` variables of one run, at the steps and layers at which the first of them was measured."""
    absent = [name for name in wanted if name not in run]
    if absent:
        raise ValueError(f"{asked}: the run has no {' and no '.join(absent)}: record it with {probes}")
    first = wanted[0]
    if set(run[first].dims) != {"step", "layer"}:
        dims = ", ".join(map(str, run[first].dims))
        raise ValueError(
            f"{asked}: expected one run on (step, layer), not on ({dims}): select one, run.isel(run=0)"
        )
    recorded = run[wanted].transpose("step", "layer").dropna("step", how="all", subset=[first])
    recorded = recorded.dropna("layer", how="all", subset=[first])
    if not recorded[first].size:
        raise ValueError(f"{asked}: the run recorded no {first.split('_')[-1]}")
    return recorded


def _filled(values: Any) -> Any:
    """(steps, layers) with each gap filled by the entry before it, and leading gaps by the first entry."""
    filled = np.array(values, dtype=np.float64)
    for column in filled.T:
        there = np.flatnonzero(np.isfinite(column))
        last = np.maximum.accumulate(np.where(np.isfinite(column), np.arange(len(column)), there[0]))
        column[:] = column[last]
    return filled


def _table(run: xr.Dataset, values: Any) -> dict[str, list[float]]:
    return {
        str(layer): [float(v) + 0.0 for v in column]
        for layer, column in zip(run["layer"].values, values.T, strict=True)
    }
