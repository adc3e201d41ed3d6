"""Rules, probes, populations and sweeps on a device that is not the CPU, in a process that has one (``elsewhere.cpp``)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from elsewhere_laws import LAWS

import alignlab

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong, by law."""
    missing = [tool for tool in ("c++", "ninja") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} to compile the device")
    command = [sys.executable, "elsewhere_laws.py", str(tmp_path_factory.mktemp("device"))]
    same = os.environ | {"PYTHONPATH": str(Path(alignlab.__file__).parent.parent)}
    done = subprocess.run(command, cwd=HERE, env=same, capture_output=True, text=True, timeout=600)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert results, done.stderr[-3000:]
    return {result["name"]: result["wrong"] for result in results} | {
        "end": done.stderr * (done.returncode != 0)
    }


@pytest.mark.parametrize("law", [*LAWS, "end"])
def test_on_any_device(law: str, found: dict[str, str]) -> None:
    assert found[law] == ""
