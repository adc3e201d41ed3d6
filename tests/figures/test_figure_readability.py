"""What every figure has in common, drawn for short and long, small and large, single and many runs."""

import re
import subprocess
import sys

import numpy as np
import pytest
from figure_reading import assert_readable, panels, texts

from alignlab import figures
from alignlab.figures.style import level_texts
from alignlab.testing.synthetic import synthetic_audit, synthetic_run, synthetic_runs

LONG = [f"encoder.blocks.{i}.attention.output_projection.dense" for i in range(6)]


def long_names():
    return synthetic_run(layers=LONG, steps=3000)


def six_layers():
    return synthetic_runs(("bp", "fa", "sign_sync"), range(3), layers=LONG, steps=60)


def one_step():
    return synthetic_run(steps=1)


def wide_sweep():
    return synthetic_runs(
        ("bp", "fa", "sign_sync"), range(2), (0.003, 0.01, 0.03, 0.1, 3.0), steps=30, layers=1
    )


def two_tasks():
    sweep = wide_sweep()
    return sweep.assign_coords(task=("run", np.where(sweep.seed.values == 0, "xor", "mnist_small")))


def many_rules():
    rules = ("bp", "fa", "dfa", "ifa", "usf", "brsf", "frsf", "rerandomised", "sign_sync", "weight_mirror")
    return synthetic_runs(rules, range(2), steps=30, layers=1)


def long_labels():
    audit = synthetic_audit()
    words = [f"{label}, {'at length and ' * 4}explained" for label in audit["label"].values]
    return audit.assign_coords(label=("contrast", words))


def two_eigenvalues():
    """A single panel whose tick labels change as it is made square."""
    run = synthetic_run("sign_sync", layers=["3"], steps=1, lr=300.0, task="xor", arm="treatment").isel(
        mode=[0, 1]
    )
    changed = run.copy(deep=True)
    for name, values in (("spectrum_real", (1.4488673, 0.0)), ("spectrum_imag", (0.0, 0.0))):
        changed[name].values[:] = values
    for name, value in (("symmetric_min", -0.00112183), ("symmetric_max", 1.4499892)):
        changed[name].values[:] = value
    return changed


def alike():
    """Names that differ in the middle alone."""
    return synthetic_run(
        layers=[f"encoder.blocks.{i}.attention.output_projection.dense.of_all_heads" for i in range(3)]
    )


def armed(runs):
    return runs.assign_coords(arm=("run", runs.rule.values))


def all_diverged():
    return armed(synthetic_runs(("bp", "fa"), range(3), (50.0, 100.0), steps=60))


def one_step_each():
    return armed(synthetic_runs(("bp", "fa"), range(3), (0.05, 0.1), steps=1))


def only_fa(runs):
    return runs.isel(run=(runs.rule.values == "fa") & (runs.lr.values == runs.lr.values.min()))


def asked(runs, names=None):
    question = figures.Question("which?", names or {"bp": "bp", "fa": "fa"})
    return figures.questions(runs, [question], "train_loss")


FIGURES = {
    "angles of one run": lambda: figures.angles(synthetic_run()),
    "angles with long names": lambda: figures.angles(long_names()),
    "angles by rule in panels with long names": lambda: figures.angles(six_layers(), hue="rule"),
    "angles by layer in panels of rules": lambda: figures.angles(six_layers(), col="rule"),
    "angles at one step": lambda: figures.angles(one_step()),
    "angles of one layer": lambda: figures.angles(synthetic_run(layers=1)),
    "gains with long names": lambda: figures.gains(long_names()),
    "gains in rows": lambda: figures.gains(six_layers(), hue="layer", col="rule"),
    "gains at one step": lambda: figures.gains(one_step()),
    "spectra with long names": lambda: figures.spectra(long_names()),
    "spectra with names alike at both ends": lambda: figures.spectra(alike()),
    "spectra of rules": lambda: figures.spectra(six_layers(), layer=LONG[1]),
    "spectra of backprop": lambda: figures.spectra(synthetic_run("bp")),
    "spectra of two eigenvalues": lambda: figures.spectra(two_eigenvalues()),
    "spectra at one step": lambda: figures.spectra(one_step()),
    "learning curves of many rules": lambda: figures.learning_curves(many_rules()),
    "learning curves in panels": lambda: figures.learning_curves(wide_sweep()),
    "learning curves by rate": lambda: figures.learning_curves(wide_sweep(), "validation_accuracy", hue="lr"),
    "learning curve at one step": lambda: figures.learning_curves(one_step()),
    "loss against rate": lambda: figures.loss_against_lr(wide_sweep()),
    "loss against rate for two tasks": lambda: figures.loss_against_lr(two_tasks()),
    "accuracy against one rate": lambda: figures.loss_against_lr(many_rules(), "validation_accuracy"),
    "angles where all diverged": lambda: figures.angles(only_fa(all_diverged())),
    "spectra where all diverged": lambda: figures.spectra(only_fa(all_diverged())),
    "learning curves where all diverged": lambda: figures.learning_curves(all_diverged()),
    "forest": lambda: figures.forest(synthetic_audit()),
    "forest with long labels and title": lambda: figures.forest(long_labels(), title="a long claim " * 20),
    "forest of one contrast": lambda: figures.forest(synthetic_audit().isel(contrast=[0])),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_is_on_the_canvas_and_nothing_overlaps(name):
    figure = FIGURES[name]()
    assert_readable(figure)
    for axes in panels(figure):
        assert axes.get_xlabel() or axes.get_ylabel() or len(panels(figure)) > 2
    assert len(figure.legends) == 1


def several():
    return armed(synthetic_runs(("bp", "fa", "sign_sync"), range(2), (0.01, 0.05, 0.1), steps=30, layers=2))


def of_one_rate():
    runs = several()
    return runs.isel(run=runs.lr.values == 0.05)


PANELS = {  # of other grids
    "board": lambda: figures.board(
        of_one_rate(), [figures.Shown("loss"), figures.Shown("weight_angle", "fc1")]
    ),
    "questions": lambda: asked(several(), {"bp": "bp", "fa": "fa"}),
    "trends": lambda: figures.trends(several(), "lr", {"train_loss": "loss"}, hue="arm"),
    "durations": lambda: figures.durations(several(), (1.5, 1.2)),
    "reaching": lambda: figures.reaching(of_one_rate(), "train_loss", 1.5),
    "aligning": lambda: figures.aligning(only_fa(several()), cloud="fc1"),
}
GIVEN = PANELS | {
    name: FIGURES[name]
    for name in (
        "angles of one run",
        "angles with long names",
        "angles by rule in panels with long names",
        "gains with long names",
        "gains in rows",
        "gains at one step",
        "spectra of rules",
        "learning curves of many rules",
        "learning curves by rate",
        "loss against rate",
        "accuracy against one rate",
        "forest",
        "forest with long labels and title",
    )
}
WIDE = {  # no column of a page holds their panels
    "angles with long names",
    "gains with long names",
    "gains in rows",
    "forest",
    "forest with long labels and title",
    "durations",
    "aligning",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", GIVEN)
def test_a_figure_for_a_page_has_its_width_and_can_be_read(name):
    with figures.fitted(180):
        figure = GIVEN[name]()
    assert_readable(figure)
    assert figure.get_figwidth() == pytest.approx(180 / 25.4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", GIVEN)
def test_a_figure_for_a_column_can_be_read_or_says_how_much_room_it_needs(name):
    if name not in WIDE:
        with figures.fitted(85):
            figure = GIVEN[name]()
        assert_readable(figure)
        assert figure.get_figwidth() == pytest.approx(85 / 25.4)
        return
    with (
        pytest.raises(ValueError, match="a figure of 85 mm has too little room") as refused,
        figures.fitted(85),
    ):
        GIVEN[name]()
    (enough,) = re.findall(r"about (\d+) mm", str(refused.value))
    with figures.fitted(int(enough)):
        assert_readable(GIVEN[name]())


@pytest.mark.parametrize("width", [0, -85, 59, float("nan"), 8500, "85", None, True])
def test_a_width_that_no_page_has_is_refused(width):
    with pytest.raises(ValueError, match="expected millimetres, 60 to 1000"), figures.fitted(width):
        raise AssertionError("not refused")


def test_a_width_holds_within_its_block_alone():
    usual = FIGURES["angles of one run"]().get_figwidth()
    with figures.fitted(180), figures.fitted(85):
        pass
    assert FIGURES["angles of one run"]().get_figwidth() == usual


BARE = {  # with their legends, if any, within the panels
    "questions where all diverged": lambda: asked(all_diverged()),
    "questions at one step": lambda: asked(one_step_each()),
    "durations where all diverged": lambda: figures.durations(all_diverged(), (1.0, 0.5)),
    "durations at one step": lambda: figures.durations(one_step_each(), (1.0, 0.5)),
    "reaching at one step": lambda: figures.reaching(only_fa(one_step_each()), "train_loss", 0.5),
    "aligning at one step": lambda: figures.aligning(only_fa(one_step_each()), cloud="fc1"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BARE)
def test_what_leaves_little_to_draw_is_drawn_all_the_same(name):
    assert_readable(BARE[name]())


def test_panels_of_layers_that_differ_in_the_middle_of_their_names_can_be_told_apart():
    titles = [axes.get_title(loc="left").replace("\n", "") for axes in panels(figures.spectra(alike()))]
    assert [f"blocks.{i}." in title for i, title in enumerate(titles)] == [True] * 3


DOLLARS = {
    "angles": lambda run: figures.angles(run),
    "spectra": lambda run: figures.spectra(run),
    "aligning": lambda run: figures.aligning(run, cloud="$x_{$"),
    "board": lambda run: figures.board(run, [figures.Shown("loss"), figures.Shown("weight_angle", "$x_{$")]),
    "reaching": lambda run: figures.reaching(run, "train_loss", 0.5),
    "questions": lambda run: figures.questions(
        run, [figures.Question("$x_{$", {"$x_{$": "$x_{$"})], "train_loss"
    ),
    "trends": lambda run: figures.trends(run, "lr", {"train_loss": "loss"}, hue="arm"),
    "loss_against_lr": lambda run: figures.loss_against_lr(run, hue="arm"),
    "forest": lambda _: figures.forest(
        synthetic_audit().assign_coords(label=("contrast", ["$x_{$"] * 9)), title="$x_{$"
    ),
}


@pytest.mark.parametrize("name", DOLLARS)
def test_dollars_in_names_are_no_formula(name):
    """matplotlib would fail to read "x_{" as one, and drop the dollars of one that it can read."""
    run = synthetic_run(layers=["in", "$x_{$", "out"], arm="$x_{$", task="$x_{$", steps=20)
    figure = DOLLARS[name](run.expand_dims("run"))
    figure.canvas.draw()
    assert any("\\$x_{\\$" in text.get_text() for text in texts(figure))


def test_an_arm_whose_name_begins_with_an_underscore_is_in_the_legend():
    runs = synthetic_runs(("bp", "fa"), range(2), (0.05, 0.1), steps=20)
    figure = asked(runs.assign_coords(arm=("run", runs.rule.values)), {"bp": "_bp", "fa": "_fa"})
    assert [text.get_text() for text in panels(figure)[0].get_legend().get_texts()] == ["_bp", "_fa"]


def test_no_figure_is_left_open_in_pyplot():
    from matplotlib import pyplot

    for name in ("angles of one run", "spectra at one step", "forest", "loss against rate"):
        FIGURES[name]()
    assert pyplot.get_fignums() == []


def test_figures_need_no_display_and_importing_them_no_matplotlib(tmp_path):
    program = (
        "import sys, alignlab.figures as figures\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from alignlab.testing.synthetic import synthetic_run\n"
        "figures.save(figures.learning_curves(synthetic_run(steps=5)), 'curves', ['png'])\n"
    )
    environment = {
        "PATH": "",
        "MPLBACKEND": "tkagg",
        "HOME": str(tmp_path),
        "PYTHONPATH": ":".join(filter(None, sys.path)),
    }
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_the_package_names_what_it_has():
    assert set(figures.__all__) <= set(dir(figures))
    assert all(callable(getattr(figures, name)) for name in figures.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pie'"):
        _ = figures.pie


def test_names_are_all_short_or_all_in_full():
    """One legend had "feedback al…, clipped at norm 1" beside full names, of those that a short form does not tell apart."""
    names = [
        f"feedback alignment with B from {b}, clipped at norm {c}"
        for b in ("a normal", "Kaiming's normal")
        for c in (1, 0.1)
    ]
    names.append("feedback alignment, its rate chosen by the other seeds")
    assert list(level_texts(names).values()) == names
    assert list(level_texts([0.1 + 0.2, names[0]]).values()) == ["0.3", "feedback al…mal, clipped at norm 1"]


def test_rows_of_a_forest_that_differ_in_the_middle_of_their_names_can_be_told_apart():
    audit = synthetic_audit().isel(contrast=[0, 1])
    names = [
        f"feedback alignment, {middle}, against backprop at its best" for middle in ("clipped", "slowed")
    ]
    (axes,) = panels(figures.forest(audit.assign_coords(label=("contrast", names))))
    rows = [tick.get_text().strip() for tick in axes.get_yticklabels()]
    assert [row for row in rows if row in names] == names
