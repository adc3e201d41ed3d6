"""A claim, and a bench on which the outcomes of its runs are known, so that conclusions can be checked by hand."""

import numpy as np
import xarray as xr

import alignlab as al
from alignlab.audit.bench import Group

CLAIM = al.Claim(
    statement="sign_sync beats bp",
    treatment=al.Arm(rule="sign_sync"),
    baseline=al.Arm(rule="bp"),
    task="xor",
    smallest_effect=0.1,
    seeds=range(5),
    setup={"lr": 0.1, "steps": 10, "batch_size": 2},
    learning_rates=(0.01, 0.1, 1.0),
    tuning_seeds=2,
)


class KnownBench:
    """A bench whose outcomes come from a formula of the spec, and whose runs record the gains that they should."""

    continuous = True

    def __init__(self, claim, value, applied=None):
        self.claim, self.value, self.groups, self.asked = claim, value, {}, set()
        self._applied = applied or (lambda spec: 1.0 if spec.graft and spec.graft.magnitude == "bp" else 7.0)

    def specs(self, arm, seeds=None, **changes):
        return [self.claim.spec(arm, s, **changes) for s in (seeds or self.claim.seeds)]

    def run(self, what, specs):
        """Nothing to do."""

    def values(self, specs, metric=None):
        self.asked.add(metric)
        return np.array([self.value(spec) for spec in specs])

    def outcomes(self, group, arm, *, seeds=None, metric=None, kind="compared", **changes):
        return self.outcomes_of(group, arm, self.specs(arm, seeds, **changes), kind=kind)

    def outcomes_of(self, group, arm, specs, *, metric=None, kind="compared"):
        self.groups[group] = Group(tuple(specs), arm.label, kind)
        return self.values(specs)

    def dataset(self, spec):
        return recorded(np.full((3, 2), 7.0), np.full((3, 2), self._applied(spec)))


def recorded(gain, applied, norm=None):
    """A run with these (step, layer) gains, at one learning rate; of equal gradients where none are given."""
    norm = np.ones_like(gain) if norm is None else norm
    table = {
        "feedback_gain": gain,
        "gradient_norm": gain * norm,
        "gradient_norm_bp": norm,
        "update_norm": 0.1 * applied * norm,
        "weight_norm": np.ones_like(gain),
    }
    run = xr.Dataset({name: (("step", "layer"), values) for name, values in table.items()})
    return run.assign(learning_rate=("step", np.full(len(gain), 0.1)))


LAYERS = ("1", "3")


class RecordingBench(KnownBench):
    """A KnownBench whose runs record, besides, step sizes and angles as their specs have them, or ``off`` times these."""

    def __init__(self, claim, value, off=1.0):
        super().__init__(claim, value)
        self.off = off

    def dataset(self, spec):
        size = np.outer([1.0, 0.8, 0.6], [1.0, 2.0]) * (0.1 if spec.rule == "bp" else 0.7) * (1 + spec.seed)
        relative = size / 10
        if (given := spec.step_sizes) is not None:
            size = self.off * np.stack(
                [np.interp([0, 4, 8], given.steps, given.sizes[name]) for name in LAYERS], 1
            )
            size, relative = (None, size) if given.relative else (size, None)
        noisy = spec.rule == "noisy_backprop"
        angle = np.degrees(np.arccos(list(spec.rule_args["cosine"].values()))).T if noisy else _angle(spec)
        louder = (
            np.transpose(list(spec.rule_args["gain"].values()))
            if "gain" in spec.rule_args
            else np.ones((3, 2))
        )
        by_bp = spec.graft is not None and spec.graft.magnitude == "bp"
        gain = louder if noisy or spec.rule == "bp" else np.full((3, 2), 7.0)
        if spec.graft is not None:
            size = 0.1 * (np.ones((3, 2)) if by_bp else gain)
        table = {
            "update_norm": size, "relative_update": relative, "gradient_angle": angle * (self.off if noisy else 1),
            "feedback_gain": gain, "gradient_norm": gain, "gradient_norm_bp": np.ones((3, 2)),
            "weight_norm": np.full((3, 2), 10.0),
        }  # fmt: skip
        known = {name: (("step", "layer"), values) for name, values in table.items() if values is not None}
        run = xr.Dataset(known, {"step": [0, 4, 8], "layer": list(LAYERS)})
        return run.assign(learning_rate=("step", np.full(3, 0.1)))


def _angle(spec):
    return (
        np.zeros((3, 2))
        if spec.rule == "bp"
        else np.array([[80.0, 0.0], [60.0, 0.0], [50.0 + spec.seed, 0.0]])
    )
