"""The memory that may still be taken is the machine's, or less where a container or a job has a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from alignlab.training import RunSpec, devices, memory
from alignlab.training.planner import fitting

MIB = 2**20
UNLIMITED = str(2**63 - 4096)  # as version 1 says it


def second(limit: str, used: int, idle: int = 0, high: str = "max") -> dict[str, str]:
    stat = f"anon {used - idle}\ninactive_file {idle}\nactive_file 0\n"
    return {
        "memory.max": f"{limit}\n",
        "memory.high": f"{high}\n",
        "memory.current": f"{used}\n",
        "memory.stat": stat,
    }


def first(limit: str, used: int, idle: int = 0) -> dict[str, str]:
    stat = f"inactive_file 0\ntotal_inactive_file {idle}\n"
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{used}\n",
        "memory.stat": stat,
    }


@pytest.fixture
def machine(monkeypatch: Any, tmp_path: Path) -> Any:
    """A machine with 8 GiB to give, and these control groups."""

    def made(own: str, groups: dict[str, dict[str, str]]) -> None:
        (tmp_path / "own").write_text(own)
        for group, files in groups.items():
            (tmp_path / "groups" / group).mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (tmp_path / "groups" / group / name).write_text(text)
        monkeypatch.setattr(memory, "OWN", tmp_path / "own")
        monkeypatch.setattr(memory, "ROOT", tmp_path / "groups")
        told = psutil.virtual_memory()._replace(available=8192 * MIB)
        monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: told)

    return made


JOB = "slurmstepd.scope/job_7/step_0"
SHARED = "\n".join(["9:cpu,cpuacct:/", "4:memory:/docker/abc", "0::/docker/abc"])

CASES: list[tuple[str, dict[str, dict[str, str]], int]] = [
    ("0::/\n", {"": second(str(1024 * MIB), 100 * MIB)}, 924),
    ("0::/\n", {"": second(str(1024 * MIB), 1000 * MIB, idle=600 * MIB)}, 624),
    ("0::/\n", {"": second("max", 100 * MIB, high=str(512 * MIB))}, 412),
    ("0::/\n", {"": second("max", 100 * MIB)}, 8192),
    ("0::/\n", {"": second(str(100 * MIB), 101 * MIB)}, 0),
    (f"0::/{JOB}\n", {JOB: second("max", 5 * MIB), "slurmstepd.scope/job_7": second(str(64 * MIB), 10 * MIB)}, 54),
    ("0::/../../other\n", {"": second(str(1024 * MIB), 100 * MIB)}, 924),
    ("0::/user.slice\n", {"user.slice": {}}, 8192),
    (f"4:memory:/{JOB}", {f"memory/{JOB}": first(str(64 * MIB), 10 * MIB, 4 * MIB), "memory": first(UNLIMITED, MIB)}, 58),
    (SHARED, {"memory": first(str(256 * MIB), 56 * MIB)}, 200),
    ("9:cpu:/\n", {"memory": first(str(256 * MIB), 56 * MIB)}, 8192),
    ("", {}, 8192),
]  # fmt: skip


@pytest.mark.parametrize(("own", "groups", "left"), CASES)
def test_the_least_that_a_group_leaves_is_what_may_be_taken(
    own: str, groups: dict[str, dict[str, str]], left: int, machine: Any
) -> None:
    machine(own, groups)
    assert memory.available() == left * MIB


def test_a_machine_without_control_groups_gives_what_it_has(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "OWN", tmp_path / "nowhere")
    assert 0 < memory.available() <= psutil.virtual_memory().total


def test_fewer_runs_stand_together_in_a_job_that_may_take_less(machine: Any) -> None:
    spec = RunSpec(task="xor", hidden=(200, 200), batch_size=4)
    machine("0::/\n", {"": second("max", 0)})
    whole = fitting(spec, 1)
    machine("0::/\n", {"": second(str(512 * MIB), 0)})
    assert devices.free_memory(devices.CPU) == 512 * MIB
    assert fitting(spec, 1) == whole // 16 or fitting(spec, 1) == -(-whole // 16)
