"""The scripts of ``analyses/clusters.md``: what they hand to dask is what this dask takes, and what they hand to alignlab."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import click
import distributed
import pytest
from dask.utils import parse_timedelta
from distributed.cli import dask_scheduler, dask_worker

import alignlab as al

PAGE = (Path(__file__).parents[2] / "analyses" / "clusters.md").read_text()
COMMANDS = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}


def understood(words: list[str]) -> dict[str, Any]:
    """The options of a command ``dask worker …``; a ``click`` error where it has none such."""
    assert words[0] == "dask", words
    context: click.Context = COMMANDS[words[1]].make_context(words[1], words[2:], resilient_parsing=False)
    return context.params


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def handed_over(source: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """What a script gives to the clusters that it starts, and the cells of its sweeps, of which none is run."""
    clusters: list[dict[str, Any]] = []
    sweeps: list[list[Any]] = []

    def cluster(**options: Any) -> MagicMock:
        clusters.append(options)
        return MagicMock()

    def spec(**options: Any) -> dict[str, Any]:
        clusters.append(options)
        return {"spec": {role: {"spec": {"containers": [{"args": []}]}} for role in ("scheduler", "worker")}}

    def sweep(cells: list[Any], store: str) -> SimpleNamespace:
        sweeps.append(cells)
        return SimpleNamespace(run=lambda client: len(cells))

    names = {
        "dask_jobqueue": {"SLURMCluster": cluster},
        "dask_kubernetes": {},
        "dask_kubernetes.operator": {"KubeCluster": cluster, "make_cluster_spec": spec},
    }
    for name, content in names.items():
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[name]).update(content)
    monkeypatch.setattr(distributed, "Client", MagicMock())
    monkeypatch.setattr(al, "Sweep", sweep)
    exec(compile(source, "clusters.md", "exec"), {"__name__": "__main__"})
    return clusters, sweeps


def test_every_command_is_one_that_dask_understands() -> None:
    lines = [
        line.partition("#")[0] for line in PAGE.splitlines() if re.match(r"\s*dask (worker|scheduler)", line)
    ]
    assert len(lines) == 4
    for line in lines:
        understood([word for word in shlex.split(line) if word != "&"])


def test_workers_leave_after_a_time_that_dask_can_read_and_before_slurm_ends_them() -> None:
    found = re.findall(r'"?--lifetime"?,? "?(\w+)"?.*?"?--lifetime-stagger"?,? "?(\w+)', PAGE)
    assert len(found) == 2
    assert PAGE.count("04:00:00") == 2
    for lifetime, stagger in found:
        assert parse_timedelta(lifetime) + parse_timedelta(stagger) < 4 * 3600


def test_scripts_ask_for_workers_and_runs_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = blocks("python")
    assert len(scripts) == 2
    for source in scripts:
        clusters, sweeps = handed_over(source, monkeypatch)
        assert all(isinstance(cell, al.RunSpec) for cells in sweeps for cell in cells)
        assert [len(cells) for cells in sweeps] in ([450], [1000])
        command = clusters[0].get("worker_command", ["dask", "worker", "--nthreads", "1"])
        assert understood([*command, *clusters[0].get("worker_extra_args", [])])["nthreads"] == 1
    pods = clusters[-1]["custom_cluster_spec"]["spec"]
    understood(pods["scheduler"]["spec"]["containers"][0]["args"])
