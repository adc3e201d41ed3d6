"""The result of an audit: verdict, evidence table, contrasts for the forest plot, and links to every run under them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.audit.bench import Kind
from alignlab.audit.claim import Claim
from alignlab.audit.contrasts import as_dataset
from alignlab.audit.controls import Contrast
from alignlab.audit.decomposition import GROUP, Part, parts_of, told
from alignlab.audit.evidence import Evidence
from alignlab.audit.improvement import probability_of_improvement
from alignlab.audit.multiplicity import coverage
from alignlab.audit.statistics import paired
from alignlab.audit.verdict import Verdict
from alignlab.measures.quantities import QUANTITIES
from alignlab.store.reading import open_all

if TYPE_CHECKING:
    import xarray as xr


MARKS = {True: "✓", False: "✗", None: "–"}


@dataclass(frozen=True, eq=False)
class AuditResult:
    """``verdict`` with its ``evidence``. ``runs``: name in the store of every run, by group; ``kinds`` and ``arms``: what each
    group is for, and which arm it is of (:class:`alignlab.audit.bench.Group`). ``outcomes``: final values of the
    claim's outcome by group and seed, as measured (not oriented). ``store``: as it was given; ``folder``: its absolute path,
    for the caller may go elsewhere. ``computed``: how many runs this call had to compute. ``continuous``: whether runs that end
    alike computed the same (:attr:`alignlab.audit.bench.Bench.continuous`).
    ``controls``: those that were applied, which need not be those that the claim names. ``curves``: by control, the groups
    behind it, and what they are called in its learning curves. N sets "treatment without it" against the baseline as claimed
    (of controls that choose settings, as ``tuning``: against "baseline given it"), S the treatment as claimed against
    "baseline given it"; those of ``alignment``: :class:`alignlab.audit.controls.Alignment`."""

    claim: Claim
    verdict: Verdict
    evidence: Evidence
    contrasts: tuple[Contrast, ...]
    outcomes: dict[str, list[float]]
    runs: dict[str, list[str]]
    kinds: dict[str, Kind]
    arms: dict[str, str]
    details: dict[str, Any]
    store: Path
    folder: Path
    computed: int
    continuous: bool = False
    provenance: dict[str, str] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    curves: dict[str, dict[str, str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """In a line; all that it holds would be pages."""
        told = f"{self.verdict}; {len(self.run_names)} runs in {self.store}"
        return f"<AuditResult of {self.claim.statement!r}: {told}; see .table()>"

    @property
    def run_names(self) -> list[str]:
        """The names in the store of all runs that the audit is of, each once: a run may stand in several groups."""
        return list(dict.fromkeys(name for names in self.runs.values() for name in names))

    def table(self) -> str:
        """The evidence as plain text, one contrast a line, in units of the outcome (> 0: the treatment is better).

        Below it, at which level each interval stands, and p with it; what the total is made of, where a control decomposes
        it; then the checks.
        """
        rows = self.evidence.rows()
        names = [contrast_name(row["name"], row["contrast"]) for row in rows]
        width = max(33, *map(len, names)) + 1
        head = f"{'contrast':<{width}}{'estimate':>10}  {'interval':<22}{'p (adj.)':>9}{'n':>4}  reading"
        lines = [head, "-" * len(head)]
        lines += [
            f"{name:<{width}}{_line(row, self.claim.alpha)}" for name, row in zip(names, rows, strict=True)
        ]
        lines.append(f"intervals at: {levels(rows)}")
        if parts := self.decomposition():
            lines += [
                "",
                f"{'the total is made of':<{width}}{'estimate':>10}  {'interval':<31}{'n':>4}  share of the total",
            ]
            lines += [f"{part.label:<{width}}{_part(part)}".rstrip() for part in parts]
            lines += [told(parts, self.evidence.total), ""]
        lines += [f"{MARKS[check.passed]} {check.name}: {check.detail}" for check in self.evidence.checks]
        return "\n".join(lines)

    def contrast_dataset(self) -> xr.Dataset:
        """All contrasts with their intervals, on the dim ``contrast``: what the forest plot draws."""
        rows: list[tuple[str, str, Any]] = [
            (contrast_name(r["name"], r["contrast"]), _group(r), _drawn(r)) for r in self.evidence.rows()
        ]
        read = partial(paired, alpha=self.claim.alpha, continuous=self.continuous)
        rows += [(c.label, c.group, read(c.differences)) for c in self.contrasts]
        words = f"difference in {self.claim.outcome.replace('_', ' ')}, seed by seed"
        about = {"statement": self.claim.statement, "smallest_effect": self.claim.smallest_effect}
        about["counted"] = _counted(self.evidence.rows())
        roles = [_role(row, self.evidence) for row in self.evidence.rows()]
        roles += ["" if c.compares else "part" for c in self.contrasts]
        dataset = as_dataset(rows, words, QUANTITIES[self.claim.outcome].units, **about)
        return dataset.assign_coords(role=("contrast", np.array(roles)))

    def decomposition(self) -> list[Part]:
        """What the total effect is made of, by each control that decomposes it: absolute effects, and shares if it has any."""
        treatment, baseline = self._oriented()
        total = treatment - baseline
        return parts_of(self.contrasts, total, self.claim.alpha, continuous=self.continuous)

    @cached_property
    def all_runs(self) -> xr.Dataset:
        """Every run of the store, on the dim ``run``."""
        return open_all(self.folder)

    def select(self, *groups: str) -> xr.Dataset:
        """The runs of some groups, with the group's name as the coordinate ``arm``."""
        place = {name: i for i, name in enumerate(self.all_runs["run_id"].values)}
        both = [(place[name], group) for group in groups for name in self.runs[group]]
        chosen = self.all_runs.isel(run=[i for i, _ in both])
        return chosen.assign_coords(arm=("run", np.array([group for _, group in both], dtype=str)))

    @property
    def tree(self) -> xr.DataTree:
        """The whole audit as one tree: runs, tuning, contrasts, controls, decomposition, verdict, provenance."""
        import xarray as xr

        contrasts = self.contrast_dataset()
        is_part = np.asarray(contrasts["group"] == GROUP)
        groups = {
            "runs": self.all_runs,
            "tuning": xr.Dataset(attrs={"searches": json.dumps(self.details)}),
            "contrasts": contrasts.isel(contrast=~is_part),
            "controls": xr.Dataset(attrs={name: json.dumps(held) for name, held in self._linked().items()}),
            "decomposition": contrasts.isel(contrast=is_part).assign(_shares(self.decomposition())),
            "verdict": xr.Dataset(
                attrs={
                    "verdict": str(self.verdict),
                    "text": self.verdict.text,
                    "caveats": json.dumps(self.verdict.caveats),
                }
            ),
            "provenance": xr.Dataset(attrs={**self.provenance, "claim": self.claim.model_dump_json()}),
        }
        return xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in groups.items()})

    def _linked(self) -> dict[str, Any]:
        """The checks, the runs of each group, and which groups are behind a control's N and S."""
        checks = [vars(check) for check in self.evidence.checks]
        return {"checks": checks, "runs": self.runs, "curves": self.curves}

    def probability_of_improvement(self) -> Any:
        """The share of seeds in which the treatment, as claimed, is better, with its interval."""
        treatment, baseline = self._oriented()
        return probability_of_improvement(treatment, baseline, maximize=True)

    def _oriented(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The outcomes of both arms as claimed, seed by seed, more being better."""
        treatment, baseline = (np.array(self.outcomes[arm]) for arm in ("treatment", "baseline"))
        return self.claim.sign * treatment, self.claim.sign * baseline

    def to_dict(self) -> dict[str, Any]:
        """Everything but the runs, as plain data."""
        return {
            "claim": self.claim.model_dump(mode="json"),
            "claim_hash": self.claim.digest(),
            "controls": list(self.controls),
            "verdict": {"short": str(self.verdict), **self.verdict.to_dict()},
            "evidence": self.evidence.to_dict(),
            "contrasts": [vars(contrast) for contrast in self.contrasts],
            "outcomes": self.outcomes,
            "runs": self.runs,
            "kinds": self.kinds,
            "arms": self.arms,
            "curves": self.curves,
            "details": self.details,
            "provenance": self.provenance,
        }


def _drawn(row: dict[str, Any]) -> dict[str, Any]:
    """A control that changed no outcome accounts for 0: few seeds, all equal, give an interval without ends."""
    nothing = (
        row["contrast"] == "removed"
        and row["estimate"] == 0
        and np.isinf(row["low"])
        and np.isinf(row["high"])
    )
    return row | {"low": np.nan, "high": np.nan} if nothing else row


def _line(row: dict[str, Any], alpha: float) -> str:
    span = f"[{row['low']:+.3g}, {row['high']:+.3g}]"
    numbers = f"{row['estimate']:>+10.3g}  {span:<22}{p_text(row['p_adjusted'], alpha):>9}{row['n']:>4}"
    return f"{numbers}  {row['reading']}"


def p_text(p: float, alpha: float) -> str:
    """With two digits, or with as many as show on which side of alpha it lies.

    >>> p_text(0.0123, 0.05), p_text(0.0502, 0.05), p_text(0.0496, 0.05)
    ('0.012', '0.0502', '0.0496')
    """
    texts = (f"{p:.{digits}g}" for digits in range(2, 9))
    return next(
        (text for text in texts if float(text) != alpha and (float(text) > alpha) == (p > alpha)), f"{p:.2g}"
    )


def _part(part: Part) -> str:
    span = f"[{part.effect.low:+.3g}, {part.effect.high:+.3g}]"
    return f"{part.effect.estimate:>+10.3g}  {span:<31}{part.effect.n:>4}  {part}"


def _shares(parts: Sequence[Part]) -> dict[str, tuple[str, Any]]:
    """Shares with their intervals on the dim ``contrast``, as fractions; NaN where there are none."""
    nothing = (np.nan, np.nan)
    rows = [(np.nan if part.share is None else part.share, *(part.ends or nothing)) for part in parts]
    columns = np.array(rows, np.float64).reshape(-1, 3).T
    return {
        name: ("contrast", column)
        for name, column in zip(("share", "share_low", "share_high"), columns, strict=True)
    }


def levels(rows: Sequence[dict[str, Any]]) -> str:
    """At which level each interval of these rows stands, and p with it."""
    found = {"as claimed" if row["contrast"] == "total" else row["name"]: row["alpha"] for row in rows}
    of_controls = [alpha for name, alpha in found.items() if name != "as claimed"]
    if len(of_controls) > 1 and len(set(of_controls)) == 1:
        found = {"as claimed": found["as claimed"], "each control": of_controls[0]}
    told = ", ".join(f"{name} {coverage(alpha)}" for name, alpha in found.items())
    parts = [f"{told} (Holm's step-down over the controls)", "p is adjusted to these levels", _counted(rows)]
    return "; ".join(part for part in parts if part)


def _counted(rows: Sequence[dict[str, Any]]) -> str:
    """What n counts where it is not seeds."""
    of = {row["name"]: row["study_size"] for row in rows if row["study_size"]}
    return "; ".join(
        f"n of {name} counts studies of {q} seed{'s' * (q > 1)}, whose means are compared"
        for name, q in of.items()
    )


def contrast_name(name: str, contrast: str) -> str:
    """What to call a row of the evidence."""
    return {
        "total": "as claimed",
        "without": f"{name}: without it",
        "given": f"{name}: baseline given it",
        "removed": f"{name}: what it accounts for",
    }[contrast]


def _role(row: dict[str, Any], evidence: Evidence) -> str:
    """How figures.forest is to read a row, where its interval does not say it."""
    if row["contrast"] == "removed":
        return "part"
    return "equivalent" if row["contrast"] == "total" and evidence.equivalent else ""


def _group(row: dict[str, Any]) -> str:
    return "total" if row["contrast"] == "total" else str(row["name"])
