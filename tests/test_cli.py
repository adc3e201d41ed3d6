"""The command line: what it prints, what it leaves, and one clear line with exit code 2 on bad input."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from own_task import written

import alignlab
from alignlab import cli, output
from alignlab.complaints import ended
from alignlab.options import where_to
from alignlab.rules import RULES
from alignlab.store import Segments, StoreError
from alignlab.testing.synthetic import synthetic_run
from alignlab.training import TASKS, cells, importing

SPEC = {
    "task": "xor",
    "hidden": [6],
    "rule": "fa",
    "lr": 0.1,
    "batch_size": 4,
    "steps": 20,
    "record_every": 5,
}
CLAIM = {
    "statement": "feedback alignment beats backprop on XOR",
    "treatment": {"rule": "fa"},
    "baseline": {"rule": "bp"},
    "task": "xor",
    "smallest_effect": 0.05,
    "seeds": 4,
    "tuning_seeds": 1,
    "learning_rates": [0.01, 0.1, 1.0],
    "setup": {"hidden": [8], "lr": 0.1, "batch_size": 4, "steps": 30, "record_every": 10},
}


def run(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["alignlab", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


@pytest.fixture
def claim(tmp_path):
    path = tmp_path / "claim.yaml"
    path.write_text(yaml.safe_dump(CLAIM))
    return path


def test_run_leaves_store_figures_and_spec(spec, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(["run", spec, "--out", out, "--seed", 3], monkeypatch) == 0
    assert "train_loss" in capsys.readouterr().out
    assert yaml.safe_load((out / "spec.yaml").read_text())["seed"] == 3
    assert {"angles.png", "angles.svg", "gains.png"} <= {path.name for path in (out / "figures").iterdir()}
    assert "fa on xor" in (out / "report.html").read_text()
    assert run(["run", spec, "--out", out, "--seed", 3], monkeypatch) == 0
    assert "nothing to compute" in capsys.readouterr().out


def test_a_run_that_never_had_an_outcome_is_told_all_the_same(tmp_path, monkeypatch, capsys):
    """Not finite even before training: it ended in an IndexError, and the run had neither figures nor page."""
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC | {"weight_scale": 1e30}))
    assert run(["run", path, "--out", tmp_path / "out"], monkeypatch) == 0
    told = capsys.readouterr().out
    assert re.search(r"^train_loss +–$", told, re.MULTILINE)
    assert "status           diverged" in told
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize("columns", ["48", "80", "160"])
def test_progress_tells_how_many_are_done_in_terminals_of_any_width(columns, monkeypatch, capsys):
    """The name took 44 columns of any: at 48 there was room for neither the count nor the time left."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    with output.progress()("runs", 20) as notify:
        notify(20)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "20/20" in shown
    assert re.search(r"\d:\d\d:\d\d", shown)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_takes_the_brackets_of_an_arms_name_as_they_are(terminal, monkeypatch, capsys):
    """They were read as markup: [fast] was not shown, and [/2] ended the audit in a traceback."""
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with output.progress()("fa [fast] [/2], learning rates", 2) as notify:
        notify(2)
    assert "fa [fast] [/2], learning rates" in capsys.readouterr().err


def test_audit_leaves_result_and_a_second_call_computes_nothing(claim, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(["audit", claim, "--out", out, "--workers", 1], monkeypatch) == 0
    first = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert f"verdict: {result['verdict']['short']}" in first
    assert "runs computed" in first
    names = {path.name for path in (out / "figures").iterdir()}
    assert {
        f"{name}.{kind}" for name in ("forest", "learning_curves", "gains") for kind in ("png", "svg")
    } <= names
    assert result["verdict"]["text"] in html.unescape((out / "report.html").read_text())
    assert run(["audit", claim, "--out", out, "--workers", 1], monkeypatch) == 0
    second = capsys.readouterr().out
    assert "nothing to compute" in second
    assert json.loads((out / "result.json").read_text())["verdict"] == result["verdict"]


@pytest.mark.parametrize(
    ("controls", "told"),
    [
        ("magnitude,tunning", "there is no 'tunning', did you mean 'tuning'?"),
        ("FeedbackScale", "did you mean 'feedback_scale'?"),
        ("placebo,magnitude,placebo", "'placebo' stands there 2 times"),
        (" , ", "--controls is empty: name some"),
    ],
)
def test_controls_that_are_none_are_told_one_by_one(claim, controls, told, tmp_path, monkeypatch, capsys):
    assert run(["audit", claim, "--out", tmp_path / "out", "--controls", controls], monkeypatch) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_stands_in_two_groups_is_counted_once(claim, tmp_path, capsys):
    class Again(alignlab.controls.Control):
        name = "again"
        explains = False

        def apply(self, bench, treatment, baseline):
            bench.outcomes("baseline, again", bench.claim.baseline)
            return alignlab.controls.Finding()

    result = alignlab.audit(alignlab.Claim.from_yaml(claim), [Again()], store=tmp_path / "store")
    output.report(result, tmp_path)
    assert "8 of 8 runs computed. Everything" in capsys.readouterr().out


def test_audit_seed_shifts_the_seeds(claim, tmp_path, monkeypatch, capsys):
    assert run(["audit", claim, "--out", tmp_path / "out", "--workers", 1, "--seed", 50], monkeypatch) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["claim"]["seeds"] == [50, 51, 52, 53]


def test_an_audit_takes_other_controls_and_more_seeds_and_keeps_the_runs_that_it_has(
    claim, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    assert run(["audit", claim, "--out", out, "--workers", 1], monkeypatch) == 0
    before = json.loads((out / "result.json").read_text())
    more = ["--seeds", 5, "--controls", "placebo, magnitude"]
    assert run(["audit", claim, "--out", out, "--workers", 1, *more], monkeypatch) == 0
    after = json.loads((out / "result.json").read_text())
    assert after["claim"]["seeds"] == [0, 1, 2, 3, 4]
    assert after["claim"]["controls"] == ["placebo", "magnitude"]
    assert set(before["runs"]["treatment"]) < set(after["runs"]["treatment"])
    assert "5 of 25 runs computed" in capsys.readouterr().out


def test_an_audit_takes_more_studies_with_the_seeds_that_they_share_out(tmp_path, monkeypatch, capsys):
    out, path = tmp_path / "out", tmp_path / "claim.yaml"
    path.write_text(yaml.safe_dump({**CLAIM, "controls": ["tuning"], "tuning_studies": 2}))
    assert run(["audit", path, "--out", out, "--workers", 1, "--seeds", 5], monkeypatch) == 2
    assert "take 4 or 6 seeds" in capsys.readouterr().err
    found = []
    for more in ([], ["--seeds", 6, "--studies", 3]):
        assert run(["audit", path, "--out", out, "--workers", 1, *more], monkeypatch) == 0
        found.append(json.loads((out / "result.json").read_text()))
    assert [one["evidence"]["controls"][0]["necessity"]["n"] for one in found] == [2, 3]
    first, both = ({name for names in one["runs"].values() for name in names} for one in found)
    assert first < both  # whole studies more, of the same size, change no other's


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["study"], ("Missing argument 'name'; see ", "alignlab study --help\n")),
        (["figures", "here", "--fast"], ("No such option: --fast; see ", "alignlab figures --help\n")),
        (["fly"], ("No such command 'fly'; see ", "alignlab --help\n")),
    ],
)
def test_a_wrong_command_line_says_where_its_arguments_stand(words, told, monkeypatch, capsys):
    assert run(words, monkeypatch) == 2
    what, where = told
    error = capsys.readouterr().err  # between them stands how the program was called
    assert error.startswith(f"alignlab: error: {what}")
    assert error.endswith(where)


def test_figures_draws_a_store(spec, tmp_path, monkeypatch, capsys):
    run(["run", spec, "--out", tmp_path / "out"], monkeypatch)
    assert run(["figures", tmp_path / "out" / "store", "--out", tmp_path / "drawn"], monkeypatch) == 0
    assert (tmp_path / "drawn" / "angles.png").stat().st_size > 0


def test_figures_of_a_given_width_have_it(spec, tmp_path, monkeypatch, capsys):
    run(["run", spec, "--out", tmp_path / "out"], monkeypatch)
    drawing = ["figures", tmp_path / "out" / "store", "--out", tmp_path / "drawn", "--width"]
    assert run([*drawing, 180], monkeypatch) == 0
    for name in ("angles", "gains", "learning_curves_train_loss"):
        assert "<svg" in (svg := (tmp_path / "drawn" / f"{name}.svg").read_text())
        assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) == pytest.approx(180 / 25.4 * 72)
    assert run([*drawing, 5], monkeypatch) == 2
    assert "--width" in capsys.readouterr().err


def test_figures_of_two_runs_do_not_replace_each_other(spec, tmp_path, monkeypatch):
    """Every run's store is called store, and so was the folder of its figures."""
    monkeypatch.chdir(tmp_path)
    run(["run", spec, "--out", "one"], monkeypatch)
    assert run(["figures", "one/store"], monkeypatch) == 0
    assert (tmp_path / "figures" / "one" / "angles.png").exists()


@pytest.fixture
def draws(tmp_path, monkeypatch, capsys):
    """Draw a store of these runs: the exit code, what was printed, and what was drawn."""

    def drawn(*runs):
        segments = Segments(tmp_path / "store").prepare()
        for i, one in enumerate(runs):
            segments.append(one.assign_coords(run_id=f"run{i}"))
        code = run(["figures", tmp_path / "store", "--out", tmp_path / "drawn"], monkeypatch)
        return code, capsys.readouterr().out, {path.stem for path in (tmp_path / "drawn").glob("*.png")}

    return drawn


def test_a_figure_that_these_runs_do_not_allow_is_said_and_costs_no_other(draws):
    code, out, drawn = draws(synthetic_run(layers=41, steps=10))
    assert code == 0
    assert drawn >= {"angles", "gains", "learning_curves_train_loss"}
    assert "no spectra: these runs need 41 panels" in out


def test_spectra_are_those_of_the_first_run_that_has_one(draws):
    perturbed = synthetic_run("node_perturbation", steps=10)
    bare = perturbed.drop_vars([name for name in perturbed.data_vars if name.startswith("spectrum")])
    code, _, drawn = draws(bare, synthetic_run("fa", steps=10))
    assert code == 0
    assert "spectra" in drawn


def test_a_search_in_which_all_runs_diverged_is_drawn(draws):
    code, out, drawn = draws(*(synthetic_run("fa", lr=lr, steps=10) for lr in (50.0, 100.0, 200.0)))
    assert code == 0
    assert "learning_curves_train_loss" in drawn
    assert "no loss_against_lr: no run finished" in out


def test_a_store_with_nothing_to_draw_says_what_it_holds(draws):
    code, out, drawn = draws(synthetic_run(steps=5)[["wall_time"]])
    assert (code, drawn) == (0, set())
    assert "no figures: these runs hold wall_time" in out


def test_weight_angles_recorded_alone_are_drawn(draws):
    """The command draws what a store allows, and said that there was nothing to draw."""
    code, _, drawn = draws(synthetic_run(steps=10)[["weight_angle"]])
    assert (code, drawn) == (0, {"weight_angle"})


def test_compact_makes_one_zarr_that_figures_draws(spec, tmp_path, monkeypatch, capsys):
    run(["run", spec, "--out", tmp_path / "out"], monkeypatch)
    store = tmp_path / "out" / "store"
    assert run(["compact", store], monkeypatch) == 0
    assert f"1 run(s) in {store / 'compact.zarr'}" in capsys.readouterr().out
    assert run(["compact", store, "--out", tmp_path / "else.zarr"], monkeypatch) == 0
    for drawn in (store, tmp_path / "else.zarr"):
        assert run(["figures", drawn, "--out", tmp_path / "drawn"], monkeypatch) == 0
        assert (tmp_path / "drawn" / "angles.png").stat().st_size > 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are given to processes on Linux")
def test_an_audit_takes_as_many_processes_as_it_may_use_cores(monkeypatch):
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})  # as a batch system does to a job
    try:
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        assert where_to(None, None, "cpu") == 1
        assert where_to(5, None, "cpu") == 5
    finally:
        os.sched_setaffinity(0, allowed)
    monkeypatch.setattr("dask.system.cpu_count", lambda: 3)
    assert (where_to(None, None, "cpu"), where_to(None, None, "cuda")) == (3, 1)


def test_modules_that_add_tasks_and_rules_are_imported_first_by_workers_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importing, "_imported", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    written(tmp_path, name="cli_tab")
    Path("cli_rule.py").write_text(
        "from alignlab.rules import RULES, Rule\n"
        "class Own(Rule):\n    name = 'cli_rule'\n"
        "    def refresh(self, layer):\n        layer.feedback = 2 * layer.weight.detach()\n"
        "RULES['cli_rule'] = Own\n"
    )
    setup = {**CLAIM["setup"], "steps": 6, "batch_size": 10}
    own = {**CLAIM, "task": "tab", "treatment": {"rule": "cli_rule"}, "setup": setup, "controls": ["placebo"]}
    Path("claim.yaml").write_text(yaml.safe_dump(own))
    Path("spec.yaml").write_text(yaml.safe_dump({**SPEC, "task": "tab", "rule": "cli_rule"}))
    assert run(["audit", "claim.yaml"], monkeypatch) == 2
    assert "by alignlab run and audit with --import" in capsys.readouterr().err
    imports = ["--import", "cli_tab", "--import", "cli_rule"]
    try:
        assert run(["audit", "claim.yaml", "--workers", "2", *imports], monkeypatch) == 0
        assert "12 of 12 runs computed" in capsys.readouterr().out
        assert run(["run", "spec.yaml", *imports], monkeypatch) == 0
        assert "test_loss" in capsys.readouterr().out
        Path("spec.yaml").write_text(yaml.safe_dump({**SPEC, "task": "tab", "hidden": [], "model": "lenet"}))
        assert run(["run", "spec.yaml", *imports], monkeypatch) == 2
    finally:
        TASKS.pop("tab", None)
        RULES.pop("cli_rule", None)


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("nowhere_tab", "cannot import 'nowhere_tab' (ModuleNotFoundError"),
        ("tab.py", "give a module's name, tab, not its file"),
        ("a_script", "cannot import 'a_script' (SystemExit: 3)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(module, told, spec, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a_script.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run(["run", spec, "--import", module], monkeypatch) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert "\n" not in error


def test_data_list_names_every_set(monkeypatch, capsys):
    assert run(["data", "list"], monkeypatch) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("mnist", "fashion_mnist", "cifar10"))


BAD = [
    (["run", "nowhere.yaml"], "nowhere.yaml"),
    (["run", {**SPEC, "rule": "fab"}], "'fa'"),
    (["run", {**SPEC, "lr": -1}], "lr is -1"),
    (["run", {**SPEC, "stepz": 3}], "did you mean 'steps'"),
    (["run", {**SPEC, "task": "minst"}], "mnist"),
    (["run", SPEC, "--out", "/proc/nothing/here"], "/proc/nothing"),
    (["run", SPEC, "--seed", "-1"], "--seed"),
    (["run", SPEC, "--out", "1.yaml"], "1.yaml/figures: Not a directory; a file lies in the way"),
    (["run", {**SPEC, "steps": 10**30}], "steps is 1000000"),
    (["run", {**SPEC, "hidden": [10**30]}], "hidden is [1000000"),
    (["run", {**SPEC, "evaluations": 10**14}], "evaluations is 1000000"),
    (["run", {**SPEC, "record_log": 10**14}], "record_log is 1000000"),
    (["audit", {**CLAIM, "seeds": 10**17}], "seeds is 1000000"),
    (["audit", "sign_sink"], "sign_sync"),
    (["audit", "nowhere.yaml"], "nowhere.yaml"),
    (["audit", {**CLAIM, "smallest_effect": 0}], "smallest_effect"),
    (["audit", {**CLAIM, "outcome": "joy"}], "joy"),
    (
        ["audit", CLAIM, "--controls", "magnitude,magic"],
        "controls is ('magnitude', 'magic'): there is no 'magic', expected different ones out of",
    ),
    (["audit", CLAIM, "--seeds", "1"], "--seeds"),
    (["audit", CLAIM, "--seed", str(2**63)], "every seed must be"),
    (["audit", CLAIM, "--scheduler", ""], "--scheduler is empty"),
    (["study", "xor", "--scheduler", " "], "--scheduler is empty"),
    (["figures", "no/store/here"], "no/store/here"),
    (["compact", "no/store/here"], "no/store/here"),
    (["compact", "."], "no segments in"),
    (["compact", "/etc/passwd"], "/etc/passwd: it is a file"),
    (["data", "path", "imagenet"], "imagenet"),
    (["data", "path", "mnits"], "did you mean 'mnist'"),
    (["data", "fetch", "svhn"], "there are mnist_small, mnist, fashion_mnist"),
    (["data", "fetch", "mnist_small"], "mnist_small travels with the package, in "),
    (["wake"], "wake"),
    (["run", CLAIM], "1.yaml is a claim: alignlab audit "),
    (["run", {**CLAIM, "treatment": "fa"}], "1.yaml is a claim: alignlab audit "),
    (["audit", SPEC], "1.yaml is the spec of a run: alignlab run "),
    (["audit", "nowhere.json"], "nowhere.json"),
    (["audit", {**CLAIM, "controls": "tuning"}], "controls is 'tuning': expected a list or tuple"),
    (["audit", {**CLAIM, "seeds": "4"}], "seeds is '4': expected a list or tuple"),
    (
        ["audit", {**CLAIM, "baseline": "bp"}],
        "baseline is 'bp': expected keys and values, in Python Arm(…)",
    ),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_clear_line_and_code_2(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = []
    for i, argument in enumerate(arguments):
        if isinstance(argument, dict):
            path = tmp_path / f"{i}.yaml"
            path.write_text(yaml.safe_dump(argument))
            argument = path
        words.append(argument)
    assert run(words, monkeypatch) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert named in error[0]
    assert "Traceback" not in error[0]


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["audit"], ["figures"], ["compact"], ["data"], ["data", "list"], ["data", "fetch"]],
)
def test_help_has_an_example(command, monkeypatch, capsys):
    assert run([*command, "--help"], monkeypatch) == 0
    out = capsys.readouterr().out
    assert "Usage" in out
    assert command in ([], ["data"]) or "Example: alignlab" in out


def test_help_names_what_there_is(monkeypatch, capsys):
    from alignlab import gallery
    from alignlab.audit.controls import ALL

    for command, names in (
        ("study", gallery.names("STUDY")),
        ("audit", [*gallery.names("CLAIM"), *ALL]),
    ):
        assert run([command, "--help"], monkeypatch) == 0
        said = re.findall(r"\w+", capsys.readouterr().out)
        assert set(names) <= set(said)


def test_specs_and_claims_may_be_json(tmp_path, monkeypatch, capsys):
    for command, fields in (("run", SPEC), ("audit", {**CLAIM, "controls": []})):
        path = tmp_path / f"{command}.json"
        path.write_text(json.dumps(fields, indent=2))
        out = ["--out", tmp_path / command]
        assert run([command, path, *out, *(["--workers", 1] * (command == "audit"))], monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("8 of 8 runs computed")
    assert run(["run", "--help"], monkeypatch) == 0
    assert "a YAML or JSON file" in capsys.readouterr().out


def test_a_claim_without_a_source_leaves_no_blank_in_its_place(claim, tmp_path, monkeypatch, capsys):
    claim.write_text(yaml.safe_dump({**CLAIM, "controls": []}))
    assert run(["audit", claim, "--out", tmp_path / "out", "--workers", 1], monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        CLAIM["statement"],
        "",
        "Differences in train_loss, seed by seed; > 0 means that the treatment (fa) is better,",
    ]


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    assert run(["--version"], monkeypatch) == 0
    assert capsys.readouterr().out == f"alignlab {alignlab.__version__}\n"


def test_the_command_can_be_called_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "alignlab", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"alignlab {alignlab.__version__}\n"


def test_run_trains_on_one_thread_like_every_cell_of_its_name(spec, tmp_path, monkeypatch, capsys):
    """Or an audit on this store would take numbers for its own that depend on how many cores were free."""
    seen, train = [], cells.train

    def watched(*arguments, **options):
        seen.append(torch.get_num_threads())
        return train(*arguments, **options)

    monkeypatch.setattr(cells, "train", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert run(["run", spec, "--out", tmp_path / "out"], monkeypatch) == 0
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    def full(path, text, encoding):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "spec.yaml").write_text("old")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match=r"spec\.yaml: No space left on device; free some space"):
        output.write(tmp_path / "spec.yaml", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_names_the_figure_and_the_way_out(spec, tmp_path, monkeypatch, capsys):
    def full(figure, file, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    assert run(["run", spec, "--out", tmp_path / "out"], monkeypatch) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"cannot write \S+/figures/\w+\.png: No space left on device; free some space", error)


@pytest.mark.parametrize("stdout", ["utf-8", "cp1252"])
def test_a_table_is_told_whatever_the_console_can_show(claim, tmp_path, stdout):
    plain = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": stdout}
    command = [sys.executable, "-m", "alignlab", "audit", str(claim), "--workers", "1"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **plain}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert "placebo" in done.stdout.decode(stdout)
    assert "✓" in (tmp_path / "out" / "claim" / "table.txt").read_text(encoding="utf-8")


def test_a_place_that_is_taken_is_found_before_the_work(spec, claim, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cells, "train", None)  # nothing may run
    for taken, kind, command in (
        ("figures", "file", ["run", spec]),
        ("spec.yaml", "folder", ["run", spec]),
        ("result.json", "folder", ["audit", claim]),
    ):
        out = tmp_path / f"out-{taken}"
        (out / taken).mkdir(parents=True) if kind == "folder" else (out.mkdir(), (out / taken).touch())
        assert run([*command, "--out", out], monkeypatch) == 2
        error = capsys.readouterr().err
        assert f"is a {kind} where" in error
        assert taken in error


@pytest.mark.parametrize("command", [[], ["data"]])
def test_no_command_shows_what_there_is(command, monkeypatch, capsys):
    assert run(command, monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "Usage" in shown
    assert ("audit" if not command else "fetch") in shown
    assert shown.count("\n") > 5


def test_the_embedded_images_have_a_path(monkeypatch, capsys):
    assert run(["data", "path", "mnist_small"], monkeypatch) == 0
    assert os.path.exists(capsys.readouterr().out.strip())


def test_an_interrupted_run_is_not_said_to_go_on_where_it_was(capsys):
    """What a single run had computed is lost; the line promised that the same command goes on from there."""

    def interrupted():
        raise KeyboardInterrupt

    assert ended(interrupted) == 130
    assert "finished is stored, the same command does the rest" in capsys.readouterr().err


def test_an_interrupt_is_one_line_and_the_same_command_goes_on(tmp_path):
    claim = {**CLAIM, "controls": ["placebo"], "setup": {**CLAIM["setup"], "steps": 800}}
    path, out = tmp_path / "claim.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(claim))
    command = [sys.executable, "-m", "alignlab", "audit", str(path), "--out", str(out), "--workers", "2"]
    # a job in a shell's background ignores interrupts, and so would what it starts
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((out / "store").glob("*.nc")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; what was finished is stored" in error
    assert "Traceback" not in error
    kept = len(list((out / "store").glob("*.nc")))
    assert 0 < kept < 12
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{12 - kept} of 12 runs computed" in again.stdout
