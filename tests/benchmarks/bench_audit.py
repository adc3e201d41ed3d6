"""What populations save in a whole audit: ``alignlab audit sign_sync`` as it is, with its runs trained one by one, and as it
was before there were populations.

    python tests/benchmarks/bench_audit.py [--workers 2] [--json PATH]

Each is the command in a process of its own, into an empty folder, once: minutes. The last is the commit before sweeps made use
of populations, from the repository that this file lies in; left out where there is none.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import measuring

REACH, RATIO = 90, 3
BEFORE = "a6b7c00"
HERE = Path(__file__).parent
AS_IT_IS = "from alignlab import cli; cli.main()"
ONE_BY_ONE = (
    "from alignlab import cli; from alignlab.training.sweep import Sweep\n"
    "Sweep.__init__.__kwdefaults__['lockstep'] = False; cli.main()"
)


def timed(code: str, workers: int, package: Path | None = None) -> float:
    """``package``: the folder of another alignlab than the installed one."""
    other = {} if package is None else {"PYTHONPATH": str(package)}
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["audit", "sign_sync", "--out", folder, "--workers", str(workers)]
        command = [sys.executable, "-c", code, *arguments]
        environment = os.environ | other | {"NO_COLOR": "1"}
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=folder)
        return time.perf_counter() - start


def before(workers: int) -> float | None:
    """As it was; None where there is no such commit."""
    if shutil.which("git") is None:
        return None
    kept = subprocess.run(["git", "archive", BEFORE], cwd=HERE.parent.parent, capture_output=True)
    if kept.returncode:
        return None
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(kept.stdout)) as package:
            package.extractall(folder, filter="data")
        return timed(AS_IT_IS, workers, Path(folder))


def main() -> None:
    parser = measuring.options(__doc__, ("wall",))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    what, against = f"alignlab audit sign_sync, {options.workers} workers", "its runs one by one"
    now, single = (timed(code, options.workers) for code in (AS_IT_IS, ONE_BY_ONE))
    rows = [
        measuring.amount(what, "seconds", now, REACH),
        measuring.row(what, against, [single / now], None, "more"),
    ]
    if past := before(options.workers):
        rows.append(measuring.row(what, f"before populations ({BEFORE})", [past / now], RATIO, "more"))
    measuring.write(options.json, rows, "wall")


if __name__ == "__main__":
    main()
