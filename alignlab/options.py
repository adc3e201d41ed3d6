"""The options that several commands share, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder for what is made; by default out/NAME (figures: figures/NAME).",
        show_default=False,
    ),
]
Width = Annotated[
    float | None,
    typer.Option(
        "--width",
        help="Of each figure, in millimetres: a column of a page has about 85, a page 180. By default what they need.",
        min=60,
        max=1000,
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, help="The seed; for an audit or a study, the first of its seeds.", show_default=False
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Processes to run on; by default one a core that may be used, of a GPU one.",
        show_default=False,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        help="Run on a dask cluster instead: its scheduler's address, tcp://host:8786.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", help="What to train on: cpu, cuda, cuda:1; several processes share a GPU."),
]
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        help="A module that adds rules and tasks of your own, imported first, by workers too; also of this folder. Repeatable.",
        show_default=False,
    ),
]


def where_to(workers: int | None, scheduler: str | None, device: str) -> int | str:
    """How many processes, or which scheduler, the options ask for."""
    if scheduler is not None and workers is not None:
        raise typer.BadParameter("--scheduler has workers of its own: leave out --workers")
    if scheduler is not None and not scheduler.strip():
        raise typer.BadParameter("--scheduler is empty: give an address, tcp://host:8786, or leave it out")
    alone = not device.startswith("cpu")  # a GPU is kept busy by one process
    return scheduler or workers or (1 if alone else _cores())


def _cores() -> int:
    """How many this process may use: in a container or a job often fewer than the machine has."""
    from dask.system import cpu_count

    return max(1, int(cpu_count()))


def imported(modules: list[str] | None) -> None:
    from alignlab.training.importing import import_own

    if modules:
        import_own(modules)


def start_ahead(where: int | str, folder: Path) -> None:
    """Processes for a new folder, whose runs will all be computed, begin to import beside our own imports."""
    from alignlab.training import forking

    if isinstance(where, int) and where > 1 and not (folder / "store").exists():
        forking.start()
