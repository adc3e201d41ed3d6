"""The command line: run a spec, audit a claim, answer a question, draw a store or compact it, find the data.

On bad input one clear line and exit code 2.
"""

from __future__ import annotations

import atexit
import gc
import io
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from alignlab.complaints import ended
from alignlab.data_commands import data_app
from alignlab.options import (
    Device,
    Import,
    Out,
    Scheduler,
    Seed,
    Width,
    Workers,
    imported,
    start_ahead,
    where_to,
)
from alignlab.output import draw_runs, make_room, own_name, progress, report, summed_up, write, write_result

app = typer.Typer(
    name="alignlab",
    help="Find out why a learning rule wins.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")


def _tell_version(wanted: bool) -> None:
    if wanted:
        from alignlab import __version__

        typer.echo(f"alignlab {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """What all commands share."""


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="A run's spec, a YAML or JSON file.")],
    out: Out = None,
    seed: Seed = None,
    device: Device = "cpu",
    own: Import = None,
) -> None:
    """Train one run from a spec, record it and draw it.

    Example: alignlab run fa.yaml --out out/fa --seed 3    with fa.yaml holding:  {task: mnist_small, rule: fa, steps: 500}
    """
    from alignlab.gallery import is_claim
    from alignlab.report import run_page
    from alignlab.store import Segments, open_runs
    from alignlab.training import fitting
    from alignlab.training.cells import run_cell
    from alignlab.training.errors import SpecError, SweepError
    from alignlab.training.naming import cell_name
    from alignlab.training.spec import RunSpec, read_yaml

    if not spec.is_file():
        raise SpecError(f"no spec at {spec}: expected a YAML or JSON file")
    if is_claim(read_yaml(spec)):
        raise SpecError(f"{spec} is a claim: alignlab audit {spec}")
    imported(own)
    made = RunSpec.from_yaml(spec)
    made = made if seed is None else made.changed(seed=seed)
    folder = out or Path("out") / spec.stem
    make_room(folder, "spec.yaml", "report.html")
    segments, name = Segments(folder / "store").prepare(), cell_name(made)
    if segments.has(name):
        typer.echo("nothing to compute: the run is in the store")
    else:
        fitting.check([made])
        with progress()(f"{made.rule_name} on {made.task}", made.steps) as notify:
            try:
                run_cell(made, folder / "store", name, progress=notify, device=device)
            except RuntimeError as error:  # ifa meets pooling, a module that no rule takes
                raise SweepError(f"{spec}: {error}") from error
    write(folder / "spec.yaml", made.to_yaml())
    finished = segments.read(name)
    for quantity in ("train_loss", "validation_loss", "test_loss", "test_accuracy"):
        if quantity in finished:
            values = finished[quantity].dropna("step").values
            typer.echo(f"{quantity:<16} {f'{values[-1]:.4g}' if values.size else '–'}")
    typer.echo(f"status           {finished['status'].item()}")
    runs = open_runs(folder / "store")
    write(folder / "report.html", run_page(runs, draw_runs(runs, folder / "figures")))


@app.command()
def audit(
    claim: Annotated[
        str,
        typer.Argument(
            metavar="NAME|CLAIM.yaml",
            help="A named claim (bp_beats_fa, sign_sync), or one of your own, a YAML or JSON file.",
        ),
    ],
    out: Out = None,
    seed: Seed = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds",
            min=2,
            max=10**6,
            help="How many seeds in place of the claim's own number; runs that are there already are kept.",
            show_default=False,
        ),
    ] = None,
    studies: Annotated[
        int | None,
        typer.Option(
            "--studies",
            min=1,
            help="In how many studies, each with its part of the seeds, learning rates and the like are chosen anew "
            "(tuning_studies), in place of the claim's own number.",
            show_default=False,
        ),
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(
            "--controls",
            help="Controls in place of the claim's own, with commas between them, the primary one first: magnitude, "
            "global_magnitude, replayed_magnitude, weight_norm, feedback_scale, alignment, tuning, init_scale, "
            "gradient_clipping, frozen_hidden, placebo, spike_in.",
            show_default=False,
        ),
    ] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    device: Device = "cpu",
    own: Import = None,
) -> None:
    """Audit a claim about why a method wins: table, verdict, figures, and a page of all (report.html).

    Example: alignlab audit sign_sync --out out/sign_sync

    Example: alignlab audit sign_sync --seeds 16 --controls magnitude,alignment,placebo
    """
    where = where_to(workers, scheduler, device)
    start_ahead(where, out or Path("out") / Path(claim).stem)
    from alignlab import gallery
    from alignlab.audit import audit as run_audit
    from alignlab.training.workers import Workers as Place

    imported(own)
    name, found = gallery.claim(claim)
    if (seed, seeds, studies) != (None, None, None):  # together, for studies share the seeds out
        split = found.tuning_studies if studies is None else studies
        found = found.changed(seeds=gallery.counted_on(found.seeds, seed, seeds), tuning_studies=split)
    if controls is not None:
        named = tuple(filter(None, map(str.strip, controls.split(","))))
        if not named:
            raise typer.BadParameter("--controls is empty: name some (magnitude,tuning), or leave it out")
        found = found.changed(controls=named)
    folder = out or Path("out") / name
    make_room(folder, "result.json", "table.txt", "report.html")
    typer.echo("\n  ".join(filter(None, (found.statement, found.source))) + "\n")
    with Place(where, device=device) as place:
        result = run_audit(found, store=folder / "store", workers=place, phase=progress())
    write_result(result, folder)
    report(result, folder)


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="A named study: asymmetric_conv, dfa_ifa, eigen_alignment, kolen_pollack_mirror, mnist_fa, soap, xor."
        ),
    ],
    full: Annotated[bool, typer.Option("--full", help="Use the full data sets.")] = False,
    out: Out = None,
    seed: Seed = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    device: Device = "cpu",
) -> None:
    """Answer a question by training: table, figures.

    Example: alignlab study xor --out out/xor
    """
    folder = out or Path("out") / (f"{name}_full" if full else name)
    where = where_to(workers, scheduler, device)
    start_ahead(where, folder)
    from alignlab import gallery
    from alignlab.figures import save
    from alignlab.training.workers import Workers as Place

    found = gallery.study(name)
    make_room(folder, "table.txt")
    typer.echo(f"{found.question}\n  {found.source}\n")
    with Place(where, device=device) as place:
        result = found.run(folder / "store", full=full, seed=seed, workers=place, phase=progress())
    table = result.table()
    write(folder / "table.txt", f"{table}\n")
    for figure_name, figure in result.figures().items():
        save(figure, folder / "figures" / figure_name)
    typer.echo(f"{table}\n{summed_up(result.computed, result.total, folder)}")


@app.command()
def figures(
    store: Annotated[Path, typer.Argument(help="A folder that runs were recorded to.")],
    out: Out = None,
    width: Width = None,
) -> None:
    """Draw what a store's content allows: angles, gains, spectra, curves over training and learning rates.

    Example: alignlab figures runs/fa --out figures/fa --width 85
    """
    from alignlab.figures import fitted
    from alignlab.store import open_runs

    runs = open_runs(store).load()
    with nullcontext() if width is None else fitted(width):
        draw_runs(runs, out or Path("figures") / own_name(store))


@app.command()
def compact(
    store: Annotated[Path, typer.Argument(help="A folder that runs were recorded to.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The zarr to write; by default STORE/compact.zarr.", show_default=False),
    ] = None,
) -> None:
    """Compact a store's runs into one zarr, so that thousands open at once and lazily.

    The recorded files stay as they are. After more runs were recorded, the same command takes them in.

    Example: alignlab compact runs/sweep
    """
    from alignlab.store import compact as compact_store
    from alignlab.store import open_runs

    path = compact_store(store, out, phase=progress())
    runs = open_runs(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    typer.echo(f"{runs.sizes.get('run', 1)} run(s) in {path} ({size / 1e6:.1f} MB)")


def main() -> None:
    """The entry point: turns every expected error into one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every console has the signs of a table
    if sys.argv[1:] in ([], ["data"]):
        sys.argv.append("--help")
    atexit.register(
        gc.freeze
    )  # Python looks for garbage as it ends, a second long, in what is thrown away whole
    sys.exit(ended(partial(app, standalone_mode=False)))
