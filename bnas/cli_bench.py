"""``bnas bench``: the latency of ONNX files on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from bnas.runtime import Latency


def bench(
    file: Annotated[Path, typer.Argument(help="An ONNX file.")],
    against: Annotated[Path | None, typer.Option("--against", help="Another one, measured in turns with it.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples in a run.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads within an operator.")] = None,
    runs: Annotated[int | None, typer.Option(help="Timings of each file.")] = None,
    provider: Annotated[str | None, typer.Option(help="Execution provider of ONNX Runtime.")] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option("--sizes", metavar="TITLE=SIZE", help="Size of a dynamic axis, such as length=128."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of a table.")] = False,
) -> None:
    """Measure how long an ONNX file takes on ONNX Runtime, alone or against another.

    What is not given is as `bnas.LatencySettings` has it.
    """
    from bnas.inputs import parse_sizes
    from bnas.runtime import measure_latency

    files = {str(path): path for path in (file, against) if path is not None}
    reference = str(file if against is None else against)
    given = {"batch": batch, "threads": threads, "runs": runs, "provider": provider, "sizes": parse_sizes(sizes or [])}
    settings: Any = {key: value for key, value in given.items() if value not in (None, {})}
    found = measure_latency(files, reference=reference, **settings)
    if as_json:
        typer.echo(json.dumps({name: latency.to_json() for name, latency in found.items()}, indent=2))
        return
    from rich.console import Console

    Console().print(table(found, reference))


def table(found: dict[str, Latency], reference: str) -> Table:
    """A table for the terminal; it says of each number whether it is stable, and on what it was measured."""
    from rich.table import Table

    first = next(iter(found.values()))
    about = f"batch {first.batch}, {first.threads} threads, {first.provider}, {first.machine['cpu']}"
    shown = Table(title=f"ms on ONNX Runtime {first.machine['onnxruntime']}: {about}", title_justify="left")
    shown.add_column("file", overflow="fold")
    for column in ("CPU", "quartiles", "wall clock", f"ratio to {Path(reference).name}"):
        shown.add_column(column, justify="right")
    shown.add_column("stable", overflow="fold")
    for name, latency in found.items():
        quartiles = " to ".join(f"{one:.3f}" for one in latency.quartiles_ms)
        numbers = (f"{latency.median_ms:.3f}", quartiles, f"{latency.wall_median_ms:.3f}", f"{latency.ratio:.3f}")
        shown.add_row(Path(name).name, *numbers, "yes" if latency.unstable is None else f"no: {latency.unstable}")
    return shown
