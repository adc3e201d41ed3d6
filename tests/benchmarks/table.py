"""Write what was measured into the pages: the README's tables of speed, and the numbers and the figure of the scaling page.

    for bench in audit population sweep probes rules store others scaling; do
        python tests/benchmarks/bench_$bench.py --json tests/benchmarks/results/$bench.json
    done
    python tests/benchmarks/table.py

On a machine with a GPU, which may be another one, the README's second table, which is there once it has been measured:

    for bench in population probes synchronisation rules others; do
        python tests/benchmarks/bench_$bench.py --device cuda --json tests/benchmarks/results/gpu/$bench.json
    done
    python tests/benchmarks/table.py

(bench_others with the Python of the environment that its first lines describe; without it, it says what it had to leave out.)
Everything between a page's markers comes from the JSON files in ``tests/benchmarks/results`` and from nowhere else; a test
holds the pages to that. The README shows the rows that have a number to reach, and what could not be measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import scaling_figure
import scaling_page
from devices import EVENTS

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent / "results"
SHOWN = ("audit", "population", "sweep", "probes", "others", "rules", "store")
ON_GPU = ("population", "probes", "synchronisation", "rules", "others")
README, PAGE, FIGURE = ROOT / "README.md", ROOT / "analyses" / "scaling.md", ROOT / "analyses" / "scaling.png"
Results = dict[str, dict[str, Any]]
BUSY = 1  # load beyond the cores, from which others had a part in it


def read(folder: Path = RESULTS) -> Results:
    """What each benchmark wrote, by its name; a benchmark that wrote nothing yet has no place here."""
    found = _written(folder, (*SHOWN, "scaling"))
    if "scaling" not in found:
        missing = folder / "scaling.json"
        raise SystemExit(f"{missing} is missing: run tests/benchmarks/bench_scaling.py --json {missing}")
    return found


def read_gpu(folder: Path = RESULTS / "gpu") -> Results:
    """The same of a GPU; empty where nothing was measured on one. An error where a file is of a processor."""
    found = _written(folder, ON_GPU)
    for name in found:
        if "gpu" not in found[name]["machine"]:
            raise SystemExit(f"{folder / name}.json was measured on no GPU: run it with --device cuda")
    return found


def _written(folder: Path, names: Sequence[str]) -> Results:
    paths = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def machine_line(results: Results) -> str:
    """Where, by which clock, and whether others were at work; an error where the files come from several machines."""
    machines = {json.dumps(found["machine"], sort_keys=True): name for name, found in results.items()}
    if len(machines) > 1:
        raise SystemExit(
            f"{' and '.join(machines.values())}.json were measured on different machines: run all on one"
        )
    one = next(iter(results.values()))["machine"]
    where = f"{one['gpu']} beside {one['cpu']}" if "gpu" in one else one["cpu"]
    line = f"Measured on {where}, {one['cores']} cores, torch {one['torch']}, Python {one['python']}"
    loads = {name: found.get("load") or 0 for name, found in results.items()}
    beside = [f"{name} (load {load:g})" for name, load in loads.items() if load > one["cores"] + BUSY]
    busy = f", beside other work: {', '.join(beside)}" if beside else ""
    return f"{line}{busy}{_clocks(results)}."


def _clocks(results: Results) -> str:
    """By which clocks, where not all are the wall's."""
    names: dict[str, list[str]] = {}
    for name, found in results.items():
        names.setdefault(found["clock"], []).append(name)
    by_events, by_wall = names.pop(EVENTS, None), names.pop("wall", [])
    waited = f" ({', '.join(by_wall)}: by the wall's clock)" if by_wall else ""
    others = "; ".join(f"`--clock {clock}`: {', '.join(them)}" for clock, them in names.items())
    return (f"; timed by CUDA events{waited}" if by_events else "") + (
        f"; processor time in place of the wall's ({others})" if others else ""
    )


def table(results: Results, shown: Sequence[str] = SHOWN) -> str:
    """A table of the README's, in Markdown."""
    rows = [row for name in shown for row in (results[name]["rows"] if name in results else [_absent(name)])]
    lines = ["| what | against | measured (quartiles) | reach |", "|---|---|---|---|"]
    for row in rows:
        if row.get("reach") is not None or "skipped" in row:
            found = f"{measuring.value(row)} {measuring.span(row)}".strip()
            lines.append(f"| {row['what']} | {row['against']} | {found} | {measuring.reach(row)} |")
    return "\n".join([*lines, "", machine_line(results)])


def gpu_table(results: Results) -> str:
    """The README's second table, with what leads to it; nothing where nothing was measured."""
    return (
        f"\nOn a GPU, both sides of each ratio on the same one:\n\n{table(results, ON_GPU)}\n"
        if results
        else ""
    )


def _absent(name: str) -> measuring.Row:
    return {"what": f"bench_{name}", "against": "", "skipped": "not measured yet"}


def replaced(text: str, blocks: dict[str, str]) -> str:
    """A page with the text between the markers of each block replaced."""
    for name, block in blocks.items():
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(pattern, lambda m, new=block: m[1] + new + m[2], text, flags=re.DOTALL)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(
                f"expected <!-- {name} --> … <!-- end --> once in the page, found it {count} times"
            )
    return text


def pages(results: Results, on_gpu: Results) -> dict[Path, str]:
    """The pages as the results make them."""
    own = {"machine": machine_line({"scaling": results["scaling"]})}
    tables = {"benchmarks": table(results), "benchmarks on a GPU": gpu_table(on_gpu)}
    return {
        README: replaced(README.read_text(), tables),
        PAGE: replaced(PAGE.read_text(), scaling_page.blocks(results["scaling"]) | own),
    }


def main() -> None:
    results = read()
    for path, text in pages(results, read_gpu()).items():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
    scaling_figure.draw(results["scaling"]).savefig(FIGURE, dpi=150)
    print(f"wrote {FIGURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
