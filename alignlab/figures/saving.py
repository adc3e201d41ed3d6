"""Writing figures to disk, each file whole or not at all and the same bytes for the same figure."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.figures.style import RC
from alignlab.store.atomic import temporary_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_METADATA: dict[str, dict[str, str | None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def save(
    figure: Figure, path: str | os.PathLike[str], formats: str | Iterable[str] | None = None
) -> list[Path]:
    """Write the figure once a format, each file whole or not at all, and return the paths.

    ``path`` goes without the format: ``save(figure, "out/angles")`` writes ``out/angles.png`` and ``out/angles.svg``. Where it
    has one, ``out/angles.pdf``, that is the file, and by default the only one.

    A file is written beside its target under a temporary name, flushed to disk, then moved over it. The same figure
    gives the same bytes: no date is written. Formats are matplotlib's: png, svg, pdf, ...; one, or several.

    Raises:
        ValueError: for a format that matplotlib cannot write, and for none.
        OSError: where a file cannot be written; it names the file.
    """
    import matplotlib

    base, known = Path(path), figure.canvas.get_supported_filetypes()
    ending = base.suffix[1:]
    if formats is None:
        formats = ending if ending in known else ("png", "svg")
    formats = (formats,) if isinstance(formats, str) else tuple(formats)
    if ending in formats:
        base = base.with_suffix("")
    if not formats:
        raise ValueError(f"no format to write {path} in: give some, png or svg, or leave formats out")
    for suffix in formats:
        if suffix not in known:
            raise ValueError(f"cannot write a figure as {suffix!r}; choose from {', '.join(sorted(known))}")
    base.parent.mkdir(parents=True, exist_ok=True)
    paths = [base.with_name(f"{base.name}.{suffix}") for suffix in formats]
    layout = figure.get_layout_engine()
    with matplotlib.rc_context(RC):
        try:
            for path, suffix in zip(paths, formats, strict=True):
                try:
                    _write(figure, path, suffix)
                except OSError as error:  # of a full disk it says no more than that
                    raise OSError(error.errno, error.strerror, str(path)) from error
                figure.set_layout_engine("none")  # laid out once: as long as a drawing, and formats are alike
        finally:
            figure.set_layout_engine(layout)
    return paths


def svg(figure: Figure) -> bytes:
    """The figure as the SVG file that :func:`save` writes."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(file, format="svg", metadata=_METADATA["svg"])
    return file.getvalue()


def _write(figure: Figure, path: Path, suffix: str) -> None:
    """One format through a temporary file in the same folder."""
    with temporary_name(path) as unfinished:
        with open(unfinished, "xb") as file:
            figure.savefig(file, format=suffix, metadata=_METADATA.get(suffix))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
