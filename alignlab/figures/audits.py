"""The figures of a whole audit: what the verdict rests on, drawn from the runs under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.figures.angle import angles
from alignlab.figures.evidence import forest
from alignlab.figures.gain import gains
from alignlab.figures.learning import learning_curves
from alignlab.figures.spectrum import spectra
from alignlab.figures.tuning import loss_against_lr

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from alignlab.audit import AuditResult


def audit_figures(result: AuditResult) -> dict[str, Figure]:
    """By file name: the forest plot, learning curves of the arms as claimed and under each control, the learning rates, and
    the recorded gains, angles and spectra of the arm whose rule is not backprop."""
    claim = result.claim
    drawn = {
        "forest": forest(
            result.contrast_dataset(), claim.smallest_effect, f"{claim.statement}: {result.verdict}"
        ),
        "learning_curves": learning_curves(_labelled(result), claim.outcome, hue="arm"),
    }
    grids = _of(result, "search")
    if grids and "tuning" in result.details:
        chosen = {label: search["best_lr"] for label, search in result.details["tuning"].items()}
        drawn["loss_against_lr"] = loss_against_lr(
            _by_arm(result, grids), "validation_" + claim.outcome.split("_")[1], hue="arm", chosen=chosen
        )
    arm = "treatment" if claim.treatment.rule != "bp" else "baseline"
    runs = result.select(arm)
    if _there(runs, "feedback_gain", "effective_lr"):
        drawn["gains"] = gains(runs)
    if _there(runs, "gradient_angle"):
        drawn["angles"] = angles(runs)
    if _there(runs, "spectrum_real", "spectrum_imag"):
        drawn["spectra"] = spectra(runs.isel(run=0))
    return drawn


def run_figures(runs: xr.Dataset) -> dict[str, Figure]:
    """Every figure that a store's content allows, by file name."""
    drawn = {}
    if _there(runs, "gradient_angle"):
        drawn["angles"] = angles(runs)
    if _there(runs, "feedback_gain", "effective_lr"):
        drawn["gains"] = gains(runs)
    if _there(runs, "spectrum_real", "spectrum_imag"):
        drawn["spectra"] = spectra(runs.isel(run=0) if "run" in runs.dims else runs)
    for outcome in ("train_loss", "validation_loss", "test_accuracy", "loss"):
        if _there(runs, outcome):
            drawn[f"learning_curves_{outcome}"] = learning_curves(runs, outcome, hue="rule")
    if "run" in runs.dims and _there(runs, "validation_loss") and len(set(runs["lr"].values.tolist())) > 2:
        drawn["loss_against_lr"] = loss_against_lr(runs, "validation_loss", hue="rule")
    return drawn


def _there(runs: xr.Dataset, *names: str) -> bool:
    """Whether all of these were recorded somewhere."""
    return all(name in runs and bool(runs[name].notnull().any()) for name in names)


def _of(result: AuditResult, kind: str) -> list[str]:
    """The groups of runs that are for this."""
    return [group for group, own in result.kinds.items() if own == kind]


def _labelled(result: AuditResult) -> xr.Dataset:
    """The runs that the verdict compares, each arm under the name that a reader knows it by."""
    runs = result.select(*_of(result, "compared"))
    claim = result.claim
    names = {
        "treatment": f"{claim.treatment.label}, as claimed",
        "baseline": f"{claim.baseline.label}, as claimed",
    }
    return runs.assign_coords(arm=("run", [names.get(arm, arm) for arm in runs["arm"].values.tolist()]))


def _by_arm(result: AuditResult, grids: list[str]) -> xr.Dataset:
    runs = result.select(*grids)
    return runs.assign_coords(arm=("run", [result.arms[group] for group in runs["arm"].values.tolist()]))
