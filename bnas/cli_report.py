"""``bnas report``: what a run found, as one HTML file."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run; it may be unfinished.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for report.html and report/; by default the run's.")
    ] = None,
) -> None:
    """Write the report of a run: one HTML file that needs no network, and every plot as PNG and CSV."""
    with _uncollected():
        from bnas.page import write_page

        typer.echo(f"The report is in {write_page(run, output)}")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Looking for garbage takes an eighth of the time, and what importing and drawing leave is let go at the end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def report_told(run: Path) -> str:
    """Write the report of a run that came to its end; returns what to tell, also where that cannot be done."""
    from bnas.passes.errors import BnasError

    try:
        from bnas.page import write_page

        return f"The report is in {write_page(run)}"
    except BnasError as error:  # the run itself is complete
        return f"There is no report: {error}"
