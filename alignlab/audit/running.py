"""audit: run a claim, intervene on its rivals, and decide. The order of work is the order of the lines below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from alignlab.audit.bench import Bench, Group
from alignlab.audit.claim import Claim
from alignlab.audit.controls import ALL, Control, Finding
from alignlab.audit.evidence import Check
from alignlab.audit.gathering import gather
from alignlab.audit.result import AuditResult
from alignlab.audit.shares import unseen_share
from alignlab.audit.verdict import decide
from alignlab.probes.metadata import alignlab_version
from alignlab.store.shelf import Phase
from alignlab.training import tasks
from alignlab.training.errors import SpecError
from alignlab.training.naming import code_hash

if TYPE_CHECKING:
    from alignlab.training.workers import Executor

ALIKE = 1e-3  # relative: more than devices and populations round a loss


def audit(
    claim: Claim,
    controls: Sequence[Control] | None = None,
    *,
    store: str | Path | None = None,
    workers: Executor = 1,
    phase: Phase | None = None,
) -> AuditResult:
    """Audit a claim and return verdict, evidence and the runs under them.

    ``controls``: instances, the primary one first; by default those that the claim names. ``store``: where the runs go;
    runs that are there already are not computed again. By default a folder named by the claim's hash under ``runs``.
    ``workers``: how many processes, of one thread each; or a dask scheduler's address, or a ``distributed.Client``, see
    :class:`alignlab.training.workers.Workers`. ``phase``: called as ``phase(what, n)`` for progress, see :class:`Bench`.

    Raises :class:`SpecError` for what is no claim or control, and where a control cannot audit this claim; ``DataError``
    where a data set is missing, and ``SweepError`` where runs failed.
    """
    if not isinstance(claim, Claim):
        raise SpecError(f"expected a Claim, not {type(claim).__name__}: make one by Claim(statement=…)")
    claim = claim.model_copy(
        deep=True
    )  # what is hashed is what runs, whatever happens to its dicts meanwhile
    store = Path("runs") / f"audit-{claim.digest()}" if store is None else Path(store)
    chosen = [ALL[name]() for name in claim.controls] if controls is None else _controls(controls)
    if claim.outcome.endswith("accuracy") and not tasks.load(claim.task).has_accuracy:
        raise SpecError(f"outcome is {claim.outcome}, but the task {claim.task} has no classes: take a loss")
    for control in chosen:
        control.check(claim)
    with Bench(claim, store, workers=workers, phase=phase) as bench:
        return _audited(bench, chosen)


def _controls(given: Sequence[Control]) -> list[Control]:
    wrong = [given] if isinstance(given, Control | str) else [c for c in given if not isinstance(c, Control)]
    if wrong:
        raise SpecError(
            f"controls has {wrong[0]!r:.80}: expected a list of instances, as in [controls.Magnitude(), controls.Placebo()]"
        )
    for control in given:
        _check_own(control)
    asking = [control.name for control in given if control.explains]
    if twice := [name for name in dict.fromkeys(asking) if asking.count(name) > 1]:
        raise SpecError(
            f"controls has {twice[0]!r} twice: a verdict could not say which one it means; audit it twice"
        )
    return list(given)


def _check_own(control: Control) -> None:
    """What a control of the user's own may lack."""
    kind, name = type(control), getattr(control, "name", None)
    if not isinstance(name, str) or not name.strip():
        raise SpecError(
            f"the control {kind.__name__} has no name for tables and verdicts: give its class one, name = 'my_control'"
        )
    if kind.apply is Control.apply:
        raise SpecError(f"the control {kind.__name__} has no apply(bench, treatment, baseline)")


def _applied(control: Control, bench: Bench, treatment: Any, baseline: Any) -> Finding:
    finding = control.apply(bench, treatment, baseline)
    if not isinstance(finding, Finding):
        raise TypeError(f"{type(control).__name__}.apply returned {finding!r:.80}, expected a Finding")
    return finding


def _audited(bench: Bench, controls: Sequence[Control]) -> AuditResult:
    claim = bench.claim
    arms = [*bench.specs(claim.treatment), *bench.specs(claim.baseline)]
    bench.run("runs", [*arms, *(spec for control in controls for spec in control.foreseen(bench))])
    treatment = bench.outcomes("treatment", claim.treatment)
    baseline = bench.outcomes("baseline", claim.baseline)
    findings = [_applied(control, bench, treatment, baseline) for control in controls]
    samples = [finding.samples for finding in findings if finding.samples is not None]
    evidence = gather(
        tuple(treatment - baseline),
        samples,
        claim.smallest_effect,
        alpha=claim.alpha,
        continuous=bench.continuous,
        checks=[
            *_divergence(bench, treatment - baseline),
            *(check for finding in findings for check in finding.checks),
        ],
        caveats=[
            *_unlike(bench),
            *_caveats(bench, controls),
            *(caveat for finding in findings for caveat in finding.caveats),
        ],
    )
    return AuditResult(
        claim=claim,
        verdict=decide(evidence),
        evidence=evidence,
        contrasts=tuple(contrast for finding in findings for contrast in finding.contrasts),
        outcomes={
            name: [float(v) for v in claim.sign * bench.values(group.specs)]
            for name, group in bench.groups.items()
        },
        runs={name: [bench.name(spec) for spec in group.specs] for name, group in bench.groups.items()},
        kinds={name: group.kind for name, group in bench.groups.items()},
        arms={name: group.arm for name, group in bench.groups.items()},
        details={
            control.name: finding.details
            for control, finding in zip(controls, findings, strict=True)
            if finding.details
        },
        store=bench.store,
        folder=bench.folder,
        computed=bench.computed,
        continuous=bench.continuous,
        provenance=_provenance(claim),
        controls=tuple(control.name for control in controls),
        curves={
            control.name: finding.curves
            for control, finding in zip(controls, findings, strict=True)
            if finding.curves
        },
    )


def _divergence(bench: Bench, difference: Any) -> list[Check]:
    """A failed check where a run that diverged, and counts as untrained, is better by that than the other arm's, which ended
    worse than it began: what comes of it is no effect of either arm."""
    claim = bench.claim
    t, b = (bench.diverged(bench.specs(arm)) for arm in (claim.treatment, claim.baseline))
    better = np.where(t & ~b, difference, np.where(b & ~t, -difference, 0.0))
    odd = int((better > claim.smallest_effect).sum())
    if not odd:
        return []
    detail = (
        f"on {odd} of {len(difference)} seeds a run that diverged, and counts as untrained, is better by that than the other "
        "arm's, which ended worse than it began; take a smaller learning rate"
    )
    return [Check("divergence", False, detail)]


def _unlike(bench: Bench) -> list[str]:
    """A caveat where arms of one seed begin at other weights, which a rule may set and no exchange of steps undoes."""
    claim = bench.claim
    specs = [bench.specs(arm) for arm in (claim.treatment, claim.baseline)]
    differ = _losses_apart(*map(bench.begun, specs)) or _norms_apart(*map(bench.first_norms, specs))
    if not differ:
        return []
    return [
        f"{claim.treatment.label} and {claim.baseline.label} do not begin alike: before the first step {differ}. "
        "What is claimed for a rule may be owed to other initial weights; of these, "
        "magnitude, global_magnitude and feedback_scale count half as direction and half as size, for all their runs have them"
    ]


def _losses_apart(t: Any, b: Any) -> str:
    """By how much losses (n,) of two arms differ, in words; none where they do not."""
    apart = np.abs(t - b)
    if not (apart > ALIKE * np.maximum(np.abs(t), np.abs(b))).any():
        return ""
    return f"their losses differ by up to {apart.max():.3g} on one seed"


def _norms_apart(t: Any, b: Any) -> str:
    """The same of weights, whose recorded norms are (n, layers): one layer louder and the next one softer is the same loss."""
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.exp(np.abs(np.log(t / b)))
    if not (factor > 1 + ALIKE).any():  # nor where either was not recorded
        return ""
    return f"their losses agree, but the norms of a layer's weights differ by up to a factor of {np.nanmax(factor):.3g}"


def _caveats(bench: Bench, controls: Sequence[Control]) -> list[str]:
    """What a reader must know: diverged runs, missing controls, the scale of the evidence."""
    claim, notes = bench.claim, []
    for name, group in bench.groups.items():
        if group.kind != "search":  # that grids reach into divergence is what they are for
            notes += _lost(bench, name, group)
    left_out = [control for control in ALL.values() if control.name not in {c.name for c in controls}]
    for words, explains in (("not controlled for", True), ("not checked by", False)):
        if names := [control.name for control in left_out if control.explains == explains]:
            notes.append(f"{words}: {', '.join(names)}")
    steps, n = claim.spec(claim.treatment, claim.seeds[0]).steps, len(claim.seeds)
    notes.append(
        f"shown on {claim.task} with {steps} steps and {n} seeds; nothing is said about other settings, and what happens in "
        f"{100 * unseen_share(n, claim.alpha):.2g} % of seeds or fewer may be missing from these by chance"
    )
    return notes


def _lost(bench: Bench, name: str, group: Group) -> list[str]:
    """How many runs of a group diverged, and how many others ended worse than they began by more than m, which has no limit."""
    diverged = bench.diverged(group.specs)
    behind = np.where(diverged, 0.0, -bench.gained(group.specs))
    worse = behind > bench.claim.smallest_effect
    of, notes = f"of {len(diverged)} runs of '{name}'", []
    if diverged.any():
        notes.append(f"{diverged.sum()} {of} diverged and count as untrained")
    if worse.any():
        notes.append(
            f"{worse.sum()} {of} ended worse than they began, by up to {behind.max():.3g}, and count as they ended: what "
            "differs from these by much tells that training failed there"
        )
    return notes


def _provenance(claim: Claim) -> dict[str, str]:
    return {
        "claim_hash": claim.digest(),
        "code_hash": code_hash(),
        "alignlab_version": alignlab_version(),
        "torch_version": str(torch.__version__),
    }
