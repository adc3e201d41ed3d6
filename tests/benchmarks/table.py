"""Write what was measured into the pages: the README's table of speed, and the numbers and the figure of the scaling page.

    for bench in audit population sweep probes rules store others scaling; do
        python tests/benchmarks/bench_$bench.py --json tests/benchmarks/results/$bench.json
    done
    python tests/benchmarks/table.py

(bench_others with the Python of the environment that its first lines describe; without it, it says what it had to leave out.)
Everything between a page's markers comes from ``tests/benchmarks/results/*.json`` and from nowhere else; a test holds the pages
to that. The README shows the rows that have a number to reach, and what could not be measured.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import measuring
import scaling_figure
import scaling_page

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent / "results"
SHOWN = ("audit", "population", "sweep", "probes", "others", "rules", "store")
README, PAGE, FIGURE = ROOT / "README.md", ROOT / "analyses" / "scaling.md", ROOT / "analyses" / "scaling.png"
Results = dict[str, dict[str, Any]]
BUSY = 1  # load beyond the cores, from which others had a part in it


def read(folder: Path = RESULTS) -> Results:
    """What each benchmark wrote, by its name; a benchmark that wrote nothing yet has no place here."""
    paths = {name: folder / f"{name}.json" for name in (*SHOWN, "scaling")}
    found = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    if "scaling" not in found:
        raise SystemExit(
            f"{paths['scaling']} is missing: run tests/benchmarks/bench_scaling.py --json {paths['scaling']}"
        )
    return found


def machine_line(results: Results) -> str:
    """Where, by which clock, and whether others were at work; an error where the files come from several machines."""
    machines = {json.dumps(found["machine"], sort_keys=True): name for name, found in results.items()}
    if len(machines) > 1:
        raise SystemExit(
            f"{' and '.join(machines.values())}.json were measured on different machines: run all on one"
        )
    one = next(iter(results.values()))["machine"]
    line = f"Measured on {one['cpu']}, {one['cores']} cores, torch {one['torch']}, Python {one['python']}"
    loads = {name: found.get("load") or 0 for name, found in results.items()}
    beside = [f"{name} (load {load:g})" for name, load in loads.items() if load > one["cores"] + BUSY]
    busy = f", beside other work: {', '.join(beside)}" if beside else ""
    clocks: dict[str, list[str]] = {}
    for name, found in results.items():
        clocks.setdefault(found["clock"], []).append(name)
    others = [f"`--clock {clock}`: {', '.join(names)}" for clock, names in clocks.items() if clock != "wall"]
    counted = f"; processor time in place of the wall's ({'; '.join(others)})" if others else ""
    return f"{line}{busy}{counted}."


def table(results: Results) -> str:
    """The README's table, in Markdown."""
    rows = [row for name in SHOWN for row in (results[name]["rows"] if name in results else [_absent(name)])]
    lines = ["| what | against | measured (quartiles) | reach |", "|---|---|---|---|"]
    for row in rows:
        if row.get("reach") is not None or "skipped" in row:
            found = f"{measuring.value(row)} {measuring.span(row)}".strip()
            lines.append(f"| {row['what']} | {row['against']} | {found} | {measuring.reach(row)} |")
    return "\n".join([*lines, "", machine_line(results)])


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


def pages(results: Results) -> dict[Path, str]:
    """The pages as the results make them."""
    own = {"machine": machine_line({"scaling": results["scaling"]})}
    return {
        README: replaced(README.read_text(), {"benchmarks": table(results)}),
        PAGE: replaced(PAGE.read_text(), scaling_page.blocks(results["scaling"]) | own),
    }


def main() -> None:
    results = read()
    for path, text in pages(results).items():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
    scaling_figure.draw(results["scaling"]).savefig(FIGURE, dpi=150)
    print(f"wrote {FIGURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
