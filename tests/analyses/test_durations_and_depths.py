"""The studies mnist_fa and dfa_ifa, cut to a few steps: arms, figures and tables."""

import pytest

from alignlab import gallery
from alignlab.study import Study, labelled


def tiny(name, steps, most):
    """The study with two seeds and narrow layers, two rates, ``steps`` steps and at most ``most`` hidden layers."""
    study = gallery.study(name)

    def arms(full):
        own = {arm: [s for s in specs if len(s.hidden) <= most] for arm, specs in study.arms(full).items()}
        rates = sorted({s.lr for specs in own.values() for s in specs})[1:3]
        return {
            arm: [
                s.changed(
                    steps=steps, record_every=s.record_every and steps - 1, hidden=(24,) * len(s.hidden)
                )
                for s in specs
                if s.lr in rates and s.seed < 2
            ]
            for arm, specs in own.items()
            if specs
        }

    return Study(study.question, study.source, arms, study.figures, study.table, study.lockstep)


@pytest.mark.parametrize("full", [False, True])
def test_all_methods_of_a_condition_have_the_same_rates_and_seeds(full):
    for name in ("mnist_fa", "dfa_ifa"):
        arms = labelled(gallery.study(name).arms(full))
        assert len({tuple(sorted((s.lr, s.seed) for s in specs)) for specs in arms.values()}) == 1
        assert all(len({s.lr for s in specs}) >= 3 for specs in arms.values())


def test_mnist_fa_draws_and_tells_ratios(tmp_path):
    result = tiny("mnist_fa", 12, 1).run(tmp_path)
    (figure,) = result.figures().values()
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["fa, B as W", "fa, B from U(±0.5)"]
    lines = result.table().splitlines()
    assert len(lines) == 1 + 2 * 3 + 1
    assert sum("best of each" in line for line in lines) == 3


def test_mnist_fa_compares_the_sizes_of_b_seed_by_seed_and_not_by_what_bp_has_of_each(tmp_path):
    *_, last = tiny("mnist_fa", 12, 1).run(tmp_path).table().splitlines()
    assert last.startswith("fa, B from U(±0.5) / fa, B as W")


def test_dfa_ifa_draws_and_tells_every_condition(tmp_path):
    result = tiny("dfa_ifa", 3, 3).run(tmp_path)
    ((name, figure),) = result.figures().items()
    assert name == "dfa_ifa_mnist_small"
    assert len(figure.axes) == 4
    assert len(result.table().splitlines()) == 1 + 2 + 2 * (
        2 + 1 + 1
    )  # bp at two depths, fa at two, dfa and ifa at one
