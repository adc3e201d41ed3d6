"""Outcome against learning rate: means, optima, edges of the grid, diverged runs."""

import numpy as np
import pytest
import xarray as xr
from figure_reading import labels, legend, line, marks, panels

from alignlab import figures
from alignlab.figures.lines import mean_and_interval
from alignlab.figures.sweeps import final_values, sweeps
from alignlab.measures.quantities import QUANTITIES


def test_one_curve_a_rule_over_a_log_axis_of_the_grids_own_rates(sweep):
    figure = figures.loss_against_lr(sweep)
    (axes,) = panels(figure)
    assert labels(axes) == legend(figure)[:2] == ["bp", "sign_sync"]
    assert axes.get_xscale() == "log"
    assert list(axes.get_xticks()) == [0.001, 0.01, 0.1, 0.3, 1.0]
    assert axes.get_xlabel() == f"learning rate {QUANTITIES['learning_rate'].symbol}"
    assert QUANTITIES["validation_loss"].symbol in axes.get_ylabel()


def test_points_are_means_of_the_last_values_with_t_intervals(sweep):
    (axes,) = panels(figures.loss_against_lr(sweep))
    last = sweep["validation_loss"].dropna("step", how="all").isel(step=-1).values.astype(np.float64)
    bars = next(c for c in axes.containers if c.lines[0].get_label() == "bp")
    for i, lr in enumerate((0.001, 0.01, 0.1, 0.3, 1.0)):
        here = last[(sweep.rule.values == "bp") & (sweep.lr.values == lr)]
        mean, low, high = mean_and_interval(here[:, None], log=True)
        assert line(axes, "bp").get_ydata()[i] == pytest.approx(float(mean[0]))
        segment = bars.lines[2][0].get_segments()[i][:, 1]
        assert segment == pytest.approx([float(low[0]), float(high[0])])


def test_the_last_finite_value_is_the_final_one(sweep):
    early = sweep.isel(run=[0]).copy(deep=True)
    recorded = early["validation_loss"].values[0]
    at = np.flatnonzero(np.isfinite(recorded))
    recorded[at[-1]] = np.nan
    assert final_values(early, "validation_loss") == pytest.approx([recorded[at[-2]]])


def test_each_optimum_has_a_star_at_the_lowest_mean(sweep):
    (axes,) = panels(figures.loss_against_lr(sweep))
    stars = {(float(s.get_xdata()[0]), float(s.get_ydata()[0])) for s in marks(axes, "_optimum")}
    expected = set()
    for rule in ("bp", "sign_sync"):
        drawn = line(axes, rule)
        best = int(np.nanargmin(drawn.get_ydata()))
        expected.add((float(drawn.get_xdata()[best]), float(drawn.get_ydata()[best])))
    assert stars == expected
    assert {text.get_text() for text in axes.texts} >= {f"{lr:g}" for lr, _ in expected}


def test_the_best_accuracy_is_the_highest(sweep):
    (axes,) = panels(figures.loss_against_lr(sweep, "validation_accuracy"))
    for rule in ("bp", "sign_sync"):
        best = np.nanmax(line(axes, rule).get_ydata())
        assert best in [star.get_ydata()[0] for star in marks(axes, "_optimum")]


def test_an_optimum_on_the_grids_edge_is_flagged(sweep):
    short = sweep.isel(run=sweep.lr.values <= 0.01)
    figure = figures.loss_against_lr(short)
    (axes,) = panels(figure)
    assert [text.get_text() for text in axes.texts] == ["0.01\n(edge)"]
    assert "optimum on the grid's edge:\nextend the grid" in legend(figure)
    assert "optimum" not in legend(figure)
    assert "optimum on the grid's edge:\nextend the grid" not in legend(figures.loss_against_lr(sweep))


def test_a_single_rate_beside_a_grid_is_no_optimum(sweep):
    """An audit's placebo and grafts run at one rate; a figure of one rate alone says that it is no grid."""
    single = (sweep.rule.values == "bp") | (sweep.lr.values == np.unique(sweep.lr.values)[2])
    figure = figures.loss_against_lr(sweep.isel(run=single))
    (axes,) = panels(figure)
    assert len(marks(axes, "_optimum")) == 1
    assert "optimum on the grid's edge:\nextend the grid" not in legend(figure)
    alone = figures.loss_against_lr(sweep.isel(run=sweep.lr.values == np.unique(sweep.lr.values)[2]))
    assert "optimum on the grid's edge:\nextend the grid" in legend(alone)


def test_both_ends_of_the_grid_are_edges(sweep):
    bp = sweep.isel(run=sweep.rule.values == "bp")
    for lrs, edge in (((0.001, 0.01), True), ((0.3, 1.0), True), ((0.001, 0.3, 1.0), False), ((0.1,), True)):
        (found,) = sweeps(bp.isel(run=np.isin(bp.lr.values, lrs)), "validation_loss", "rule", log=True)
        assert found.on_edge is edge


def test_diverged_runs_are_counted_above_the_frame_and_in_no_mean(sweep):
    figure = figures.loss_against_lr(sweep)
    (axes,) = panels(figure)
    triangles = marks(axes, "_diverged")
    assert [float(t.get_xdata()[0]) for t in triangles] == [0.3, 1.0]
    assert [text.get_text() for text in axes.texts].count("3/3") == 2
    assert np.isnan(line(axes, "sign_sync").get_ydata()[3:]).all()
    assert "diverged / all runs" in legend(figure)


def test_a_rate_at_which_a_run_diverged_is_no_optimum(sweep):
    status = sweep.status.values.astype("U8")
    bp = sweep.isel(run=sweep.rule.values == "bp")
    best = sweeps(bp, "validation_loss", "rule", log=True)[0]
    lost = (sweep.rule.values == "bp") & (sweep.lr.values == best.lrs[best.best]) & (sweep.seed.values == 0)
    status[lost] = "diverged"
    changed = sweep.assign_coords(status=("run", status)).isel(run=sweep.rule.values == "bp")
    (found,) = sweeps(changed, "validation_loss", "rule", log=True)
    assert found.best != best.best
    assert found.diverged[best.best] == 1
    assert found.finished[best.best] == 2
    assert np.isfinite(found.mean[best.best])


def test_unfinished_runs_are_left_out_and_counted(sweep):
    status = sweep.status.values.astype("U8")
    status[[0, 1]] = "crashed", "running"
    figure = figures.loss_against_lr(sweep.assign_coords(status=("run", status)))
    note = " ".join(figure._supxlabel.get_text().split())
    assert "2 runs that did not finish, or have no final value or no rate above 0, left out." in note


def test_tasks_get_panels_but_rates_do_not(sweep):
    tasks = np.where(sweep.seed.values == 0, "xor", "mnist_small")
    figure = figures.loss_against_lr(sweep.assign_coords(task=("run", tasks)))
    assert [axes.get_title(loc="left") for axes in panels(figure)] == ["mnist_small", "xor"]


def test_no_panel_cuts_off_the_rates_of_another(sweep):
    """They share the axis, and an audit's grafts run at one rate alone."""
    kept = (sweep.seed.values > 0) | (sweep.lr.values == np.unique(sweep.lr.values)[2])
    tasks = np.where(sweep.seed.values == 0, "xor", "mnist_small")
    split = sweep.assign_coords(task=("run", tasks)).isel(run=kept)
    for axes in panels(figures.loss_against_lr(split)):
        low, high = axes.get_xlim()
        assert low < sweep.lr.values.min()
        assert high > sweep.lr.values.max()


def test_nothing_to_compare_is_an_error(sweep):
    lost = sweep.assign_coords(status=("run", ["diverged"] * sweep.sizes["run"]))
    with pytest.raises(ValueError, match="no run finished with a final 'validation_loss'"):
        figures.loss_against_lr(lost)
    with pytest.raises(ValueError, match="cannot split by 'lr'"):
        figures.loss_against_lr(sweep.drop_vars("lr"))
    with pytest.raises(ValueError, match="no 'validation_loss'"):
        figures.loss_against_lr(sweep.drop_vars("validation_loss"))


def test_an_explosion_leaves_the_frame_and_is_told(sweep):
    """Or a loss of 1e13 at a far too high rate would press all optima into one line."""
    top = (sweep.rule.values == "sign_sync") & (sweep.lr.values == sweep.lr.values.max())
    wild = sweep.assign_coords(status=("run", np.full(sweep.sizes["run"], "finished"))).copy(deep=True)
    last = np.isfinite(wild["validation_loss"].values[0]).nonzero()[0][-1]
    wild["validation_loss"].values[top, last] = 3e13
    figure = figures.loss_against_lr(wild)
    (axes,) = panels(figure)
    low, high = axes.get_ylim()
    assert high <= 10 * np.nanmax(wild["validation_loss"].values[:, 0])
    assert all(low < star.get_ydata()[0] < high for star in marks(axes, "_optimum"))
    assert "Above the frame: up to 3e+13" in figure._supxlabel.get_text().replace("\n", " ")
    assert "Above the frame" not in figures.loss_against_lr(sweep)._supxlabel.get_text()


def test_an_explosion_leaves_the_frame_also_where_another_run_ended_at_0(sweep):
    runs = sweep.assign_coords(status=("run", np.full(sweep.sizes["run"], "finished"))).copy(deep=True)
    loss, rule, lr = runs["validation_loss"].values, runs["rule"].values, runs["lr"].values
    at = np.flatnonzero(np.isfinite(loss[0]))[-1]
    loss[(rule == "bp") & (lr == 0.1), at] = 0.0
    loss[(rule == "sign_sync") & (lr == 1.0), at] = 3e13
    figure = figures.loss_against_lr(runs)
    (axes,) = panels(figure)
    assert axes.get_yscale() == "linear"
    untrained = np.nanmax(loss[:, np.flatnonzero(np.isfinite(loss[0]))[0]])
    assert axes.get_ylim()[1] <= 10 * untrained
    assert "Above the frame: up to 3e+13" in figure._supxlabel.get_text().replace("\n", " ")


def test_each_study_has_its_star_and_their_number_where_they_disagree(sweep):
    several = {"bp": [0.1, 0.3, 0.1], "sign_sync": [0.01, 0.01, 0.01]}
    figure = figures.loss_against_lr(sweep, chosen=several)
    (axes,) = panels(figure)
    stars = sorted(float(s.get_xdata()[0]) for s in axes.lines if s.get_label() == "_optimum")
    assert stars == [0.01, 0.1, 0.3]
    counted = {text.xy[0]: text.get_text() for text in axes.texts if text.get_text() in ("1", "2", "3")}
    assert counted == {0.1: "2", 0.3: "1"}
    assert "optimum, with the number\nof studies (of 3) that chose it" in legend(figure)
    alike = figures.loss_against_lr(sweep, chosen={"bp": [0.1, 0.1], "sign_sync": 0.01})
    assert "optimum" in legend(alike)


def test_the_star_of_a_study_whose_choice_others_found_bad_stays_in_the_frame(sweep):
    wild = sweep.assign_coords(status=("run", np.full(sweep.sizes["run"], "finished"))).copy(deep=True)
    at = (sweep.rule.values == "sign_sync") & (sweep.lr.values == 0.3)
    last = np.isfinite(wild["validation_loss"].values[0]).nonzero()[0][-1]
    wild["validation_loss"].values[at, last] = 3e5
    figure = figures.loss_against_lr(wild, chosen={"bp": [0.1, 0.1], "sign_sync": [0.01, 0.3]})
    (axes,) = panels(figure)
    low, high = axes.get_ylim()
    assert high < 3e4
    assert all(low < star.get_ydata()[0] <= high for star in marks(axes, "_optimum"))
    figure.canvas.draw()
    assert "0.3" in {text.get_text() for text in axes.texts}


def test_one_study_on_the_edge_of_the_grid_is_flagged_beside_others_inside(sweep):
    figure = figures.loss_against_lr(sweep, chosen={"bp": [0.1, 1.0], "sign_sync": [0.01]})
    texts = {text.get_text() for text in panels(figure)[0].texts}
    assert "1\n(edge)" in texts
    assert "0.1" in texts


@pytest.mark.parametrize(("factor", "apart"), [(1.0, True), (1.01, True), (3.0, False)])
def test_stars_at_one_rate_stand_side_by_side_where_they_would_cover_each_other(factor, apart):
    rows = [
        (f"{k}", lr, factor**k * (1 + abs(np.log10(lr / 0.1)))) for k in range(4) for lr in (0.01, 0.1, 1.0)
    ]
    names, lrs, values = (list(column) for column in zip(*rows, strict=True))
    coords = {"step": [0], "arm": ("run", names), "lr": ("run", lrs), "seed": ("run", [0] * 12)}
    data = xr.Dataset({"validation_loss": (("run", "step"), np.array(values)[:, None])}, coords)
    figure = figures.loss_against_lr(data, hue="arm")
    figure.canvas.draw()
    stars = marks(panels(figure)[0], "_optimum")
    assert {star.get_xdata()[0] for star in stars} == {0.1}
    assert [star.get_ydata()[0] for star in stars] == pytest.approx([factor**k for k in range(4)])
    seen = np.array([star.get_transform().transform(star.get_xydata())[0] for star in stars])
    gaps = np.linalg.norm(np.diff(seen, axis=0), axis=1) * 72 / figure.dpi
    assert (gaps > 8.5).all()
    assert (np.ptp(seen[:, 0]) > 1) == apart


def with_rates(sweep, rate):
    """The sweep with another rate in the place of its lowest."""
    rates = np.where(sweep.lr.values == 0.001, rate, sweep.lr.values)
    return sweep.assign_coords(lr=("run", rates))


def test_runs_at_a_rate_of_0_are_left_out_and_told(sweep):
    """Their place on a log axis is nowhere: a tick there pressed all other rates into the frame's edge."""
    figure = figures.loss_against_lr(with_rates(sweep, 0.0))
    (axes,) = panels(figure)
    assert list(axes.get_xticks()) == [0.01, 0.1, 0.3, 1.0]
    assert axes.get_xlim()[0] > 1e-3
    assert "6 runs that did not finish, or have no final value or no rate above 0, left out." in " ".join(
        figure._supxlabel.get_text().split()
    )
    with pytest.raises(ValueError, match="no run finished with a final 'validation_loss' at a rate above 0"):
        figures.loss_against_lr(sweep.assign_coords(lr=0.0 * sweep.lr))


def test_runs_without_a_rate_hide_no_edge(sweep):
    """NaN was the grid's last rate, so that an optimum at the highest one was taken to lie inside."""
    bp = sweep.isel(run=np.flatnonzero((sweep.rule.values == "bp") & (sweep.lr.values < 0.2)))
    with_nan = bp.assign_coords(lr=("run", np.where(bp.lr.values == 0.001, np.nan, bp.lr.values)))
    (axes,) = panels(figures.loss_against_lr(with_nan))
    assert "0.1\n(edge)" in {text.get_text() for text in axes.texts}
