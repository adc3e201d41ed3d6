"""Learning curves: no line mixes conditions, no mean flatters what diverged."""

import numpy as np
import pytest
import xarray as xr
from figure_reading import labels, legend, line, marks, panels, same

from alignlab import figures
from alignlab.audit.crossfit import scores_of
from alignlab.figures import groups
from alignlab.figures.lines import mean_and_interval
from alignlab.figures.sweeps import final_values
from alignlab.measures.quantities import QUANTITIES
from alignlab.report import run_page
from alignlab.store.shaping import _MADE_BY, as_runs
from alignlab.testing.synthetic import synthetic_runs


def test_one_line_a_rule_and_a_log_axis_for_a_loss(runs):
    figure = figures.learning_curves(runs)
    (axes,) = panels(figure)
    assert labels(axes) == legend(figure) == ["bp", "fa", "sign_sync"]
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "optimizer step"
    assert axes.get_ylabel() == f"train loss {QUANTITIES['train_loss'].symbol}"


def test_accuracies_are_linear_and_their_mean_arithmetic(runs):
    (axes,) = panels(figures.learning_curves(runs, "validation_accuracy"))
    assert axes.get_yscale() == "linear"
    table = runs["validation_accuracy"].isel(run=runs.rule.values == "fa").dropna("step").values
    assert line(axes, "fa").get_ydata() == pytest.approx(table.mean(axis=0), rel=1e-5)


def test_curves_hold_evaluations_and_no_other_step(runs):
    (axes,) = panels(figures.learning_curves(runs))
    table = runs["train_loss"].isel(run=runs.rule.values == "bp").dropna("step")
    drawn = line(axes, "bp")
    assert same(drawn.get_xdata(), table.step)
    assert same(drawn.get_ydata(), mean_and_interval(table.values.astype(np.float64), log=True)[0])


def test_a_single_run_shows_its_own_values(run):
    (axes,) = panels(figures.learning_curves(run))
    assert labels(axes) == ["fa"]
    assert same(line(axes, "fa").get_ydata(), run["train_loss"].dropna("step"))


def test_t_interval_matches_the_textbook():
    mean, low, high = mean_and_interval(np.array([[1.0], [2.0], [3.0], [6.0]]), log=False)
    assert mean == pytest.approx(3.0)
    assert high - mean == pytest.approx(3.182446 * 2.160247 / 2, rel=1e-6)  # t(.975, 3) · s / √4
    assert mean - low == pytest.approx(high - mean)


def test_different_learning_rates_get_panels_of_their_own():
    sweep = synthetic_runs(("bp", "fa"), range(3), (0.01, 0.1), steps=40, layers=1)
    assert [axes.get_title(loc="left") for axes in panels(figures.learning_curves(sweep))] == [
        "lr 0.01",
        "lr 0.1",
    ]


def test_specs_that_differ_in_more_than_the_seed_are_not_averaged(runs):
    fa = runs.isel(run=runs.rule.values == "fa")
    specs = [f"hidden: [{width}]\nseed: {seed}\n" for seed, width in enumerate((32, 32, 64, 64))]
    figure = figures.learning_curves(fa.assign_coords(spec=("run", specs)))
    assert [axes.get_title(loc="left") for axes in panels(figure)] == ["hidden [32]", "hidden [64]"]


def test_tables_that_each_run_took_from_another_one_are_no_condition_unless_they_alone_tell_runs_apart(runs):
    """Every seed has its own: an audit that replays had a panel for each of its runs, under pages of numbers."""
    fa = runs.isel(run=runs.rule.values == "fa")
    args = [f"rule_args: {{cosine: {{'1': [0.{seed}, 0.5]}}, steps: [0, {seed}]}}\n" for seed in (1, 2, 3, 4)]
    sizes = [f"step_sizes: {{relative: {str(k > 1).lower()}, sizes: {{'1': [0.{k}]}}}}\n" for k in range(4)]

    def titles(tables, seeds):
        specs = [f"{table}seed: {seed}\n" for table, seed in zip(tables, seeds, strict=True)]
        drawn = panels(figures.learning_curves(fa.assign_coords(spec=("run", specs))))
        return [axes.get_title(loc="left") for axes in drawn]

    assert titles(args, range(4)) == [""]
    assert len(titles(args, (0, 0, 1, 1))) == 4  # tables that somebody wrote, tried on the same seeds
    assert len(titles([args[0], args[0], args[1], args[1]], range(4))) == 2  # or on others
    assert len(titles([args[0], args[0], *sizes[:2]], range(4))) == 2  # beside some that were recorded
    assert [("True" in title, "replayed" in title) for title in titles(sizes, range(4))] == [
        (False, True),
        (True, True),
    ]


def test_runs_that_a_study_has_read_keep_their_conditions_apart(runs):
    """Its dataset is one of runs already: read as one again, it had no conditions, and widths were averaged."""
    fa = runs.isel(run=runs.rule.values == "fa")
    specs = [f"hidden: [{width}]\nlr: 0.05\n" for width in (32, 32, 64, 64)]
    once = as_runs(fa.assign_coords(spec=("run", specs)))
    assert len(panels(figures.learning_curves(once))) == 2
    assert len(panels(figures.learning_curves(once.isel(run=[0, 1])))) == 1
    assert as_runs(as_runs(once)).attrs["differing"] == ["hidden"]


@pytest.mark.parametrize(
    ("seeds", "given", "titles"),
    [
        ((0, 1, 0, 1), (0.0, 0.0, 0.5, 0.5), ["noise 0", "noise 0.5"]),
        ((0, 1, 2, 3), (0.0, 0.0, 0.5, 0.5), ["noise 0", "noise 0.5"]),  # on seeds of their own
        ((0, 0, 0, 0), (0.0, 0.1, 0.2, 0.5), ["noise 0", "noise 0.1", "noise 0.2", "noise 0.5"]),
        ((0, 1, 2, 3), (7.0, 8.0, 9.0, 6.0), [""]),  # another one a seed: of the data, say
        ((0, 0, 0, 0), (0.5, 0.5, 0.5, 0.5), [""]),
    ],
)
def test_what_a_recorder_was_told_of_its_run_is_a_condition(runs, seeds, given, titles):
    """A recorder's coords of any name: runs with noise and without were drawn as the mean of one rule."""
    fa = runs.isel(run=runs.rule.values == "fa").assign_coords(
        noise=("run", list(given)), seed=("run", list(seeds))
    )
    figure = figures.learning_curves(fa)
    assert [axes.get_title(loc="left") for axes in panels(figure)] == titles
    assert as_runs(as_runs(fa)).attrs["differing"] == as_runs(fa).attrs["differing"]


def test_a_coordinate_that_parts_the_runs_of_one_rule_alone_is_a_condition_and_one_that_all_share_is_none():
    about = {
        "run_id": list("abcdef"),
        "rule": ["bp"] * 2 + ["fa"] * 4,
        "seed": [0, 1] * 3,
        "depth": [1, 1, 1, 1, 2, 2],
        "width": [5] * 6,
    }
    coords = {name: ("run", values) for name, values in about.items()} | {"step": [0]}
    runs = xr.Dataset({"loss": (("run", "step"), np.ones((6, 1)))}, coords)
    assert as_runs(runs).attrs["differing"] == ["depth"]
    one = as_runs(runs).isel(run=[0, 1, 2, 3])  # of the parted runs some were left out
    assert as_runs(one).attrs["differing"] == []


def test_what_runs_were_made_by_makes_no_condition_of_them():
    run = {"run_id": ("run", list("abcd")), "seed": ("run", [0, 1, 2, 3]), "step": [0]}
    runs = xr.Dataset({"loss": (("run", "step"), np.zeros((4, 1)))}, coords=run)
    for name in _MADE_BY:
        assert as_runs(runs.assign_coords({name: ("run", ["x", "x", "y", "y"])})).attrs["differing"] == []
    assert as_runs(runs.assign_coords(host=("run", ["x", "x", "y", "y"]))).attrs["differing"] == ["host"]
    one_layer = as_runs(runs.assign_coords(layer="0", kind="Linear"))
    assert one_layer["layer"].dims == one_layer["kind"].dims == ()


@pytest.mark.parametrize("texts", [("net: 3 layers: relu", "net: 4 layers: relu"), ("wide", "narrow")])
def test_a_users_attribute_called_spec_may_be_any_text(texts, runs):
    """It was an error of the YAML reader's, or left coordinates unseen, so that noises were averaged."""
    fa = runs.isel(run=runs.rule.values == "fa")
    told = fa.assign_coords(
        spec=("run", [*texts] * 2), noise=("run", [0.0, 0.0, 0.5, 0.5]), seed=("run", [0, 1] * 2)
    )
    titles = [axes.get_title(loc="left") for axes in panels(figures.learning_curves(told))]
    assert [title.count("noise 0.5") for title in titles].count(1) == len(titles) / 2


def test_a_coordinate_that_numbers_the_runs_of_each_rule_tells_replicates_apart(runs):
    numbered = runs.drop_vars("seed").assign_coords(repeat=("run", runs.seed.values))
    (axes,) = panels(figures.learning_curves(numbered))
    assert len(axes.collections) == 3  # the bands of three rules


def test_arguments_of_a_recorded_loops_rule_are_a_condition(runs):
    """They are no coordinate of a run but an attribute, which becomes one where runs differ."""
    fa = runs.isel(run=runs.rule.values == "fa")
    told = fa.assign_coords(learning_rule=("run", ["fa(init='xavier')"] * 2 + ["fa(init='kaiming')"] * 2))
    assert len(panels(figures.learning_curves(told))) == 2
    assert (
        len(panels(figures.learning_curves(fa.assign_coords(torch_version=("run", ["1", "1", "2", "2"])))))
        == 1
    )


def test_runs_of_one_spec_by_several_versions_of_the_code_are_no_further_seeds(runs):
    """A rule was edited and its runs computed anew: the means were of both versions, with the intervals of twice as many."""
    fa = runs.isel(run=runs.rule.values == "fa").assign_coords(
        code_hash=("run", ["old", "old", "new", "new"])
    )
    again = fa.assign_coords(spec_hash=("run", ["a", "b"] * 2), seed=("run", [0, 1] * 2))
    drawn = panels(figures.learning_curves(again))
    assert [axes.get_title(loc="left") for axes in drawn] == ["code hash new", "code hash old"]
    (lone,) = panels(figures.learning_curves(again.isel(run=[0, 1])))
    assert [found.get_ydata().tolist() for found in drawn[1].lines] == [
        found.get_ydata().tolist() for found in lone.lines
    ]
    assert len(panels(figures.learning_curves(fa.assign_coords(spec_hash=("run", [*"abcd"]))))) == 1
    assert as_runs(as_runs(again)).attrs["differing"] == as_runs(again).attrs["differing"]


def test_a_field_that_a_later_version_brought_is_no_condition_where_it_is_null(runs):
    fa = runs.isel(run=runs.rule.values == "fa")
    for null, differing in (("null", []), ("{sizes: 0.1}", ["step_sizes"])):
        specs = ["lr: 0.05\n", f"lr: 0.05\nstep_sizes: {null}\n"] * 2
        assert as_runs(fa.assign_coords(spec=("run", specs))).attrs["differing"] == differing


def test_runs_without_one_learning_rate_have_a_panel_too(runs):
    """A Recorder notes NaN where an optimizer has several; NaN equals nothing, so these runs were in no panel."""
    rates = np.where(runs.rule.values == "fa", np.nan, runs.lr.values)
    rates[runs.rule.values == "bp"] = 0.1
    figure = figures.learning_curves(runs.assign_coords(lr=("run", rates)))
    assert [axes.get_title(loc="left") for axes in panels(figure)] == ["lr 0.05", "lr 0.1", "lr (none)"]
    assert [labels(axes) for axes in panels(figure)] == [["sign_sync"], ["bp"], ["fa"]]
    by_rate = figures.learning_curves(
        runs.assign_coords(lr=("run", rates)).isel(run=runs.rule.values == "fa"), hue="lr"
    )
    assert legend(by_rate) == ["(none)"]
    assert "4 runs" in by_rate._supxlabel.get_text()


@pytest.mark.parametrize("draw", [figures.angles, figures.gains, figures.spectra, figures.aligning])
def test_a_single_step_that_was_selected_is_drawn(runs, draw):
    fa = runs.isel(run=runs.rule.values == "fa")
    more = {"cloud": "fc2"} if draw is figures.aligning else {}
    assert draw(fa.sel(step=40), **more).axes
    assert draw(fa.sel(step=40).isel(run=0), **more).axes


def test_a_layer_that_was_selected_is_drawn(runs):
    fa = runs.isel(run=runs.rule.values == "fa")
    own = fa.sel(layer="fc2").assign_coords(arm=("run", fa.rule.values))
    assert figures.aligning(own, cloud="fc2").axes
    assert figures.board(own, [figures.Shown("weight_angle", "fc2")]).axes


def test_specs_that_differ_in_the_seed_alone_are(runs):
    fa = runs.isel(run=runs.rule.values == "fa")
    specs = [f"hidden: [32]\nseed: {seed}\norder: {seed}\n" for seed in range(4)]
    seeds = fa.assign_coords(spec=("run", specs))
    assert len(panels(figures.learning_curves(seeds))) == 1
    assert len(panels(figures.learning_curves(seeds.drop_vars("seed")))) == 1


def test_a_seed_on_two_data_orders_is_two_conditions(runs):
    """A baseline and its placebo were one mean of twice as many seeds; one seed on several orders has no other replicates."""
    fa = runs.isel(run=runs.rule.values == "fa")
    specs = [f"seed: {i // 2}\norder: {i % 2}\n" for i in range(4)]
    crossed = fa.assign_coords(spec=("run", specs), seed=("run", [0, 0, 1, 1]))
    assert [ax.get_title(loc="left") for ax in panels(figures.learning_curves(crossed))] == [
        "order 0",
        "order 1",
    ]
    alone = fa.assign_coords(
        spec=("run", [f"seed: 0\norder: {i}\n" for i in range(4)]), seed=("run", [0] * 4)
    )
    assert len(panels(figures.learning_curves(alone))) == 1


def test_a_condition_that_the_hue_fixes_needs_no_panel(runs):
    arms = np.where(
        runs.rule.values == "bp", "baseline", "treatment " + runs.rule.values.astype(object)
    ).astype(str)
    assert len(panels(figures.learning_curves(runs.assign_coords(arm=("run", arms))))) == 1


def test_what_diverged_leaves_the_frame_and_squeezes_nothing():
    both = synthetic_runs(("bp", "sign_sync"), range(3), (0.3,), steps=100, layers=1)
    both["train_loss"] = both["train_loss"] * 1.0
    lost = both.rule.values == "sign_sync"
    both["train_loss"].values[lost] *= np.where(both.step.values > 20, 1e30, 1)
    (axes,) = panels(figures.learning_curves(both))
    top = axes.get_ylim()[1]
    assert top < 100
    crosses = marks(axes, "_diverged")
    assert len(crosses) == 3
    assert all(cross.get_ydata()[0] <= top for cross in crosses)


def test_a_promoted_scalar_coordinate_serves_all_runs(runs):
    shared = runs.drop_vars("task").assign_coords(task="xor")
    assert "xor" in figures.learning_curves(shared).get_suptitle()


def test_the_title_says_what_all_runs_share(runs):
    assert figures.learning_curves(runs).get_suptitle() == "mnist_small · lr 0.05 · 4 seeds"
    named = runs.assign_coords(arm=("run", runs.rule.values), control=("run", ["none"] * runs.sizes["run"]))
    assert figures.learning_curves(named).get_suptitle() == "mnist_small · lr 0.05 · 4 seeds"
    one = named.isel(run=0).assign_coords(arm="baseline")
    assert figures.learning_curves(one).get_suptitle() == "mnist_small · arm baseline · lr 0.05 · seed 0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outcome": "top5"}, "no 'top5': no probe of alignlab records it"),
        ({"outcome": "gradient_angle"}, "no outcome of a run: it has a value for each layer"),
        ({"hue": "layer"}, "not to its layers"),
        ({"col": "nothing"}, "cannot split by 'nothing'"),
    ],
)
def test_a_wrong_request_is_one_error(runs, arguments, message):
    with pytest.raises(ValueError, match=message):
        figures.learning_curves(runs, **arguments)


def test_a_missing_outcome_is_named_with_what_records_it(runs):
    with pytest.raises(ValueError, match=r"no .train_loss.: the evaluation of alignlab\.training records it"):
        figures.learning_curves(runs.drop_vars("train_loss"))
    with pytest.raises(ValueError, match="no 'loss': the probe Loss records it"):
        figures.learning_curves(runs.drop_vars("loss"), "loss")


def test_too_many_panels_are_refused_with_a_way_out():
    lrs = np.geomspace(0.001, 0.01, 41)
    many = synthetic_runs(("bp",), (0,), lrs, steps=1, layers=1)
    with pytest.raises(ValueError, match=r"need 41 panels, one for each lr; select fewer of them first"):
        figures.learning_curves(many)


def losses(*rows, rules="ab"):
    """Runs of these rules, one each, with a loss at some steps."""
    coords = {
        "step": np.arange(len(rows[0])) * 10,
        "rule": ("run", list(rules)),
        "seed": ("run", [0] * len(rows)),
    }
    return xr.Dataset({"train_loss": (("run", "step"), np.array(rows))}, coords)


def test_a_loss_that_reaches_0_keeps_the_log_axis_and_is_marked_at_its_edge():
    figure = figures.learning_curves(losses([2.0, 1e-3, 1e-6, 0.0, 0.0], [2.0, 1.0, 0.5, 0.2, 0.1]))
    (axes,) = panels(figure)
    assert axes.get_yscale() == "log"
    (zeros,) = (mark for mark in axes.lines if mark.get_label() == "_zero")
    assert zeros.get_xdata().tolist() == [30, 40]
    assert zeros.get_transform() == axes.get_xaxis_transform()
    assert set(zeros.get_ydata()) == {0.0}
    assert zeros.get_markeredgecolor() == line(axes, "a").get_color()
    assert np.isnan(line(axes, "a").get_ydata()[3:]).all()
    assert "loss of exactly 0" in figure.get_supxlabel()


def test_a_rule_that_is_0_throughout_is_in_the_legend():
    figure = figures.learning_curves(losses([0.0, 0.0, 0.0], [2.0, 1e-2, 1e-4]))
    assert legend(figure) == ["a", "b"]


def test_a_loss_of_0_among_losses_of_one_size_is_drawn_on_a_linear_axis():
    figure = figures.learning_curves(losses([2.0, 1.0, 0.0], [2.0, 1.0, 0.5]))
    (axes,) = panels(figure)
    assert axes.get_yscale() == "linear"
    assert line(axes, "a").get_ydata()[-1] == 0
    assert "exactly 0" not in figure.get_supxlabel()


def test_an_accuracy_of_0_is_marked_nowhere():
    figure = figures.learning_curves(
        losses([0.0, 0.001, 0.9], rules="a").rename(train_loss="train_accuracy"), "train_accuracy"
    )
    assert panels(figure)[0].get_yscale() == "linear"


def test_runs_that_never_had_an_outcome_are_told(runs):
    """They had neither line nor cross nor entry in the legend: a rule that fails at once looked as if nobody had tried it."""
    lost = runs.copy(deep=True)
    fa = runs.rule.values == "fa"
    lost["train_loss"].values[fa] = np.nan
    status = np.where(fa, "diverged", "finished")
    figure = figures.learning_curves(lost.assign_coords(status=("run", status)))
    note = " ".join(figure._supxlabel.get_text().split())
    assert "4 runs have no train loss (all of fa)." in note
    assert "×" not in note
    lost["train_loss"].values[np.flatnonzero(fa)[:3]] = 1.0
    figure = figures.learning_curves(lost.assign_coords(status=("run", status)))
    note = " ".join(figure._supxlabel.get_text().split())
    assert "1 run has no train loss." in note
    assert "×: a run diverged." in note
    assert "has no" not in figures.learning_curves(runs)._supxlabel.get_text()


def test_a_rule_without_an_angle_is_told(runs):
    lost = runs.copy(deep=True)
    lost["gradient_angle"].values[runs.rule.values == "fa"] = np.nan
    note = " ".join(figures.angles(lost, hue="rule", col="layer")._supxlabel.get_text().split())
    assert "4 runs have no gradient angle (all of fa)." in note


def test_which_rates_have_no_value_is_told_with_what_they_are(runs):
    rates = np.where(runs.rule.values == "fa", 0.0, runs.lr.values)
    lost = runs.assign_coords(lr=("run", rates)).copy(deep=True)
    lost["train_loss"].values[rates == 0] = np.nan
    figure = figures.learning_curves(lost, hue="lr", col="rule")
    assert "(all of lr 0)." in " ".join(figure._supxlabel.get_text().split())


@pytest.mark.parametrize("draw", [figures.learning_curves, figures.angles, figures.loss_against_lr])
def test_runs_that_are_there_twice_are_no_replicates(runs, draw):
    """Two nets of each seed, told apart by nothing, were "the mean of 8 runs" of 4 seeds, in a band too narrow."""
    fa = runs.isel(run=runs.rule.values == "fa")
    twice = xr.concat([fa, fa], "run")
    with pytest.raises(
        ValueError, match=r"2 of the 8 runs of f\w+.* have seed 0: .* select one of each seed, or tell"
    ):
        draw(twice)
    apart = twice.assign_coords(width=("run", np.repeat([32, 64], 4)))
    assert len(panels(draw(apart))) == 2
    draw(twice.assign_coords(seed=("run", [0] * 8)))  # a loop that tells of no other seed


def test_levels_of_numbers_stand_by_size_whatever_their_type(runs):
    """A spec's fields are text: batches of 128 stood before those of 16, and these before those of 8."""
    sizes = ["16", "128", "8", "[8, 4]", "[16]", "-1", "-3"]
    several = xr.concat([runs.isel(run=[0]).assign_coords(size=("run", [size])) for size in sizes], "run")
    figure = figures.learning_curves(several, hue="size")
    assert legend(figure) == ["-3", "-1", "8", "16", "128", "[8, 4]", "[16]"]
    mixed = several.assign_coords(size=("run", np.array([1, "a", None, "2", 0.5, "b", 10], dtype=object)))
    assert legend(figures.learning_curves(mixed, hue="size")) == ["0.5", "1", "2", "10", "None", "a", "b"]


def test_the_steps_of_a_dataset_need_not_be_in_order(runs):
    """What stood last was the end of a run: of a dataset that was turned round, its beginning."""
    turned = runs.isel(step=slice(None, None, -1))
    for draw in (figures.learning_curves, figures.angles):
        for one, other in zip(panels(draw(runs)), panels(draw(turned)), strict=True):
            for label in labels(one):
                assert same(line(one, label).get_xydata(), line(other, label).get_xydata())
    ends = [final_values(as_runs(data), "validation_loss") for data in (runs, turned)]
    assert same(*ends)
    assert same(*(scores_of(data, "validation_loss") for data in (runs, turned)))
    assert run_page(runs, pictures={}) == run_page(turned, pictures={})


def test_an_index_of_several_levels_over_the_runs_is_read_as_their_coordinates(runs):
    (axes,) = panels(figures.learning_curves(runs))
    (other,) = panels(figures.learning_curves(runs.set_index(run=["rule", "seed"])))
    assert labels(axes) == labels(other)
    assert same(line(axes, "fa").get_xydata(), line(other, "fa").get_xydata())


@pytest.mark.parametrize("draw", [figures.angles, figures.gains, figures.loss_against_lr])
def test_what_all_runs_share_may_lack_the_dim_of_runs(runs, draw):
    """As backprop's angles of 0 do in xr.concat(..., data_vars="different"): the error was xarray's."""
    alike = runs.isel(run=[0] * 3).assign_coords(seed=("run", range(3)), run_id=("run", list("abc")))
    shared = alike.map(lambda own: own.isel(run=0, drop=True))
    for one, other in zip(panels(draw(alike)), panels(draw(shared.assign_coords(alike.coords))), strict=True):
        for label in labels(one):
            assert same(line(one, label).get_xydata(), line(other, label).get_xydata())


def test_settings_that_no_run_combines_are_not_looked_for(monkeypatch):
    looked, select = [], groups.select
    monkeypatch.setattr(groups, "select", lambda *asked: looked.append(asked) or select(*asked))
    names = ("task", "rule", "control", "lr")
    changed = np.vstack([np.zeros(4), np.eye(4), 2 * np.eye(4)])  # each run in one setting alone
    settings = {
        name: ("run", column.astype(str) if name != "lr" else column)
        for name, column in zip(names, changed.T, strict=True)
    }
    data = xr.Dataset(
        {"loss": (("run", "step"), np.ones((9, 2)))}, {"step": [0, 1], "seed": ("run", [0] * 9)}
    )
    assert len(groups.panels(data.assign_coords(settings), None, None, layered=False)) == 9
    assert len(looked) <= 9 * 4
