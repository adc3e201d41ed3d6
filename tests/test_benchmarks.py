"""What the pages say of speed is what the benchmarks' JSON files say, and the model of the scaling page finds what is there."""

import copy
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

FOLDER = Path(__file__).parent / "benchmarks"
COMMAND = "python tests/benchmarks/table.py"


@pytest.fixture(scope="module")
def made():
    """The modules behind the pages, which are scripts beside each other."""
    sys.path.insert(0, str(FOLDER))
    names = ("measuring", "scaling_figure", "scaling_model", "scaling_page", "table")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def results(made):
    return made.table.read()


def test_pages_say_what_the_results_say(made, results):
    stale = [
        path.name
        for path, text in made.table.pages(results, made.table.read_gpu()).items()
        if path.read_text() != text
    ]
    assert stale == [], f"run {COMMAND}"


def test_another_number_makes_another_page(made, results):
    changed = copy.deepcopy(results)
    changed["population"]["rows"][0]["ratio"] = 12345.0
    changed["scaling"]["prices"]["caller"] = 1.0
    assert [
        made.table.pages(changed, {})[path] != path.read_text()
        for path in (made.table.README, made.table.PAGE)
    ] == [True] * 2


def test_every_row_says_what_was_measured_against_what(made, results):
    for name in set(results) - {"scaling"}:
        assert results[name]["rows"], name
        for row in results[name]["rows"]:
            assert {"what", "against"} <= set(row), (name, row)
            assert len({"ratio", "seconds", "MiB", "count", "skipped"} & set(row)) == 1, (name, row)
            assert "skipped" in row or {"reach", "better"} <= set(row), (name, row)


def test_a_benchmark_that_was_not_run_is_said_to_be_missing(made, results):
    less = {name: found for name, found in results.items() if name != "population"}
    assert "| bench_population |  | skipped: not measured yet |  |" in made.table.table(less)


@pytest.mark.parametrize(
    ("better", "ratio", "said"),
    [("less", 1.04, "≤ 1.05"), ("less", 1.06, "≤ 1.05, missed"), ("more", 1.06, "≥ 1.05"), ("more", 1.04, "≥ 1.05, missed")],
)  # fmt: skip
def test_what_misses_its_reach_is_said_to(made, better, ratio, said):
    assert made.measuring.reach(made.measuring.row("x", "y", [ratio] * 3, 1.05, better)) == said


def test_a_row_is_the_median_with_its_quartiles(made):
    row = made.measuring.row("x", "y", [5.0, 1.0, 3.0, 2.0, 4.0, 6.0, 7.0])
    assert (row["ratio"], row["quartiles"]) == (4.0, [2.0, 6.0])


def test_what_was_not_measured_says_why_in_the_table(made, results):
    changed = copy.deepcopy(results)
    changed["others"]["rows"] = [
        made.measuring.skipped("Cockpit", "alignlab", "ModuleNotFoundError: No module\nnamed 'x'")
    ]
    assert (
        "| Cockpit | alignlab | skipped: ModuleNotFoundError: No module named 'x' |  |"
        in made.table.table(changed)
    )


def test_results_of_two_machines_do_not_share_a_table(made, results):
    changed = copy.deepcopy(results)
    changed["probes"]["machine"]["cores"] += 1
    with pytest.raises(SystemExit, match="different machines"):
        made.table.table(changed)


def test_a_busy_machine_is_said_to_have_been_one(made, results):
    changed = copy.deepcopy(results)
    for found in changed.values():
        found |= {"load": 1.0, "clock": "wall"}
    assert "other work" not in made.table.machine_line(changed)
    assert "processor time" not in made.table.machine_line(changed)
    changed["sweep"] |= {"load": 6.5, "clock": "cpu"}
    line = made.table.machine_line(changed)
    assert "beside other work: sweep (load 6.5)" in line
    assert "`--clock cpu`: sweep" in line


@pytest.fixture
def on_gpu(made, tmp_path):
    """Results as a machine with a GPU would write them, of two benchmarks."""
    rows = {
        "population": [made.measuring.row("1,024 x (784-128-10)", "one at a time", [55.0, 60.0, 61.0], 50, "more")],
        "synchronisation": [made.measuring.amount("waits for the GPU a step", "count", 0.0, 0, "bare step")],
    }  # fmt: skip
    machine = {"gpu": "NVIDIA X", "cpu": "Other", "cores": 16, "torch": "2.13.0+cu130", "python": "3.12.1"}
    for name, found in rows.items():
        about = {"clock": "events", "load": 1.0, "machine": machine, "rows": found}
        (tmp_path / f"{name}.json").write_text(json.dumps(about))
    return made.table.read_gpu(tmp_path)


def test_without_results_of_a_gpu_there_is_no_second_table(made, tmp_path):
    results, none = made.table.read(), made.table.read_gpu(tmp_path / "absent")
    assert none == {}
    readme = made.table.pages(results, none)[made.table.README]
    assert "<!-- benchmarks on a GPU -->\n\n<!-- end -->" in readme


def test_results_of_a_gpu_have_a_table_of_their_own_beside_that_of_another_machine(made, on_gpu):
    results = made.table.read()
    readme = made.table.pages(results, on_gpu)[made.table.README]
    first, second = readme.split("<!-- benchmarks on a GPU -->")
    assert made.table.machine_line(results) in first
    second = second.split("<!-- end -->")[0]
    assert "| 1,024 x (784-128-10) | one at a time | 60 (55 to 61) | ≥ 50 |" in second
    assert "| waits for the GPU a step | bare step | 0 | ≤ 0 |" in second
    assert "| bench_probes |  | skipped: not measured yet |  |" in second
    assert "Measured on NVIDIA X beside Other, 16 cores" in second
    assert "timed by CUDA events" in second
    assert "processor time" not in second
    assert (
        made.table.replaced(readme, {"benchmarks on a GPU": ""})
        == made.table.pages(results, {})[made.table.README]
    )


def test_a_gpu_timed_by_the_wall_is_said_to_be(made, on_gpu):
    changed = copy.deepcopy(on_gpu)
    changed["population"]["clock"] = "wall"
    assert "timed by CUDA events (population: by the wall's clock)" in made.table.machine_line(changed)


def test_a_processors_results_are_no_gpus(made, tmp_path):
    machine = made.measuring.machine()
    assert "gpu" not in machine
    (tmp_path / "probes.json").write_text(json.dumps({"machine": machine, "rows": []}))
    with pytest.raises(SystemExit, match=r"probes\.json was measured on no GPU"):
        made.table.read_gpu(tmp_path)


def test_a_page_without_its_markers_is_an_error(made):
    with pytest.raises(SystemExit, match="found it 0 times"):
        made.table.replaced("no marker here", {"benchmarks": "x"})


def test_the_model_finds_the_coefficients_that_made_the_times(made):
    model, rng = made.scaling_model, np.random.default_rng(0)
    true = np.array([3e-4, 1e-4, 1e-6, 2e-11, 5e-10, 3e-10, 9e-4, 2e-4, 4e-6, 6e-11, 2e-9, 8e-10])
    points = []
    for _ in range(80):
        runs, width, depth, batch = (
            int(rng.choice(v)) for v in ((1, 8, 64, 512), (8, 32, 128, 512), (1, 2, 4), (1, 8, 64, 512))
        )
        at = model.point(
            runs, [int(rng.choice((16, 784))), *[width] * depth, 10], batch, float(rng.choice((0, 0.1, 1)))
        )
        points.append(at | {"seconds": float(model.features(at) @ true)})
    assert np.abs(model.errors(model.fit(points), points)).max() < 1e-4
    np.testing.assert_allclose(model.fit(points), true, rtol=1e-3)


def test_more_nodes_share_the_computing_but_not_the_callers_work(made, results):
    one, ten = (made.scaling_model.audit_time(results["scaling"], 100_000, nodes, 32) for nodes in (1, 10))
    assert 9 < one["computed"] / ten["computed"] < 11
    assert one["alone"] == ten["alone"]
    few = made.scaling_model.audit_time(results["scaling"], 40, 1, 32)
    assert few["size"] * few["jobs"] >= 40
    assert few["size"] <= 2


def test_points_held_out_are_not_fitted(made, results):
    changed = copy.deepcopy(results["scaling"])
    for point in changed["points"]:
        point["seconds"] *= 10 if point["held_out"] else 1
    fitted = made.scaling_model.fitted
    np.testing.assert_array_equal(fitted(changed), fitted(results["scaling"]))
    assert sum(point["held_out"] for point in changed["points"]) >= 10


def test_the_figure_has_a_panel_for_each_number_and_one_for_the_points_held_out(made, results):
    axes = made.scaling_figure.draw(results["scaling"]).axes
    assert [ax.get_xlabel() for ax in axes] == [*made.scaling_figure.LABELS.values(), "measured, µs"]
