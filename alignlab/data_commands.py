"""The command line's ``alignlab data``: which data sets are here, where, and how to get the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(
    help="The data sets: what is here, where, and how to get the rest.", no_args_is_help=True
)


@data_app.command("list")
def data_list() -> None:
    """List the data sets: where they are, or that they are not here.

    Example: alignlab data list
    """
    from alignlab.training import datafiles

    for row in datafiles.describe():
        where = row.where or f"alignlab data fetch {row.name}"
        typer.echo(f"{row.name:<14} {row.status:<12} {row.size / 1e6:>7.1f} MB  {where}")


@data_app.command("path")
def data_path(name: Annotated[str, typer.Argument(help="A data set.")]) -> None:
    """Print the folder of a data set.

    Example: alignlab data path mnist
    """
    from alignlab.training import datafiles
    from alignlab.training.errors import DataError

    found = datafiles.embedded(name) if name == "mnist_small" else datafiles.locate(name)
    if found is None:
        raise DataError(f"{name} is not on this machine: alignlab data fetch {name}, or set ALIGNLAB_DATA")
    typer.echo(found)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A data set.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to; by default where alignlab looks for it.", show_default=False),
    ] = None,
) -> None:
    """Download a data set, checked, from the public mirrors.

    Example: alignlab data fetch fashion_mnist
    """
    from alignlab.training import datafiles

    typer.echo(datafiles.fetch(name, folder=out))
