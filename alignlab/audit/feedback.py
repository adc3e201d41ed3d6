"""What theory says of W and its feedback B: to stand beside what was measured.

Of a feedback that learns, the angle: Kolen-Pollack (Kolen & Pollack 1994) shrinks B − W by a factor a step, a weight mirror
(Akrout et al. 2019) averages noise, at a price. Of one that does not, how many eigenvalues of W Bᵀ lie where chance puts none.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alignlab.audit.outcomes import around, layers_with, steps_to
from alignlab.rules.weight_mirror import WeightMirror
from alignlab.training.optimizers import learning_rate
from alignlab.training.spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = [
    "aligned_at",
    "angle_of_sides",
    "beyond_chance",
    "kolen_pollack_angle",
    "mirror_angle",
    "mirror_price",
    "nearness",
    "predicted_angles",
]


def angle_of_sides(a: Any, b: Any, c: Any) -> NDArray[np.float64]:
    """The angle in degrees between two vectors of lengths a and b whose difference has length c; arrays of one shape.

    sin²(θ/2) = (c² − (a − b)²) / 4ab, exact for small angles too; NaN where a or b is 0.

    >>> angle_of_sides([1.0, 3.0], [1.0, 4.0], [1.0, 5.0]).round(9)
    array([60., 90.])
    """
    a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))
    product = np.where(a * b > 0, a * b, np.nan)
    half: NDArray[np.float64] = np.arcsin(np.sqrt(np.clip((c**2 - (a - b) ** 2) / (4 * product), 0, 1)))
    return np.degrees(2 * half)


def kolen_pollack_angle(run: xr.Dataset, layer: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Steps, and the angle in degrees that B and W of one run have there if ‖B − W‖ falls by 1 − lr · decay a step.

    ‖B − W‖ at the first recorded step t₀ is that of the recorded norms and angle; from there on it falls by 1 − lrₜ · decay a
    step, lrₜ being that of the run's schedule, and the recorded ‖W‖ and ‖B‖ give the angle. No later angle is used. Raises
    ``ValueError`` for a run that is not of plain SGD without momentum, for which the decay is another.
    """
    spec = _spec(run)
    if not _plain(spec):
        raise ValueError(
            f"no prediction for {spec.optimizer}, momentum {spec.momentum:g}: B - W decays evenly under plain SGD alone"
        )
    own = run.sel(layer=layer)
    names = ("weight_norm", "feedback_norm", "weight_angle")
    there = np.logical_and.reduce([np.isfinite(own[name].values) for name in names])
    steps = own["step"].values[there]
    if not steps.size:
        return steps, np.zeros(0)
    w, b, angle = (own[name].values[there].astype(np.float64) for name in names)
    first = np.sqrt(w[0] ** 2 + b[0] ** 2 - 2 * w[0] * b[0] * np.cos(np.radians(angle[0])))
    factors = [1 - learning_rate(spec, step) * spec.weight_decay for step in range(steps[0], steps[-1])]
    left = first * np.cumprod([1.0, *factors])[steps - steps[0]]
    return steps, angle_of_sides(w, b, left)


def mirror_angle(fan_in: int, samples: int = 128, decay: float = 0.01) -> float:
    """The angle in degrees at which a weight mirror's B stays from a W that stands still: tan² = (fan_in − 1) λ / M (2 − λ).

    The defaults are those of the rule ``weight_mirror``. A W that moves leaves B behind by more.

    >>> round(mirror_angle(500), 1)
    8.0
    """
    return float(np.degrees(np.arctan(np.sqrt((fan_in - 1) * decay / (samples * (2 - decay))))))


def predicted_angles(runs: xr.Dataset, layer: str) -> dict[Hashable, tuple[Any, Any]]:
    """By arm whose feedback learns, steps and the angles in degrees that theory gives there: to draw over a panel.

    ``kolen_pollack``: the geometric mean of its runs' predictions (:func:`kolen_pollack_angle`), where all have one, for one of
    them may have diverged; none but under plain SGD.
    ``weight_mirror``: the angle at which it settles, from the first step to the last; none with growth control, which changes
    the decay.
    """
    found: dict[Hashable, tuple[Any, Any]] = {}
    for arm in dict.fromkeys(runs["arm"].values.tolist()):
        own = [runs.isel(run=i) for i in np.flatnonzero(runs["arm"].values == arm)]
        spec = _spec(own[0])
        if spec.rule == "kolen_pollack" and _plain(spec):
            found[arm] = _geometric_mean([kolen_pollack_angle(run, layer) for run in own])
        elif spec.rule == "weight_mirror" and not (mirror := WeightMirror(**spec.rule_args)).growth_control:
            fan_in = float(own[0]["fan_in"].sel(layer=layer))
            if np.isfinite(fan_in):  # a net of fewer layers has none there
                floor = mirror_angle(int(fan_in), mirror.samples, mirror.decay)
                found[arm] = ([0, int(runs["step"].max())], [floor, floor])
    return found


def _geometric_mean(curves: list[tuple[NDArray[Any], NDArray[np.float64]]]) -> tuple[Any, Any]:
    """Of curves (steps, values > 0), at the steps that all of them have."""
    steps = functools.reduce(np.intersect1d, [own for own, _ in curves])
    there = [values[np.isin(own, steps)] for own, values in curves]
    return steps, np.exp(np.mean(np.log(there), axis=0))


def nearness(runs: xr.Dataset, degrees: float = 10.0) -> dict[str, pd.Series]:
    """Columns by arm: how near B comes to W and how soon, layer by layer, and what that makes of the lowest gradient.

    Of each layer whose B is in use, the mean angle at the last recorded step and the median step at which it first was under
    ``degrees``; of the first layer the mean angle of its gradient and its gain, over the last five looks.
    """
    first, last = str(runs["layer"].values[0]), int(runs["step"].max())
    found = {}
    for layer in layers_with(runs, "weight_angle"):
        found[f"angle ({layer})"] = around(runs, "weight_angle", last, layer=layer).mean().round(2)
        found[f"< {degrees:g}° ({layer})"] = steps_to(runs, "weight_angle", degrees, layer=layer).median()
    found[f"gradient angle ({first})"] = around(runs, "gradient_angle", last, layer=first, over=5).mean()
    return found | {"gain": around(runs, "feedback_gain", last, layer=first, over=5).mean()}


def mirror_price(runs: xr.Dataset) -> float:
    """Multiply-adds of a mirror phase over those of a training step, in products of matrices, of the weight mirror's runs.

    A step takes batch size · out · in three times a layer (forward, gradient, what is sent down), twice in the first, below
    which nothing is sent. A phase takes samples · out · in twice (responses, and their correlation with the noise) in all
    layers but the first, whose B no error passes. For dense layers. Raises ``ValueError`` where no run has a weight mirror.
    """
    mirrors = np.flatnonzero(runs["rule"].values == "weight_mirror")
    if not mirrors.size:
        raise ValueError("no run of these has the rule 'weight_mirror'")
    run = runs.isel(run=mirrors[0])
    spec, sizes = _spec(run), (run["fan_in"] * run["fan_out"]).values.astype(np.float64)
    sizes = sizes[np.isfinite(sizes)]  # beside deeper nets
    samples = WeightMirror(**spec.rule_args).samples
    return float(2 * samples * sizes[1:].sum() / (spec.batch_size * (3 * sizes.sum() - sizes[0])))


def aligned_at(runs: xr.Dataset, share: float = 0.99) -> pd.DataFrame:
    """The first recorded step at which in every layer at least this ``share`` of errors descends; seed × arm.

    An error e descends in a layer where eᵀ W Bᵀ e > 0 (Lillicrap et al. 2016): ``descent_fraction``. Infinite where it never
    comes to that.
    """
    worst = runs.assign(least_descent=runs["descent_fraction"].min("layer"))
    return steps_to(worst, "least_descent", share)


def beyond_chance(runs: xr.Dataset) -> xr.DataArray:
    """How many eigenvalues of W Bᵀ lie outside the disc that those of a B unrelated to W fill; dims run, layer, step.

    The disc's radius: the recorded ``chance_radius``. NaN where no spectrum was recorded.
    """
    modulus: xr.DataArray = (runs["spectrum_real"] ** 2 + runs["spectrum_imag"] ** 2) ** 0.5
    counted: xr.DataArray = (modulus > runs["chance_radius"]).sum("mode").where(modulus.notnull().any("mode"))
    return counted


def _plain(spec: RunSpec) -> bool:
    """Whether W takes plain gradient steps, under which B − W decays evenly."""
    return spec.optimizer == "sgd" and not spec.momentum and spec.graft is None


def _spec(run: xr.Dataset) -> RunSpec:
    return RunSpec.from_yaml(str(run["spec"].values if "spec" in run.coords else run.attrs["spec"]))
