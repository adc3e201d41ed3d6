"""A model of what a step of one run costs in a population, fitted to measured points, and what follows for large audits.

A step of K runs of L linear layers is told off by Python once for all of them (shared by K), and a little for each run; then
come the products, as many operations as can be counted, the weights that go through memory, and the activations:

    seconds a run-step = bare + share of steps that are recorded × probes,
    each = a/K + b·L/K + c·L + operations/d + bytes of weights/e + bytes of activations/f

with coefficients of their own for both. They are fitted by least squares on relative errors, none below 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

TERMS = ("step", "layer", "run", "operations", "weights", "activations")
Array = NDArray[np.float64]
Point = Mapping[str, Any]
FLOAT = 4  # bytes


def point(runs: int, widths: Sequence[int], batch: int, share: float, **more: Any) -> dict[str, Any]:
    """``widths``: of inputs, hidden layers and outputs; ``share``: of the steps that are recorded."""
    return {"runs": runs, "widths": list(widths), "batch": batch, "share": share, **more}


def features(at: Point) -> Array:
    """What the coefficients multiply, (12,): the bare step's terms and the probes'."""
    widths, n, runs = at["widths"], at["batch"], at["runs"]
    layers = list(pairwise(widths))
    weights, units = sum(a * b for a, b in layers), sum(widths)
    down = 2 * n * sum(a * b for a, b in layers[1:])  # errors handed to the layer below
    trained = 4 * n * weights + down  # forward, G, and the errors
    gram = 2 * sum(min(2 * n * a * b, n * n * (a + 2 * b)) for a, b in layers)
    probed = (
        2 * down + 2 * n * weights + gram
    )  # true errors, local ones, ⟨ΔW, G⟩, and the products of gradients
    shared = [1 / runs, len(layers) / runs, len(layers)]
    moved = [FLOAT * weights, FLOAT * n * units]
    bare, probes = np.array([*shared, trained, *moved]), np.array([*shared, probed, *moved])
    return np.concatenate([bare, at["share"] * probes])


def fit(points: Sequence[Point]) -> Array:
    """The coefficients (12,), in seconds a unit of each feature."""
    times = np.array([p["seconds"] for p in points])
    X = np.stack([features(p) for p in points]) / times[:, None]
    scale = X.max(0)
    found, _ = nnls(X / scale, np.ones(len(points)))
    return np.asarray(found / scale)


def predicted(coefficients: Array, at: Point) -> float:
    """Seconds that a step of one run takes."""
    return float(features(at) @ coefficients)


def errors(coefficients: Array, points: Sequence[Point]) -> Array:
    """Predicted over measured, less 1."""
    return np.array([predicted(coefficients, p) / p["seconds"] - 1 for p in points])


def fitted(found: Mapping[str, Any]) -> Array:
    """The coefficients that follow from a results file: from all points but those held out."""
    return fit([p for p in found["points"] if not p["held_out"]])


def parts_of_a_run(found: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of one run of the audit's shape, by part: the steps as the model has them, the rest as it was measured."""
    run, prices = found["run"], found["prices"]
    return {
        "steps": run["steps"] * predicted(fitted(found), run),
        "evaluations": run["evaluations"] * prices["evaluation"],
        "spectra": run["spectra"] * prices["spectra"],
        "fixed": prices["fixed"],
    }


def audit_time(found: Mapping[str, Any], runs: int, nodes: int, cores: int) -> dict[str, float]:
    """Seconds that ``runs`` runs take on so many nodes, a worker a core, and what they are made of.

    Runs go out in populations of the measured size, smaller ones where there are too few for all workers; the slowest worker
    counts. The caller's and the scheduler's work is done once and by one process, and is added.
    """
    workers, prices = nodes * cores, found["prices"]
    size = min(found["run"]["runs"], math.ceil(runs / workers))
    jobs = math.ceil(runs / size)
    one = sum(parts_of_a_run(dict(found) | {"run": found["run"] | {"runs": size}}).values())
    computed = math.ceil(jobs / workers) * size * one
    alone = runs * prices["caller"] + jobs * prices["job"]
    return {
        "workers": workers,
        "size": size,
        "jobs": jobs,
        "computed": computed,
        "alone": alone,
        "whole": computed + alone,
    }
