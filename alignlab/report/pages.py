"""The pages' content: what each section says, in words and formatted numbers; ``page.html`` says how it looks."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from alignlab.audit import AuditResult
    from alignlab.audit.claim import Arm
    from alignlab.audit.decomposition import Part

CAPTIONS = {
    "forest": "Every contrast with its interval. Inside the grey band nothing matters.",
    "learning_curves": "The outcome over training: the arms as claimed, and under each control.",
    "loss_against_lr": "The search for each arm's learning rate, on seeds of its own; the chosen rate is marked.",
    "gains": "How much louder than backprop the rule speaks in each layer, and the learning rate that this amounts to.",
    "angles": "Angles between the rule's signals and backprop's; 90° is chance.",
    "weight_angle": "Angles between the feedback weights B and the weights W; 90° is chance.",
    "update_angle": "Angles between the optimizer's steps and the true gradient's descent; 90° is chance.",
    "spectra": "Eigenvalues of W Bᵀ, layer by layer.",
}
OF_RUNS = CAPTIONS | {
    "loss_against_lr": "How runs ended at each learning rate; a star marks the rate of each rule's best mean.",
}
MOST = 40  # rows of a table
ELSEWHERE = ("spec", "differing")  # attributes that the page shows in a section of their own


def audit_page(result: AuditResult, pictures: Mapping[str, bytes] | None = None) -> str:
    """An audit as one HTML page: verdict and caveats, claim, evidence, checks, outcomes, figures, provenance.

    ``pictures``: SVG files by name, where they are drawn already; by default :func:`alignlab.figures.audit_figures`.
    """
    from alignlab.audit.decomposition import told
    from alignlab.audit.result import MARKS, levels
    from alignlab.figures import audit_figures

    claim, verdict, rows = result.claim, result.verdict, result.evidence.rows()
    parts = result.decomposition()
    store = os.fsencode(result.store).decode("utf-8", "replace")  # a name may be no text
    return _page(
        _drawn(audit_figures(result)) if pictures is None else pictures,
        title=claim.statement,
        kind="audit",
        source=claim.source,
        verdict=verdict,
        asked=_claimed(result),
        contrasts=[_contrast(row, claim.alpha) for row in rows],
        levels=f"Differences in {claim.outcome}, seed by seed; > 0 means that {claim.treatment.label} is better. "
        f"Intervals at: {levels(rows)}.",
        parts=[_part(part) for part in parts],
        shared=told(parts, result.evidence.total),
        checks=[(MARKS[check.passed], check) for check in result.evidence.checks],
        outcomes=_outcomes(result),
        provenance=[(name.replace("_", " "), value) for name, value in result.provenance.items()]
        + [("runs", f"{len(result.run_names)} in {store}")],
        spec=json.dumps(claim.hashed(), indent=1, ensure_ascii=False),
    )


def run_page(runs: xr.Dataset, pictures: Mapping[str, bytes] | None = None) -> str:
    """Recorded runs as one HTML page: what they were, how they ended, figures, provenance.

    ``runs``: of a recorder or of :func:`alignlab.open_runs`, with or without a dim ``run``. ``pictures``: as for audits.

    Raises ``TypeError`` for anything but a dataset, and ``ValueError`` for one that holds no run.
    """
    from alignlab.figures import run_figures
    from alignlab.store.shaping import as_runs, check_dataset

    check_dataset(runs)
    if not runs.data_vars or not runs.sizes.get("run", 1):
        lacks = "run" if runs.data_vars else "variable"
        raise ValueError(
            f"there is nothing to show: the dataset holds no {lacks}. Give what Recorder.to_dataset or al.open_runs returns"
        )
    many, refused = _in_words(as_runs(runs)), dict[str, str]()
    many = many.sortby(_settings(many))
    return _page(
        _drawn(run_figures(runs, refused)) if pictures is None else pictures,
        captions=OF_RUNS,
        refused=refused,
        title=_title(many),
        kind="run" if many.sizes["run"] == 1 else f"{many.sizes['run']} runs",
        asked=_run(many),
        outcomes=_ended(many),
        provenance=[
            (name.replace("_", " "), value) for name, value in runs.attrs.items() if name not in ELSEWHERE
        ],
        spec=_specs(many),
    )


def _page(pictures: Mapping[str, bytes], captions: Mapping[str, str] = CAPTIONS, **content: Any) -> str:
    from jinja2 import Environment

    text = files("alignlab.report").joinpath("page.html").read_text(encoding="utf-8")
    images = {
        name: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for name, svg in pictures.items()
    }
    template = Environment(autoescape=True, trim_blocks=True).from_string(text)
    told = {name: _caption(name, captions) for name in images}
    return template.render(captions=told, pictures=images, **content)


def _caption(name: str, captions: Mapping[str, str]) -> str:
    if name.startswith("learning_curves_"):
        return f"{name.removeprefix('learning_curves_').replace('_', ' ').capitalize()} over training."
    return captions.get(name, name)


def _drawn(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    from alignlab.figures.saving import svg

    return {name: svg(figure) for name, figure in figures.items()}


def _claimed(result: AuditResult) -> list[tuple[str, str]]:
    claim = result.claim
    better = "lower" if claim.direction == "lower" else "higher"
    setup = ", ".join(f"{name} {value}" for name, value in claim.setup.items())
    return [
        ("treatment", _arm(claim.treatment)),
        ("baseline", _arm(claim.baseline)),
        ("task", f"{claim.task}; {setup}" if setup else claim.task),
        ("outcome", f"{claim.outcome}, {better} is better"),
        ("smallest effect m", f"{claim.smallest_effect:g}"),
        ("seeds", f"{len(claim.seeds)}: {_told(claim.seeds)}"),
        ("controls", ", ".join(result.controls) or "none"),
        ("alpha", f"{claim.alpha:g}"),
    ]


def _run(runs: xr.Dataset) -> list[tuple[str, str]]:
    """What the runs were, and how many ended how."""
    names = [name for name in ("task", *_settings(runs), "last_step") if name in runs.coords]
    told = [(name.replace("_", " "), _told(np.unique(runs[name].values))) for name in names]
    if "status" in runs.coords:
        kinds, counts = np.unique(runs["status"].values, return_counts=True)
        each = [f"{n} {kind}" for kind, n in zip(kinds, counts, strict=True)]
        told.append(("status", ", ".join(each if runs.sizes["run"] > 1 else kinds)))
    return told


def _in_words(runs: xr.Dataset) -> xr.Dataset:
    """What holds values of several kinds, or lacks some, as text: it could not be sorted."""
    mixed = {name: own for name, own in runs.coords.items() if own.dims == ("run",) and own.dtype == object}
    return runs.assign_coords({name: own.fillna("none").astype(str) for name, own in mixed.items()})


def _settings(runs: xr.Dataset) -> list[str]:
    """The coordinates by which runs differ."""
    names = dict.fromkeys(("rule", "optimizer", "lr", *runs.attrs.get("differing", ()), "seed"))
    return [name for name in names if name in runs.coords]


def _arm(arm: Arm) -> str:
    given = [f"{name} {value}" for name, value in arm.rule_args.items()]
    given += [] if arm.lr is None else [f"lr {arm.lr:g}"]
    label = arm.rule if arm.label == arm.rule else f"{arm.label}: {arm.rule}"
    return f"{label} ({', '.join(given)})" if given else label


def _contrast(row: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    from alignlab.audit.result import contrast_name, p_text

    return {
        "label": contrast_name(row["name"], row["contrast"]),
        "estimate": f"{row['estimate']:+.3g}",
        "interval": f"[{row['low']:+.3g}, {row['high']:+.3g}]",
        "p": p_text(row["p_adjusted"], alpha),
        "n": row["n"],
        "reading": row["reading"],
    }


def _part(part: Part) -> dict[str, Any]:
    effect = part.effect
    return {
        "label": part.label,
        "estimate": f"{effect.estimate:+.3g}",
        "interval": f"[{effect.low:+.3g}, {effect.high:+.3g}]",
        "n": effect.n,
        "share": str(part),
    }


def _outcomes(result: AuditResult) -> dict[str, Any]:
    """Of each group of runs but those of a search, as measured."""
    groups = [name for name in result.runs if result.kinds[name] != "search"]
    rows = []
    for name in groups:
        found = np.asarray(result.outcomes[name])
        spread = (found.mean(), found.std(ddof=1), found.min(), found.max())
        rows.append([_group(result, name), len(found), *(f"{x:.4g}" for x in spread)])
    head = ["runs", "n", f"mean {result.claim.outcome}", "standard deviation", "smallest", "largest"]
    return {"head": head, "rows": rows, "note": "Runs that diverged count as untrained."}


def _group(result: AuditResult, name: str) -> str:
    return f"{result.arms[name]}, as claimed" if name in ("treatment", "baseline") else name


def _ended(runs: xr.Dataset) -> dict[str, Any]:
    """Each run's last evaluations."""
    outcomes = [
        str(name)
        for name, own in runs.data_vars.items()
        if (str(name).endswith(("_loss", "_accuracy")) or name == "loss") and set(own.dims) <= {"run", "step"}
    ]
    if runs.sizes["run"] == 1:
        rows = [[name.replace("_", " "), _last(runs[name].isel(run=0))] for name in outcomes]
        return {"head": ["outcome", "last value"], "rows": rows} if rows else {}
    coords = [*_settings(runs), *(name for name in ("status", "last_step") if name in runs.coords)]
    rows = []
    for i in range(min(runs.sizes["run"], MOST)):
        one = runs.isel(run=i)
        rows.append(
            [*(_short(one[name].item()) for name in coords), *(_last(one[name]) for name in outcomes)]
        )
    left = runs.sizes["run"] - len(rows)
    note = f"The first {MOST} of {runs.sizes['run']} runs." if left else ""
    return {"head": [*(name.replace("_", " ") for name in (*coords, *outcomes))], "rows": rows, "note": note}


def _last(column: xr.DataArray) -> str:
    values = column.values[np.isfinite(column.values)]
    return f"{values[-1]:.4g}" if values.size else "–"


def _title(runs: xr.Dataset) -> str:
    told = [_told(np.unique(runs[name].values)) for name in ("rule", "task") if name in runs.coords]
    return " on ".join(told) or "Recorded runs"


def _specs(runs: xr.Dataset) -> str:
    """The first run's spec, where it was trained from one."""
    if "spec" in runs.coords:
        return str(runs["spec"].values[0])
    return str(runs.attrs.get("spec", "no spec: recorded from a loop of the user's own"))


def _told(values: Sequence[Any] | np.ndarray[Any, Any]) -> str:
    """Different values in their order; of many the first and the last."""
    found = list(dict.fromkeys(_short(value) for value in np.asarray(values).ravel().tolist()))
    return ", ".join(found) if len(found) <= 12 else f"{found[0]}, {found[1]}, …, {found[-1]}"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
