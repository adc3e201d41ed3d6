"""The numbers of ``analyses/scaling.md``, as blocks of Markdown made from the results of ``bench_scaling.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scaling_model as model

RUNS, NODES, CORES = 100_000, (1, 10, 100), 32
WORDS = {  # what a coefficient means, its unit, and from seconds a unit of the feature to the number shown
    "step": ("Python and dispatch, a step, shared by the K runs", "µs", lambda c: 1e6 * c),
    "layer": ("the same, a layer", "µs", lambda c: 1e6 * c),
    "run": ("each run's own, a layer", "µs", lambda c: 1e6 * c),
    "operations": ("products", "GFLOP/s", lambda c: 1e-9 / c),
    "weights": ("weights, as bytes of one copy", "GB/s", lambda c: 1e-9 / c),
    "activations": ("activations, as bytes of one copy", "GB/s", lambda c: 1e-9 / c),
}


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """By the name of their markers."""
    return {"model": coefficients(found), "errors": errors(found), "run": run(found), "audit": audit(found)}


def coefficients(found: Mapping[str, Any]) -> str:
    fitted = model.fitted(found)
    lines = ["| term | bare step | recording |", "|---|---|---|"]
    for (words, unit, shown), bare, probe in zip(WORDS.values(), fitted[:6], fitted[6:], strict=True):
        values = [f"{_digits(shown(c))} {unit}" if c else "none seen" for c in (bare, probe)]
        lines.append(f"| {words} | {' | '.join(values)} |")
    return "\n".join(lines)


def errors(found: Mapping[str, Any]) -> str:
    held = [p for p in found["points"] if p["held_out"]]
    used = [p for p in found["points"] if not p["held_out"]]
    fitted = model.fitted(found)
    off, within = np.abs(model.errors(fitted, held)), np.abs(model.errors(fitted, used))
    worst = held[int(off.argmax())]
    side = "too low" if model.errors(fitted, [worst])[0] < 0 else "too high"
    return (
        f"On the {len(held)} held-out points the model is off by {off.mean():.0%} in the mean, {np.median(off):.0%} in the "
        f"median, and {off.max():.0%} at worst (K = {worst['runs']}, widths {'-'.join(map(str, worst['widths']))}, batch "
        f"{worst['batch']}, {worst['share']:.0%} of the steps recorded; {side}); on the {len(used)} points that it was fitted "
        f"to by {np.median(within):.0%} in the median and {within.max():.0%} at worst."
    )


def run(found: Mapping[str, Any]) -> str:
    """The parts of a run, and their sum beside a whole one."""
    at, measured = found["run"], found["whole"]
    parts = model.parts_of_a_run(found)
    words = {
        "steps": f"{at['steps']} steps, as the model has them",
        "evaluations": f"{at['evaluations']} evaluations on all images",
        "spectra": f"eigenvalues at {at['spectra']} steps",
        "fixed": "all else: made, tabulated, stored",
    }
    lines = ["| part of a run | time |", "|---|---|"]
    lines += [f"| {words[name]} | {_ms(seconds)} |" for name, seconds in parts.items()]
    total = sum(parts.values())
    lines.append(f"| **together** | {_ms(total)} |")
    size = f"{found['whole_runs']} runs, {at['runs']} at a time"
    lines.append(f"| a run, measured ({size}) | {_ms(measured)} (the sum: {total / measured - 1:+.0%}) |")
    return "\n".join(lines)


def audit(found: Mapping[str, Any]) -> str:
    """What a large audit takes."""
    lines = [
        f"| nodes | workers | runs at a time | jobs | computing | caller and scheduler | {RUNS:,} runs take |",
        "|---|---|---|---|---|---|---|",
    ]
    for nodes in NODES:
        t = model.audit_time(found, RUNS, nodes, CORES)
        lines.append(
            f"| {nodes} | {t['workers']:,} | {t['size']} | {t['jobs']:,} | {_long(t['computed'])} | {_long(t['alone'])} | "
            f"**{_long(t['whole'])}** |"
        )
    return "\n".join([*lines, "", assumed(found["prices"])])


def assumed(prices: Mapping[str, float]) -> str:
    return (
        f"Assumed: {CORES} cores a node, each as fast as the one that was measured and not slowed by its neighbours; the "
        f"caller's {_ms(prices['caller'])} a run, and its and the scheduler's {_ms(prices['job'])} a job, one after the other, "
        "as measured with two workers; a shared folder that takes runs as fast as this machine's disk; workers that are there."
    )


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"


def _long(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
