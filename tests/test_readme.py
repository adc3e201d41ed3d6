"""The README's code runs as it stands, in order, in one namespace, as a reader would type it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_readme_code_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    blocks = re.findall(r"(?<!\.py`:\n\n)```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert set(namespace["run"].dims) == {"step", "layer", "mode"}
    assert (tmp_path / "runs" / "angles.svg").stat().st_size > 0
    assert b"/Type3" not in (tmp_path / "runs" / "angles.pdf").read_bytes()
    printed = capsys.readouterr().out
    assert str(namespace["result"].verdict).split(":")[0].split()[0] in printed
    assert [
        layer.rule.name for layer in namespace["al"].rules.feedback_layers(namespace["net"]).values()
    ] == ["bp", "fa", "fa"]
    assert float(printed.split()[-1]) == pytest.approx(40, abs=4)


def test_the_sweep_gives_a_table_of_rules_and_rates(tmp_path, monkeypatch):
    import alignlab as al

    monkeypatch.chdir(tmp_path)
    block = README.split("### Many runs")[1].split("On a GPU:")[0]
    code = [line[4:] for line in block.splitlines() if line.startswith("    ")]
    code[-1] = f"table = {code[-1]}"
    small = "\n".join(code).replace("range(100)", "range(2)").replace("run(2)", "run()")
    namespace = {"al": al}
    exec(compile(small, "README.md", "exec"), namespace)
    spec = al.RunSpec(task="xor", steps=200, rule="fa", lr=0.03)
    ends = [al.train(spec.changed(seed=seed))["train_loss"].values[-1] for seed in range(2)]
    assert namespace["table"].shape == (2, 2)
    assert namespace["table"].loc["fa", 0.03] == pytest.approx(sum(ends) / 2, rel=1e-4)


def test_a_rule_of_ones_own_takes_about_fifteen_lines():
    body = README.split("class NoisyTransport")[1].split("\n\n\n")[0]
    assert 5 <= len([line for line in body.splitlines() if line.strip()]) <= 15


@pytest.mark.slow
def test_readme_commands_run_as_they_stand(tmp_path, monkeypatch, capsys):
    from alignlab import cli

    monkeypatch.chdir(tmp_path)
    section = README.split("### From the shell")[1].split("## What is recorded")[0]
    for name, text in re.findall(r"`(\w+\.yaml)`:\n\n```yaml\n(.*?)```", section, flags=re.DOTALL):
        Path(name).write_text(text)
    commands = [
        line.split("#")[0].split() for line in section.splitlines() if line.startswith("    alignlab ")
    ]
    assert [command[1] for command in commands] == ["audit", "audit", "run", "figures"]
    for command in commands:
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
    assert "verdict:" in capsys.readouterr().out
    assert Path("out/claim/result.json").exists()
    assert Path("out/again/angles.png").exists()


@pytest.mark.slow
def test_a_task_of_ones_own_is_audited_as_it_stands(tmp_path):
    section = README.split("### A task of your own")[1].split("\n## ")[0]
    for name, text in re.findall(r"`(\w+\.\w+)`:\n\n```\w+\n(.*?)```", section, flags=re.DOTALL):
        (tmp_path / name).write_text(text)
    (command,) = [line.split() for line in section.splitlines() if line.startswith("    alignlab ")]
    done = subprocess.run(
        [sys.executable, "-m", "alignlab", *command[1:]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "30 of 30 runs computed" in done.stdout
    result = json.loads((tmp_path / "out/tab/result.json").read_text())
    assert result["claim"]["task"] == "tab"


def test_readme_names_every_recorded_quantity():
    from alignlab.measures import QUANTITIES

    table = README.split("## What is recorded")[1].split("## Learning rules")[0]
    named = set(re.findall(r"`(\w+)`", table))
    evaluations = {name for name in QUANTITIES if re.match(r"(train|validation|test)_(loss|accuracy)$", name)}
    assert set(QUANTITIES) - evaluations <= named


def test_readme_names_every_rule_and_control():
    from alignlab.audit.controls import ALL
    from alignlab.rules import RULES

    assert all(f"`{name}" in README for name in RULES)
    assert all(f"`{control.__name__}`" in README for control in ALL.values())


def test_readme_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
