"""The commands of a run: ``bnas run``, ``train``, ``search``, ``export``, ``report`` and ``bench``."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from rich.table import Table

    from bnas.run.folder import RunFolder
    from bnas.run.job import Watch
    from bnas.run.search import Winners
    from bnas.run.steps import Steps
    from bnas.runtime import Latency


# ``bnas report``: what a run found, as one HTML file.


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


# ``bnas run`` and ``bnas train``: from a configuration file.


def run(
    config: options.Config,
    output: options.LogDir = None,
    changes: options.Changes = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    verbose: options.Verbose = False,
) -> None:
    """Do all that a configuration file says: train, search, export and measure."""
    with options.watched(verbose) as (console, watch):
        steps = begun(config, output, changes or [], resume, overwrite, watch)
        report = steps.all()
    console.print(report.table())
    options.say(console, f"All files are in {steps.output.folder}\n{report_told(steps.output.folder)}")


def train(
    config: options.Config,
    output: options.LogDir = None,
    changes: options.Changes = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    verbose: options.Verbose = False,
) -> None:
    """Train the super-network of a configuration file, and no more: `bnas search` goes on from there."""
    with options.watched(verbose) as (console, watch):
        steps = begun(config, output, changes or [], resume, overwrite, watch)
        steps.train()
    folder = steps.output.folder
    options.say(console, f"The trained super-network is in {folder / 'supernet'}; `bnas search {folder}` searches it")


def begun(config: Path, output: Path | None, changes: list[str], resume: bool, overwrite: bool, watch: Watch) -> Steps:
    """The steps of the run that a configuration file and the command line ask for."""
    from bnas.config.file import load_config
    from bnas.run.output import OutputError
    from bnas.run.runner import begin

    configuration = load_config(config, changes)
    folder = output or configuration.log_dir
    if folder is None:
        raise OutputError(f"{config} has no log_dir; say --output DIR")
    return begin(configuration, config.parent, Path(folder), watch, resume=resume, overwrite=overwrite)


# ``bnas search``: what was trained in the folder of a run, searched, and searched again by other settings.


def search(
    run: options.Run,
    changes: options.Changes = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    source: options.Source = None,
    verbose: options.Verbose = False,
) -> None:
    """Search the super-network that `bnas train` left in a folder; --set gives the search other settings."""
    from bnas.run.folder import RunFolder

    with options.watched(verbose) as (console, watch):
        folder = RunFolder.open(run, source, changes=tuple(changes or ()), watch=watch)
        folder.begin_search(resume=resume, overwrite=overwrite)
        winners = folder.steps.search()
    console.print(winners_table(winners))
    options.say(console, f"The front is in {run / 'pareto.json'}; `bnas export {run}` writes these and measures them")


def winners_table(winners: Winners) -> Table:
    """A winners_table for the terminal: what is handed back, with what was measured on the validation data."""
    from rich.table import Table

    bound = f"{winners.reference:.2%} less {100 * winners.acc_delta:g} points"
    title = f"{winners.evaluations} evaluations; to reach: {bound}{' (none does)' if winners.missed else ''}"
    shown = Table(title=title, title_justify="left")
    values = list(next(iter(winners.found.values())).values)
    shown.add_column("sub-network")
    for name in values:
        shown.add_column(name, justify="right")
    for name, evaluation in winners.found.items():
        shown.add_row(name, *(_number(key, evaluation.values[key]) for key in values))
    return shown


def _number(name: str, value: float) -> str:
    if name == "accuracy":
        return f"{value:.2%}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


# ``bnas export``: the winners of a search as modules and ONNX files, or one sub-network as one file.


def export(
    run: options.Run,
    onnx: Annotated[Path | None, typer.Option("--onnx", help="Write one sub-network to this file instead.")] = None,
    subnet: Annotated[str, typer.Option("--subnet", help="best, smallest, fastest, or a JSON file.")] = "best",
    int8: Annotated[bool, typer.Option("--int8", help="Quantise it, calibrated on the run's training data.")] = False,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Layers that stay in float (globs).")] = None,
    changes: options.Changes = None,
    source: options.Source = None,
    verbose: options.Verbose = False,
) -> None:
    """Write and measure the winners of a run's search; with --onnx one sub-network, and tell its accuracy."""
    from bnas.run.folder import RunFolder
    from bnas.runtime import QuantisationError

    if exclude and not int8:
        raise QuantisationError(f"--exclude {exclude[0]}: says what int8 leaves out; say --int8 too")
    wanted = [*(changes or ()), *(["export.int8=true"] if int8 else [])]
    wanted += [f"export.exclude={json.dumps(exclude)}"] if exclude else []
    with options.watched(verbose, resumes=False) as (console, watch):
        folder = RunFolder.open(run, source, changes=tuple(wanted), watch=watch)
        report = folder.export() if onnx is None else None
        told = f"All files are in {run}" if onnx is None else written(folder, subnet, onnx, int8)
    if report is not None:
        console.print(report.table())
    options.say(console, told)


def written(folder: RunFolder, subnet: str, path: Path, quantised: bool) -> str:
    """Write one sub-network to an ONNX file; what came of it."""
    from bnas.run.delivery import one_sample
    from bnas.runtime import Int8, evaluate_onnx, export_onnx, origin

    folder.check_export()
    chosen, job = folder.subnet(subnet), folder.job
    how = job.int8 or Int8()
    how = how if how.calibration is not None else replace(how, calibration=job.data.train)
    settings = replace(how, validation=job.data.test) if quantised else None
    metadata = origin(folder.supernet, chosen)
    report = export_onnx(folder.module(chosen), path, one_sample(folder.supernet), settings, metadata=metadata)
    told = f"{report.path}: {report.bytes:,} bytes, relative error in float {report.max_relative_error:.1e}\n"
    if report.int8 is None:
        return f"{told}test accuracy on ONNX Runtime: {evaluate_onnx(report.path, job.data.test):.2%}"
    accuracies = f"{report.int8.metric_int8:.2%}, in float {report.int8.metric_fp32:.2%}"
    return f"{told}test accuracy on ONNX Runtime: {accuracies}"


# ``bnas bench``: the latency of ONNX files on this machine.


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
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of a latency_table.")] = False,
) -> None:
    """Measure how long an ONNX file takes on ONNX Runtime, alone or against another.

    What is not given is as `bnas.LatencySettings` has it.
    """
    from bnas.data.inputs import parse_sizes
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

    Console().print(latency_table(found, reference))


def latency_table(found: dict[str, Latency], reference: str) -> Table:
    """A latency_table for the terminal; it says of each number whether it is stable, and on what it was measured."""
    from rich.markup import escape
    from rich.table import Table

    first = next(iter(found.values()))
    about = f"batch {first.batch}, {first.threads} threads, {first.provider}, {first.machine['cpu']}"
    shown = Table(title=f"ms on ONNX Runtime {first.machine['onnxruntime']}: {about}", title_justify="left")
    shown.add_column("file", overflow="fold")
    for column in ("CPU", "quartiles", "wall clock", f"ratio to {escape(Path(reference).name)}"):
        shown.add_column(column, justify="right")
    shown.add_column("stable", overflow="fold")
    for name, latency in found.items():
        quartiles = " to ".join(f"{one:.3f}" for one in latency.quartiles_ms)
        numbers = (f"{latency.median_ms:.3f}", quartiles, f"{latency.wall_median_ms:.3f}", f"{latency.ratio:.3f}")
        shown.add_row(
            escape(Path(name).name), *numbers, "yes" if latency.unstable is None else f"no: {latency.unstable}"
        )
    return shown
