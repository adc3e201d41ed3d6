"""Audits on a task of one's own: the verdict of the same runs made by hand, or one line before any runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from own_task import LOSSES, registered

import alignlab as al
from alignlab.audit import running
from alignlab.audit.bench import Bench, _final_values
from alignlab.training import TASKS, SpecError, Split, Task, train
from alignlab.training.workers import Workers

CONTROLS = [al.controls.Magnitude(), al.controls.Placebo()]


def claim(task="tab", **changes):
    fields = {
        "statement": "sign_sync beats bp on a table",
        "treatment": al.Arm(rule="sign_sync", rule_args={"period": 5}),
        "baseline": al.Arm(rule="bp"),
        "task": task,
        "outcome": "test_loss",
        "smallest_effect": 0.01,
        "seeds": range(5),
        "setup": {"hidden": (8, 8), "lr": 0.05, "batch_size": 10, "steps": 25, "record_every": 5},
    }
    return al.Claim(**{**fields, **changes})


class ByHand(Bench):
    """A bench whose runs come from train(spec, task=...) one by one, and from no store."""

    def __init__(self, claim, task, tmp_path):
        super().__init__(claim, tmp_path)
        self.task, self.trained = task, {}

    def run(self, what, specs):
        for spec in specs:
            if spec not in self.trained:
                self.trained[spec] = train(spec, task=self.task)
        self._names |= {spec: spec.digest() for spec in specs}

    def final(self, spec):
        return _final_values(
            {name: variable.values for name, variable in self.trained[spec].variables.items()}
        )

    def dataset(self, spec):
        return self.trained[spec]


def test_an_audit_on_two_workers_gives_the_verdict_of_the_runs_made_by_hand(tmp_path):
    with registered(tmp_path / "own") as own, Workers(2) as two:
        result = al.audit(claim(), CONTROLS, store=tmp_path / "runs", workers=two)
        hand = running._audited(
            ByHand(claim(), replace(own.make(0), name="tab"), tmp_path / "none"), CONTROLS
        )
        again = al.audit(claim(), CONTROLS, store=tmp_path / "runs")
    assert result.computed == len({name for names in result.runs.values() for name in names}) == 25
    assert (again.computed, str(again.verdict)) == (0, str(result.verdict))
    assert result.verdict.kind == hand.verdict.kind
    assert result.outcomes.keys() == hand.outcomes.keys()
    for name, outcomes in result.outcomes.items():
        np.testing.assert_allclose(outcomes, hand.outcomes[name], rtol=1e-4, err_msg=name)
    assert result.evidence.total.estimate == pytest.approx(hand.evidence.total.estimate, rel=1e-3)
    assert "shown on tab" in result.table() + str(result.verdict) + str(result.evidence.caveats)


def test_an_edited_loss_is_audited_anew(tmp_path):
    computed, outcomes = [], []
    for number, share in enumerate(("0.7", "0.7", "0.5")):
        with registered(tmp_path / str(number), losses=LOSSES.replace("0.7", share)):
            result = al.audit(claim(), [], store=tmp_path / "runs")
            computed.append(result.computed)
            outcomes.append(result.outcomes["treatment"])
    assert computed == [10, 0, 10]
    assert outcomes[0] == outcomes[1] != outcomes[2]


def values(loss=torch.nn.functional.mse_loss, **changes):
    x = torch.linspace(-1, 1, 12).view(6, 2)
    split = Split(x, x[:, :1])
    fields = {"n_in": (2,), "n_out": 1, "has_accuracy": False}
    return Task("own", split, split, split, loss, **{**fields, **changes})


@pytest.mark.parametrize(
    ("task", "changes", "told"),
    [
        (
            values(),
            {"outcome": "test_accuracy", "direction": "higher"},
            "the task own has no classes: take a loss",
        ),
        (values(), {"setup": {"model": "convnet"}}, "convnet needs images of at least 8×8 pixels"),
        (values(has_accuracy=True), {}, "has_accuracy=False, or a threshold"),
        (values(lambda o, t: (o - t).abs()), {}, "its loss gives a tensor of shape"),
    ],
)
def test_an_audit_that_cannot_be_is_one_line_before_any_run(task, changes, told, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "own", task)
    with pytest.raises(SpecError) as caught:
        al.audit(claim("own", **changes), CONTROLS, store=tmp_path / "runs")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.nc"))
