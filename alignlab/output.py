"""What the commands show and write: progress, an audit in words, and files that are there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from alignlab.audit import AuditResult


def progress() -> Callable[[str, int], Any]:
    """A phase that shows a bar on a terminal, and a line elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    name = max(4, min(44, console.width - 40))  # of a narrow terminal the bar and the time left take the rest

    @contextmanager
    def phase(what: str, total: int) -> Iterator[Callable[[int], None]]:
        if not total:
            yield lambda n: None
            return
        columns = (
            TextColumn(f"{{task.description:<{name}}}", markup=False),  # an arm may have brackets in its name
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=False, disable=not console.is_terminal) as bar:
            if not console.is_terminal:
                console.print(f"{what}: {total}", highlight=False, markup=False, soft_wrap=True)
            task = bar.add_task(what, total=total)
            yield lambda n: bar.advance(task, n)

    return phase


def draw_runs(runs: Any, folder: Path) -> dict[str, bytes]:
    """Every figure that the runs allow; their SVG files by name."""
    from alignlab.figures import run_figures

    refused: dict[str, str] = {}
    pictures = _saved(run_figures(runs, refused), folder)
    for name, why in refused.items():
        typer.echo(f"no {name}: {why}")
    held = ", ".join(sorted(map(str, runs.data_vars))) or "nothing"
    typer.echo(f"figures in {folder}" if pictures else f"no figures: these runs hold {held}")
    return pictures


def own_name(store: Path) -> str:
    """What a store goes by: its folder's name, or that of what it belongs to, where all stores are called so."""
    names = reversed(store.resolve().parts[1:])
    return next((name for name in names if name not in ("store", "compact.zarr")), "store")


def _saved(figures: Mapping[str, Figure], folder: Path) -> dict[str, bytes]:
    from alignlab.figures import save

    return {name: save(figure, folder / name)[-1].read_bytes() for name, figure in figures.items()}


def make_room(folder: Path, *files: str) -> None:
    """Whatever will be written has a place: found out before the work, not after it."""
    from alignlab.store.atomic import make_folder

    figures = folder / "figures"
    if figures.exists() and not figures.is_dir():
        raise FileExistsError(
            f"{figures} is a file where a folder is to be: move it away, or choose another --out"
        )
    for name in files:
        if (folder / name).is_dir():
            raise IsADirectoryError(
                f"{folder / name} is a folder where a file is to be: move it away, or choose another --out"
            )
    make_folder(figures)


def write_result(result: AuditResult, folder: Path) -> None:
    """An audit as numbers, as text, as figures, and as a page of all three."""
    from alignlab.figures import audit_figures
    from alignlab.report import audit_page

    write(folder / "result.json", json.dumps(result.to_dict(), indent=1))
    write(folder / "table.txt", f"{summary(result)}\n")
    pictures = _saved(audit_figures(result), folder / "figures")
    write(folder / "report.html", audit_page(result, pictures))


def write(path: Path, text: str) -> None:
    """Replace a file as a whole, or leave it as it was."""
    from alignlab.store.atomic import cannot_write, temporary_name

    try:
        with temporary_name(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")  # a locale may lack the signs of a table
            unfinished.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def summary(result: AuditResult) -> str:
    """The table, the verdict and its caveats."""
    caveats = "".join(f"\n  caveat: {caveat}" for caveat in result.verdict.caveats)
    return f"{result.table()}\n\nverdict: {result.verdict}\n  {result.verdict.text}{caveats}"


def report(result: AuditResult, folder: Path) -> None:
    """Tell an audit on the terminal."""
    claim = result.claim
    typer.echo(
        f"Differences in {claim.outcome}, seed by seed; > 0 means that the treatment ({claim.treatment.label}) is better,"
    )
    typer.echo(f"and nothing below {claim.smallest_effect:g} matters.\n")
    typer.echo(summary(result))
    typer.echo(summed_up(result.computed, len(result.run_names), folder))


def summed_up(computed: int, runs: int, folder: Path) -> str:
    """How much had to be computed, and where it is."""
    if computed:
        others = ", the others were in the store" if computed < runs else ""
        return f"\n{computed} of {runs} runs computed{others}. Everything is in {folder}"
    return f"\nnothing to compute: all {runs} runs were in the store. Everything is in {folder}"
