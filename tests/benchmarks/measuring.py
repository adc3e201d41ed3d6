"""What the benchmarks share: arguments, rows of results, and the JSON files from which ``table.py`` makes the README's tables.

A row is a mapping: ``what`` was measured ``against`` what; the median ``ratio`` of what was measured alternately, with its
``quartiles``; and the ``reach``, which the ratio should not fall below where ``better`` is "more", and not exceed where it is
"less". Some rows have ``seconds``, ``MiB`` or a ``count`` in place of a ratio; what could not be measured says why in
``skipped``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import devices
from devices import CLOCKS

if TYPE_CHECKING:
    import torch

Row = dict[str, Any]
Better = Literal["more", "less"]
Unit = Literal["seconds", "MiB", "count"]


def options(
    description: str | None, clocks: Sequence[str] = tuple(CLOCKS), device: str | None = None
) -> argparse.ArgumentParser:
    """The arguments that all take; with a default ``device`` those of the ones that run on a GPU too (``devices.parsed``)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if device is None:
        parser.add_argument("--clock", choices=clocks, default="wall")
    else:
        devices.add_to(parser, device)
    parser.add_argument("--json", type=Path, help="write the rows there too")
    return parser


def row(
    what: str, against: str, found: Sequence[float], reach: float | None = None, better: Better = "less"
) -> Row:
    """The row of some ratios, which is also printed."""
    low, middle, high = statistics.quantiles(found, n=4) if len(found) > 1 else [*found] * 3
    quartiles = [rounded(low), rounded(high)] if len(found) > 1 else None
    made = {"what": what, "against": against, "ratio": rounded(middle), "quartiles": quartiles}
    return printed(made | {"reach": reach, "better": better})


def amount(what: str, unit: Unit, value: float, reach: float | None = None, against: str = "") -> Row:
    """The row of a time, of a size or of a count, which is also printed."""
    return printed({"what": what, "against": against, unit: rounded(value), "reach": reach, "better": "less"})


def skipped(what: str, against: str, reason: str) -> Row:
    """The row of what could not be measured, which is also printed."""
    return printed({"what": what, "against": against, "skipped": " ".join(reason.split())})


def printed(made: Row) -> Row:
    print(f"{made['what']:56} {value(made):>10}  {span(made):18}  {reach(made)}".rstrip(), flush=True)
    return made


def value(made: Row) -> str:
    """What was measured, in four digits at most."""
    if "skipped" in made:
        return f"skipped: {made['skipped']}"
    if "seconds" in made:
        return f"{short(made['seconds'])} s"
    return f"{made['MiB']:.0f} MiB" if "MiB" in made else short(made["count" if "count" in made else "ratio"])


def span(made: Row) -> str:
    return "({} to {})".format(*map(short, made["quartiles"])) if made.get("quartiles") else ""


def reach(made: Row) -> str:
    """What was to be reached, and whether it was; nothing where a row has no such number."""
    if made.get("reach") is None:
        return ""
    unit = " s" if "seconds" in made else " MiB" if "MiB" in made else ""
    sign = "≥" if made["better"] == "more" else "≤"
    return f"{sign} {made['reach']:g}{unit}{'' if reached(made) else ', missed'}"


def reached(made: Row) -> bool:
    found = next(made[key] for key in ("ratio", "seconds", "MiB", "count") if key in made)
    return bool(found >= made["reach"] if made["better"] == "more" else found <= made["reach"])


def short(number: float) -> str:
    """Near 1 three decimals, for that is where differences are small; else three digits."""
    return f"{number:.3f}" if 0.5 <= number < 2 else f"{number:.3g}" if number < 100 else f"{number:.0f}"


def rounded(number: float) -> float:
    return float(f"{number:.5g}")


def machine(device: torch.device = devices.CPU) -> dict[str, Any]:
    """What the numbers depend on; the GPU where they are of one."""
    import psutil

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    gpu = {} if device.type == "cpu" else {"gpu": devices.name_of(device)}
    return gpu | {
        "cpu": cpu,
        "cores": psutil.cpu_count(),
        "torch": version("torch"),
        "python": platform.python_version(),
    }


def write(
    path: Path | None, rows: Sequence[Row], clock: str, device: torch.device = devices.CPU, **more: Any
) -> None:
    """The rows as JSON, with the machine and how they were measured; nothing where there is no path."""
    if path is None:
        return
    arguments = [part for part in sys.argv[1:] if part not in ("--json", str(path), f"--json={path}")]
    about = {
        "benchmark": Path(sys.argv[0]).stem,
        "arguments": arguments,
        "clock": clock,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "machine": machine(device),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"rows": list(rows)} | more, indent=1, ensure_ascii=False) + "\n")
