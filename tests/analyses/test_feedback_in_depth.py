"""The studies soap and asymmetric_conv, cut to a few steps: arms, figures and tables."""

import pytest

from alignlab import gallery
from alignlab.study import Study, labelled


def tiny(name, **changes):
    """The study with two seeds, each arm's first two rates, and the specs changed."""
    study = gallery.study(name)

    def arms(full):
        found = {}
        for arm, specs in study.arms(full).items():
            rates = sorted({s.lr for s in specs})[:2]
            found[arm] = [s.changed(**changes) for s in specs if s.lr in rates and s.seed < 2]
        return found

    return Study(study.question, study.source, arms, study.figures, study.table)


@pytest.mark.parametrize("full", [False, True])
def test_every_arm_of_soap_has_three_rates_and_the_same_seeds(full):
    arms = labelled(gallery.study("soap").arms(full))
    assert {len({s.lr for s in specs}) for specs in arms.values()} == {3}
    assert len({tuple(sorted({s.seed for s in specs})) for specs in arms.values()}) == 1


def test_soap_draws_and_tells_its_arms_and_contrasts(tmp_path):
    result = tiny("soap", hidden=(8,), steps=4, evaluations=2, record_every=2).run(tmp_path)
    assert set(result.figures()) == {"soap_loss", "soap_angle", "soap_control"}
    assert len(result.table().splitlines()) == 1 + 10 + 5


def test_asymmetric_conv_answers_its_eight_questions(tmp_path):
    """With small dense nets in place of the convolutional ones, which take seconds to evaluate."""
    study = gallery.study("asymmetric_conv")
    smaller = {"model": "mlp", "steps": 2}

    def arms(full):
        found = {}
        for i, (arm, specs) in enumerate(study.arms(full).items()):
            rule = {"rule": {"1": "bp", "*": "fa"}} if "dense" in arm else {}
            shape = {"hidden": (4 + i,), **smaller, **rule}
            found[arm] = [s.changed(**shape) for s in specs if s.seed < 2]
        return found

    result = Study(study.question, study.source, arms, study.figures, study.table).run(tmp_path)
    (figure,) = result.figures().values()
    assert len(figure.axes) == 8
    lines = result.table().splitlines()
    assert len(lines) == 9
    assert lines[5].endswith("cannot show: no image seen twice")
