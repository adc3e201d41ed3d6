"""Global magnitude: the length of the whole step is exchanged, the layers keep their proportions."""

import numpy as np
import pytest
import xarray as xr
from known_bench import CLAIM, KnownBench

import alignlab as al
from alignlab.audit.controls import GlobalMagnitude, Magnitude
from alignlab.audit.controls.magnitude import _together, manipulation_check


def shared_out(spec):
    """The whole step's size gains 3; how it is shared out gains 1, where it is the rule's own or each layer has its own."""
    if spec.rule == "bp":
        return 0.01 * np.sin(spec.seed)
    graft = spec.graft
    sized = graft is None or graft.magnitude == "rule"
    shares = graft is None or (graft.direction if graft.scope == "global" else graft.magnitude) == "rule"
    return 3.0 * sized + 1.0 * shares + 0.01 * np.sin(spec.seed)


def applied(control):
    bench = KnownBench(CLAIM, shared_out)
    return control.apply(
        bench, *(bench.outcomes(n, a) for n, a in (("t", CLAIM.treatment), ("b", CLAIM.baseline)))
    )


def test_one_factor_leaves_what_the_layers_proportions_are_worth():
    whole, each = applied(GlobalMagnitude()), applied(Magnitude())
    assert np.mean(whole.samples.necessity) == pytest.approx(1.0)
    assert np.mean(whole.samples.sufficiency) == pytest.approx(1.0)
    assert np.mean(each.samples.necessity) == pytest.approx(0.0)
    assert np.mean(each.samples.sufficiency) == pytest.approx(0.0)
    labels = [contrast.label for found in (whole, each) for contrast in found.contrasts]
    assert len(set(labels)) == 6


class OfTwoLayers(KnownBench):
    """Runs whose second layer is twice as long, and whose gains differ; the steps are ``factor`` times what is meant."""

    factor = 1.0

    def dataset(self, spec):
        norm, gain = np.array([[3.0, 4.0]] * 3), np.array([[2.0, 0.5]] * 3)
        length = {"rule": np.hypot(6.0, 2.0), "bp": 5.0}
        own = gain if spec.graft.direction == "rule" else np.ones_like(gain)
        applied = own * length[spec.graft.magnitude] / length[spec.graft.direction] * self.factor
        table = {"gradient_norm": gain * norm, "gradient_norm_bp": norm, "update_norm": 0.1 * applied * norm}
        table["weight_norm"] = np.ones_like(norm)
        run = xr.Dataset({k: (("step", "layer"), v) for k, v in table.items()}, {"layer": ["1", "3"]})
        return run.assign(learning_rate=("step", np.full(3, 0.1)))


@pytest.mark.parametrize("pair", [("rule", "bp"), ("bp", "rule")], ids="-".join)
def test_the_check_takes_the_norm_of_all_layers_together(pair):
    bench = OfTwoLayers(CLAIM, shared_out)
    graft = dict(zip(("direction", "magnitude"), pair, strict=True))
    whole, each = (
        CLAIM.spec(CLAIM.treatment, 0, graft=graft | {"scope": scope}) for scope in ("global", "layer")
    )
    assert manipulation_check(bench, [whole], "global_magnitude").passed
    assert not manipulation_check(bench, [each]).passed
    bench.factor = 1.02
    assert manipulation_check(bench, [whole]).failed


def test_layers_without_a_norm_do_not_hide_those_of_the_others():
    nan = np.nan
    np.testing.assert_equal(_together(np.array([[3.0, nan, 4.0], [nan, nan, nan]])), [[5.0], [nan]])


def test_frozen_layers_do_not_count_as_steps_that_were_not_taken(tmp_path):
    claim = al.Claim(
        statement="signs beat backprop above a frozen layer",
        treatment=al.Arm(rule="sign_sync", rule_args={"period": 1}),
        baseline=al.Arm(rule="bp"),
        task="linear_toy",
        smallest_effect=0.05,
        seeds=range(4),
        setup={"hidden": (20, 15), "activation": "tanh", "steps": 20, "lr": 0.003, "batch_size": 16, "frozen": ("3.*",),
               "record_every": 5},
        controls=("global_magnitude", "magnitude"),
    )  # fmt: skip
    result = al.audit(claim, store=tmp_path)
    checks = {check.name: check.passed for check in result.evidence.checks}
    assert checks == {"manipulation: global_magnitude": True, "manipulation: magnitude": True}
    n = {control.name: control.necessity.estimate for control in result.evidence.controls}
    assert n["global_magnitude"] != n["magnitude"]
