"""What populations save in a whole audit: ``alignlab audit sign_sync`` as it is, and with its runs trained one by one.

    python tests/benchmarks/bench_audit.py [--workers 2] [--clock cpu] [--json PATH]

Both are the command in a process of its own, into an empty folder, once each: minutes. ``--clock cpu`` counts the processor
time of all processes and shares it out over the workers, for machines that others use too.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time

import measuring

REACH, RATIO = 90, 3
START = {
    "as it is": "from alignlab import cli; cli.main()",
    "one by one": (
        "from alignlab import cli; from alignlab.training.sweep import Sweep\n"
        "Sweep.__init__.__kwdefaults__['lockstep'] = False; cli.main()"
    ),
}


def processor_time() -> float:
    """Of all processes that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


CLOCKS = {"wall": time.perf_counter, "cpu": processor_time}


def timed(code: str, workers: int, clock: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-c",
            code,
            "audit",
            "sign_sync",
            "--out",
            folder,
            "--workers",
            str(workers),
        ]
        start = CLOCKS[clock]()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"NO_COLOR": "1"})
        return (CLOCKS[clock]() - start) / (workers if clock == "cpu" else 1)


def main() -> None:
    parser = measuring.options(__doc__, tuple(CLOCKS))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    what = f"alignlab audit sign_sync, {options.workers} workers"
    seconds = {name: timed(code, options.workers, options.clock) for name, code in START.items()}
    rows = [
        measuring.amount(what, "seconds", seconds["as it is"], REACH),
        measuring.amount(f"{what}, one by one", "seconds", seconds["one by one"]),
        measuring.row(
            what, "its runs one by one", [seconds["one by one"] / seconds["as it is"]], RATIO, "more"
        ),
    ]
    measuring.write(options.json, rows, options.clock)


if __name__ == "__main__":
    main()
