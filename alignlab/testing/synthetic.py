"""Seeded synthetic runs that keep the data contract, for tests of everything that reads a run without training one.

The curves are invented but not arbitrary. Feedback alignment starts at the chance angle of 90° and falls towards
40°, later in the layers further from the output (Lillicrap et al. 2016, doi:10.1038/ncomms13276); the spectrum of
W Bᵀ moves into the right half plane meanwhile; unscaled sign feedback is loud in the hidden layers. Backprop is the
control: angle 0, gain 1, a real spectrum without negative values. Quantities that follow from others are computed
from them (effective_lr = lr · feedback_gain, the trace is the sum of the eigenvalues, ...), so a synthetic run is as
consistent as a recorded one of plain gradient descent without momentum.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

Series = dict[str, tuple[tuple[str, ...], np.ndarray]]

PROBE_EVERY, SPECTRUM_EVERY = 5, 40
SCHEMA_VERSION = 1


class Character(NamedTuple):
    """What tells one rule's synthetic curves from another's: angles in degrees, the rest dimensionless."""

    start_angle: float
    end_angle: float
    gain: float
    best_lr: float
    best_loss: float


CHARACTERS = {
    "bp": Character(0.0, 0.0, 1.0, 0.3, 0.10),
    "fa": Character(90.0, 40.0, 1.6, 0.1, 0.16),
    "dfa": Character(90.0, 48.0, 2.5, 0.1, 0.18),
    "sign_sync": Character(55.0, 20.0, 30.0, 0.01, 0.12),
}


def synthetic_run(
    rule: str = "fa",
    seed: int = 0,
    steps: int = 200,
    layers: int | Sequence[str] = 3,
    lr: float = 0.05,
    task: str = "mnist_small",
    arm: str = "",
    control: str = "",
) -> xr.Dataset:
    """One run in the data contract: dims (step, layer, mode), every variable that plain training records.

    Args:
        rule: any name; those of `CHARACTERS` have curves of their own, others get fa's.
        seed: of the noise, and of the run that it stands for.
        steps: number of optimizer steps; 1 is allowed.
        layers: how many (then named fc1, fc2, ...), or their names from input to output.
        lr: above twenty times the rule's best the run diverges half way and ends with NaN.

    Probes lie on every 5th step, spectra on every 40th, evaluations on about 12 steps of their own.
    """
    names = [f"fc{i + 1}" for i in range(layers)] if isinstance(layers, int) else list(layers)
    if steps < 1 or not names:
        raise ValueError(f"a synthetic run needs at least one step and one layer, got {steps} and {names}")
    character = CHARACTERS.get(rule, CHARACTERS["fa"])
    digest = hashlib.sha256(repr((rule, seed, lr, task, arm, control)).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    last_step = steps - 1 if lr <= 20 * character.best_lr else steps // 2
    step, probed, spectral, evaluated = _schedules(steps, last_step)
    widths = _widths(len(names))

    series = _alignment(rng, character, step, widths, lr)
    series |= _spectrum(rng, character, step, widths, real=rule == "bp")
    for name, (dims, values) in series.items():
        on = spectral if "mode" in dims or name.startswith(("symmetric", "spectrum", "descent")) else probed
        values[~on] = np.nan
    series |= _outcomes(rng, character, step, probed, evaluated, lr, diverged=last_step < steps - 1)
    scalars = dict(
        run_id=digest.hex()[:12], rule=rule, lr=float(lr), seed=seed, task=task, arm=arm, control=control
    )
    scalars |= dict(status="finished" if last_step == steps - 1 else "diverged", last_step=last_step)
    return _dataset(series, step, names, widths, scalars)


def synthetic_runs(
    rules: Iterable[str] = ("bp", "fa"),
    seeds: Iterable[int] = range(5),
    lrs: Iterable[float] = (0.05,),
    steps: int = 200,
    layers: int | Sequence[str] = 3,
) -> xr.Dataset:
    """Every rule × learning rate × seed as one dataset with the leading dim `run` (outer join, NaN where absent)."""
    import xarray as xr

    cells = itertools.product(rules, lrs, seeds)
    runs = [synthetic_run(rule, seed, steps, layers, lr) for rule, lr, seed in cells]
    scalars = [str(name) for name, coord in runs[0].coords.items() if coord.ndim == 0]
    of_runs = {name: ("run", [run.coords[name].item() for run in runs]) for name in scalars}
    joined = xr.concat(
        [run.drop_vars(scalars) for run in runs], dim="run", join="outer", coords="minimal", compat="equals"
    )
    return joined.assign_coords(of_runs)


def synthetic_audit(seeds: int = 5) -> xr.Dataset:
    """An audit's contrasts (dim `contrast`): a total effect that the magnitudes explain and the direction does not.

    Positive means that the treatment is better; variables estimate, low, high (95 %) and n, coords label and group.
    """
    import xarray as xr

    rows = [
        ("total", "claim", 0.118, 0.012),
        ("direction", "magnitude", -0.031, 0.009),
        ("magnitude", "magnitude", 0.164, 0.015),
        ("interaction", "magnitude", -0.015, 0.017),
        ("N: without it", "magnitude", -0.024, 0.010),
        ("S: given it", "magnitude", -0.046, 0.013),
        ("N: best against best", "tuning", -0.012, 0.008),
        ("S: against the tuned baseline", "tuning", -0.038, 0.011),
        ("baseline against itself", "placebo", 0.001, 0.006),
    ]
    labels, groups, estimates, halves = (list(column) for column in zip(*rows, strict=True))
    estimate, half = np.array(estimates), np.array(halves)
    return xr.Dataset(
        {
            "estimate": ("contrast", estimate, {"long_name": "effect on train loss", "units": "nat"}),
            "low": ("contrast", estimate - half),
            "high": ("contrast", estimate + half),
            "n": ("contrast", np.full(len(rows), seeds, dtype=np.int64)),
            "alpha": ("contrast", np.full(len(rows), 0.05)),
        },
        coords={"label": ("contrast", labels), "group": ("contrast", groups)},
        attrs={"smallest_effect": 0.02, "statement": "sign-synchronised feedback beats backprop"},
    )


def _widths(n_layers: int) -> list[tuple[int, int]]:
    """(fan_in, fan_out) a layer: 64 inputs, hidden layers of 32, 10 outputs."""
    sizes = [64] + [32] * (n_layers - 1) + [10]
    return list(itertools.pairwise(sizes))


def _schedules(steps: int, last_step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The measured steps up to the last, and which of them probes, spectra and evaluations fall on."""
    evaluations = np.unique(np.linspace(0, steps - 1, 12).round().astype(np.int64))
    probes = np.arange(0, steps, PROBE_EVERY)
    step = np.unique(np.concatenate([probes, evaluations, [last_step]]))
    step = step[step <= last_step]
    return step, step % PROBE_EVERY == 0, step % SPECTRUM_EVERY == 0, np.isin(step, evaluations)


def _alignment(
    rng: np.random.Generator, c: Character, step: np.ndarray, widths: list[tuple[int, int]], lr: float
) -> Series:
    """Angles, gains, norms and step sizes, each (step, layer), as if W moved by -lr · G_rule at every step."""
    depth = np.arange(len(widths))[::-1]  # 0 at the output, whose teaching signal is exact
    hidden = (depth > 0).astype(float)
    progress = 1 - np.exp(-step[:, None] / (60.0 + 25.0 * depth))
    noise = rng.standard_normal((3, len(step), len(widths)))
    wobble = hidden * (c.start_angle > 0)
    fall = c.start_angle + (c.end_angle - c.start_angle) * progress
    angle = hidden * np.clip(fall + 2.0 * noise[0], 0.0, 180.0) * wobble
    gain = np.exp(hidden * np.log(c.gain) * (1 + 0.1 * depth) + 0.1 * wobble * noise[1])
    gradient_bp = np.exp(-0.5 * progress - 0.1 * depth + 0.05 * noise[2])
    fan_in, fan_out = np.array(widths).T
    weight = np.sqrt(fan_out) * (1 + 0.3 * progress)
    update = lr * gain * gradient_bp
    feedback = weight if c.start_angle == 0 else np.broadcast_to(np.sqrt(fan_in), weight.shape)
    local = np.where(wobble > 0, angle * 0.8, 0.0)
    table = {
        "gradient_angle": angle, "delta_angle": angle, "delta_angle_std": 0.2 * angle,
        "zero_fraction": 0.0 * angle, "local_angle": local, "weight_angle": local,
        "feedback_gain": gain, "applied_gain": gain, "effective_lr": lr * gain,
        "projected_lr": lr * gain * np.cos(np.radians(angle)), "update_angle": angle,
        "relative_update": update / weight, "angular_update": np.degrees(np.arctan(update / weight)),
        "weight_norm": weight, "feedback_norm": feedback, "gradient_norm": gain * gradient_bp,
        "gradient_norm_bp": gradient_bp, "update_norm": update,
    }  # fmt: skip
    return {name: (("step", "layer"), np.array(values, dtype=np.float64)) for name, values in table.items()}


def _spectrum(
    rng: np.random.Generator, c: Character, step: np.ndarray, widths: list[tuple[int, int]], real: bool
) -> Series:
    """Eigenvalues in conjugate pairs in a disc that moves right, largest modulus first, and what sums them up."""
    modes = max(fan_out for _, fan_out in widths)
    eigenvalues = np.full((len(step), len(widths), modes), np.nan, dtype=np.complex128)
    for i, (_, fan_out) in enumerate(widths):
        half = np.sqrt(rng.uniform(size=fan_out // 2)) * np.exp(1j * np.pi * rng.uniform(size=fan_out // 2))
        disc = np.concatenate([half, half.conj(), rng.uniform(-1, 1, size=fan_out % 2)])
        shift = 1.6 * (1 - np.exp(-step / 80.0))[:, None]
        values = (np.abs(disc) ** 2 * (1 + 0.3 * shift) + 0j) if real else 0.8 * disc + shift
        order = np.argsort(-np.abs(values), axis=1, kind="stable")
        eigenvalues[:, i, :fan_out] = np.take_along_axis(values, order, axis=1)
    re, layerwise = eigenvalues.real, ("step", "layer")
    reach = (
        0.0 if real else 0.25
    )  # the symmetric part reaches beyond the eigenvalues unless the product is normal
    low, high = np.nanmin(re, axis=2) - reach, np.nanmax(re, axis=2) + reach
    positive = np.nanmean(np.where(np.isnan(re), np.nan, re > 0), axis=2)
    return {
        "spectrum_real": ((*layerwise, "mode"), re.copy()),
        "spectrum_imag": ((*layerwise, "mode"), eigenvalues.imag.copy()),
        "spectrum_positive_fraction": (layerwise, positive),
        "symmetric_min": (layerwise, low),
        "symmetric_max": (layerwise, high),
        "symmetric_error": (layerwise, np.zeros_like(high)),
        "symmetric_positive_fraction": (layerwise, np.clip(high / (high - low), 0.0, 1.0)),
        "spectrum_trace": (layerwise, np.nansum(re, axis=2)),
        "chance_radius": (layerwise, np.full_like(high, 0.8)),
        "descent_fraction": (layerwise, np.clip(0.5 + 0.5 * positive, 0.0, 1.0)),
    }


def _outcomes(
    rng: np.random.Generator,
    c: Character,
    step: np.ndarray,
    probed: np.ndarray,
    evaluated: np.ndarray,
    lr: float,
    diverged: bool,
) -> Series:
    """Losses that fall from ln 10 to a floor that is lowest at the rule's best learning rate, and accuracies."""
    floor = c.best_loss * np.exp(0.35 * np.log10(lr / c.best_lr) ** 2 + 0.06 * rng.standard_normal())
    curve = floor + (np.log(10) - floor) * np.exp(-step / 40.0)
    if diverged:
        with np.errstate(over="ignore"):
            curve = curve * np.exp(np.maximum(0, step - 0.6 * step[-1]) / 3.0)
        curve[-1] = np.nan  # the loss that ended the run
    noise = rng.standard_normal(len(step))
    table: Series = {
        "loss": (("step",), np.where(probed, curve * np.exp(0.08 * noise), np.nan)),
        "learning_rate": (("step",), np.where(probed, lr, np.nan)),
        "wall_time": (("step",), 0.002 * (step + 1.0)),
        "samples_seen": (("step",), 32.0 * (step + 1.0)),
    }
    for split, gap in (("train", 1.0), ("validation", 1.1), ("test", 1.12)):
        loss = np.where(evaluated, gap * curve, np.nan)
        table[f"{split}_loss"] = (("step",), loss)
        table[f"{split}_accuracy"] = (("step",), np.exp(-loss))
    return table


def _dataset(
    series: Series,
    step: np.ndarray,
    names: list[str],
    widths: list[tuple[int, int]],
    scalars: dict[str, object],
) -> xr.Dataset:
    """The series as float32 variables with the attrs of their quantities, and every coordinate of the contract."""
    import xarray as xr

    from alignlab.measures.quantities import QUANTITIES

    variables = {
        name: (dims, values.astype(np.float32), QUANTITIES[name].attrs())
        for name, (dims, values) in series.items()
    }
    fan_in, fan_out = np.array(widths, dtype=np.int64).T
    coords = {
        "step": step.astype(np.int64),
        "layer": names,
        "mode": np.arange(series["spectrum_real"][1].shape[-1], dtype=np.int64),
        "kind": ("layer", ["linear"] * len(names)),
        "fan_in": ("layer", fan_in),
        "fan_out": ("layer", fan_out),
    }
    attrs = {
        "schema_version": SCHEMA_VERSION,
        "device": "cpu",
        "optimizer": "sgd",
        "feedback_init": "kaiming",
    }
    return xr.Dataset(variables, coords=coords | scalars, attrs=attrs)
