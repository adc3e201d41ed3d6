"""Full MNIST, 784-500-10: each rule tuned on validation, then its test accuracy beside Akrout et al. 2019's logged one.

    python tests/benchmarks/bench_mnist.py [--epochs 40] [--out out/bench_mnist] [--workers 2]

Learning rate and weight decay are chosen on the validation split after an eighth of the epochs; the final runs take fresh
seeds. Everything goes through the store: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from alignlab.store import Segments
from alignlab.training.naming import cell_name
from alignlab.training.spec import RunSpec
from alignlab.training.sweep import Sweep
from alignlab.training.workers import Workers

PUBLISHED = {
    "bp": 98.50,
    "fa": 97.80,
    "kolen_pollack": 98.45,
    "weight_mirror": 98.49,
}  # published.csv, 400 epochs
GRID = [(lr, decay) for lr in (0.03, 0.1, 0.3) for decay in (1e-5, 1e-4)]
SEEDS = (1, 2)
REACH = 0.5
STEPS_AN_EPOCH = 50_000 // 50


def spec(rule: str, lr: float, decay: float, seed: int, epochs: int) -> RunSpec:
    return RunSpec(
        task="mnist", hidden=(500,), rule=rule, lr=lr, weight_decay=decay, batch_size=50,
        steps=max(1, epochs * STEPS_AN_EPOCH), evaluations=2, record_every=max(1, epochs * STEPS_AN_EPOCH // 20), seed=seed,
    )  # fmt: skip


def last(store: Path, made: RunSpec, variable: str, layer: str | None = None) -> float:
    run = Segments(store).read(cell_name(made))
    values = run[variable] if layer is None else run[variable].sel(layer=layer)
    return float(values.dropna("step")[-1]) if values.dropna("step").size else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("out/bench_mnist"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rules", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    args = parser.parse_args()
    store, rows = args.out / "store", []
    with Workers(args.workers) as workers:
        for rule in args.rules:
            trials = {g: spec(rule, *g, seed=0, epochs=max(1, args.epochs // 8)) for g in GRID}
            Sweep(trials.values(), store).run(workers)
            best = max(GRID, key=lambda g: np.nan_to_num(last(store, trials[g], "validation_accuracy")))
            finals = [spec(rule, *best, seed=s, epochs=args.epochs) for s in SEEDS]
            Sweep(finals, store).run(workers)
            accuracy = [100 * last(store, final, "test_accuracy") for final in finals]
            angle = np.mean([last(store, final, "weight_angle", "3") for final in finals])
            row = {
                "rule": rule,
                "lr": best[0],
                "weight_decay": best[1],
                "test_accuracy": accuracy,
                "weight_angle": angle,
            }
            rows.append(
                row | {"published": PUBLISHED[rule], "difference": np.mean(accuracy) - PUBLISHED[rule]}
            )
            print(
                f"{rule:<14} lr {best[0]:<5g} decay {best[1]:<6g} test {np.mean(accuracy):.2f} % "
                f"({', '.join(f'{a:.2f}' for a in accuracy)}), published {PUBLISHED[rule]:.2f}, difference "
                f"{rows[-1]['difference']:+.2f} (reach ±{REACH}), weight angle {angle:.1f}°",
                flush=True,
            )
    (args.out / "bench_mnist.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
