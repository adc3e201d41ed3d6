"""The figures of a whole audit: what the verdict rests on, drawn from the runs under it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from alignlab.figures import contents, groups
from alignlab.figures.angle import ANGLES, angles
from alignlab.figures.evidence import forest
from alignlab.figures.gain import gains
from alignlab.figures.learning import learning_curves
from alignlab.figures.spectrum import spectra
from alignlab.figures.tuning import loss_against_lr
from alignlab.store.shaping import as_runs

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from matplotlib.figure import Figure

    from alignlab.audit import AuditResult


def audit_figures(result: AuditResult) -> dict[str, Figure]:
    """By file name: the forest plot, learning curves of the arms as claimed and under each control, a panel a control, the
    learning rates, and the recorded gains, angles and spectra of the arm whose rule is not backprop."""
    claim = result.claim
    drawn = {
        "forest": forest(
            result.contrast_dataset(), claim.smallest_effect, f"{claim.statement}: {result.verdict}"
        ),
        "learning_curves": learning_curves(_by_control(result), claim.outcome, hue="arm", col="control"),
    }
    if rates := _rates(result):
        drawn["loss_against_lr"] = rates
    arm = "treatment" if claim.treatment.rule != "bp" else "baseline"
    runs = result.select(arm)
    if _there(runs, "feedback_gain", "effective_lr"):
        drawn["gains"] = gains(runs)
    if _there(runs, "gradient_angle"):
        drawn["angles"] = angles(runs)
    if _there(runs, "spectrum_real", "spectrum_imag"):
        drawn["spectra"] = spectra(_first_with_spectrum(runs))
    return drawn


def run_figures(runs: xr.Dataset, refused: dict[str, str] | None = None) -> dict[str, Figure]:
    """Every figure that a store's content allows, by file name.

    ``refused`` is told, by name, why there is none of something that was recorded (a spectrum of fifty layers, say). Raises
    ``ValueError`` where it is not given.
    """
    drawn = {}
    for name, draw in _drawings(as_runs(runs)).items():
        try:
            drawn[name] = draw()
        except ValueError as error:
            if refused is None:
                raise
            refused[name] = str(error)
    return drawn


def _drawings(runs: xr.Dataset) -> dict[str, Callable[[], Figure]]:
    """What was recorded, and how to draw it."""
    found: dict[str, Callable[[], Figure]] = {}
    if _there(runs, "gradient_angle"):
        found["angles"] = lambda: angles(runs)
    else:
        there = [name for name in ANGLES if _there(runs, name)]
        found |= {name: partial(angles, runs, name) for name in there}
    if _there(runs, "feedback_gain", "effective_lr"):
        found["gains"] = lambda: gains(runs)
    if _there(runs, "spectrum_real", "spectrum_imag"):
        found["spectra"] = lambda: spectra(_first_with_spectrum(runs))
    for outcome in ("train_loss", "validation_loss", "test_accuracy", "loss"):
        if _there(runs, outcome):
            found[f"learning_curves_{outcome}"] = partial(learning_curves, runs, outcome, hue="rule")
    if _there(runs, "validation_loss") and "lr" in runs.coords and len(groups.levels(runs, "lr")) > 2:
        found["loss_against_lr"] = lambda: loss_against_lr(runs, "validation_loss", hue="rule")
    return found


def _first_with_spectrum(runs: xr.Dataset) -> xr.Dataset:
    """Rules without feedback weights have none, and may come first."""
    there = contents.values(runs, "spectrum_real", ("layer", "mode", "step")).notnull()
    return runs.isel(run=int(there.any(("layer", "mode", "step")).argmax("run")))


def _there(runs: xr.Dataset, *names: str) -> bool:
    """Whether all of these were recorded somewhere."""
    return all(name in runs and bool(runs[name].notnull().any()) for name in names)


def _by_control(result: AuditResult) -> xr.Dataset:
    """The runs behind each control's contrasts, beside those of both arms as claimed, which every control has."""
    claim = result.claim
    arms = {"treatment": claim.treatment.label, "baseline": claim.baseline.label}
    own = {group: f"{label}, as claimed" for group, label in arms.items()}
    shown = {control: own | curves for control, curves in result.curves.items()} or {"": own}
    rows = [(control, *curve) for control, curves in shown.items() for curve in curves.items()]
    controls, named, names = zip(*rows, strict=True)
    counts = [len(result.runs[group]) for group in named]
    runs = result.select(*named).assign_coords(
        arm=("run", np.repeat(names, counts)), control=("run", np.repeat(controls, counts))
    )
    # what each study chose for its seeds is one arm, as it is in N and S
    chosen = ["spec", "lr"] if len(groups.levels(runs, "lr")) > 1 else ["spec"]
    return runs.drop_vars(chosen)


def _rates(result: AuditResult) -> Figure | None:
    """The learning rates that were tried, and those that each study chose; other searches vary other things."""
    found = [
        (label, own.get("studies", [own]))
        for details in result.details.values()
        for label, own in details.items()
        if isinstance(own, dict)
    ]
    searches = {label: studies for label, studies in found if "best_lr" in studies[0]}
    tried = [group for studies in searches.values() for search in studies for group in search["groups"]]
    chosen = {label: [search["best_lr"] for search in studies] for label, studies in searches.items()}
    metric = "validation_" + result.claim.outcome.split("_")[1]
    return loss_against_lr(_by_arm(result, tried), metric, hue="arm", chosen=chosen) if tried else None


def _by_arm(result: AuditResult, grids: list[str]) -> xr.Dataset:
    runs = result.select(*grids)
    return runs.assign_coords(arm=("run", [result.arms[group] for group in runs["arm"].values.tolist()]))
