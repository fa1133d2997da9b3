"""The commands that hand on what a run found: ``bnas export``, ``bench`` and ``optuna``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from rich.table import Table

    from bnas.run.folder import RunFolder
    from bnas.runtime import Latency


# ``bnas export``: the winners of a search as modules and ONNX files, or one sub-network as one file.


def export(
    run: options.Run,
    onnx: Annotated[Path | None, typer.Option("--onnx", help="Write one sub-network to this file instead.")] = None,
    subnet: Annotated[
        str | None,
        typer.Option(
            "--subnet", help="A winner (default: the first), fastest, an evaluation by its number, a JSON file."
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise it, calibrated on the run's training data.")] = False,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Layers that stay in float (globs).")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let --onnx replace an ONNX file that bnas did not write.")
    ] = False,
    changes: options.Changes = None,
    source: options.Source = None,
    trust: options.Trust = False,
    verbose: options.Verbose = False,
) -> None:
    """Write and measure the winners of a run's search; with --onnx write one sub-network and print its accuracy."""
    from bnas.run.folder import RunFolder
    from bnas.run.verdict import verdict
    from bnas.runtime import QuantisationError

    if exclude and not int8:
        raise QuantisationError(f"--exclude {exclude[0]}: says what int8 leaves out; say --int8 too")
    wanted = [*(changes or ()), *(["export.int8=true"] if int8 else [])]
    wanted += [f"export.exclude={json.dumps(exclude)}"] if exclude else []
    with options.watched(verbose, resumes=False) as (console, watch):
        folder = RunFolder.open(run, source, changes=tuple(wanted), watch=watch, trust=trust)
        if onnx is not None:
            check_target(onnx, overwrite)
        report = folder.export() if onnx is None else None
        told = f"All files are in {run}" if onnx is None else written(folder, subnet, onnx, int8)
    if report is not None:
        console.print(report.table())
        told = "\n".join([told, *verdict(report, run, tuned=folder.job.tuning is not None)])
    options.say(console, told)


def check_target(path: Path, overwrite: bool) -> None:
    """Raise `OutputError` where a file is there that must not be replaced: of a run, or not from bnas."""
    from bnas.run.ledger import Ledger
    from bnas.run.mark import OutputError
    from bnas.runtime.onnx.file import made_by_bnas, replaceable

    if not path.is_file():
        return
    place = path.resolve()
    for run in place.parents:
        if place.relative_to(run).as_posix() in Ledger(run).files():
            raise OutputError(f"{path} is a file of the run in {run}; give another name")
    if not replaceable(path):
        raise OutputError(f"{path} is there and is no ONNX file; give another name, or move it away first")
    if path.stat().st_size and not (overwrite or made_by_bnas(path)):
        raise OutputError(f"{path} is an ONNX file that bnas did not write; give another name, or say --overwrite")


def written(folder: RunFolder, subnet: str | None, path: Path, quantised: bool) -> str:
    """Write one sub-network to an ONNX file; what came of it."""
    from bnas.runtime import Int8, evaluate_onnx, export_onnx, origin
    from bnas.runtime.example import one_sample

    folder.check_export()
    chosen, job = folder.subnet(subnet or next(iter(folder.steps.winners().found))), folder.job
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
    target: Annotated[
        list[str] | None,
        typer.Option(help='Where it runs: onnxruntime, openvino, or JSON such as {"kind": ...}. May be given again.'),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option("--sizes", metavar="TITLE=SIZE", help="Size of a dynamic axis, such as length=128."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of a latency_table.")] = False,
) -> None:
    """Measure the latency of an ONNX file on ONNX Runtime or other targets, alone or against another file.

    Defaults are those of `bnas.LatencySettings`.
    """
    from bnas.data.inputs import parse_sizes
    from bnas.run.verdict import remedy
    from bnas.runtime import measure_latency

    files = {str(path): path for path in (file, against) if path is not None}
    reference = str(file if against is None else against)
    given = {"batch": batch, "threads": threads, "runs": runs, "provider": provider, "sizes": parse_sizes(sizes or [])}
    settings: Any = {key: value for key, value in given.items() if value not in (None, {})}
    targets = {text: {"target": _target(text)} for text in target or ()} or {"": {}}
    found = {text: measure_latency(files, reference=reference, **settings, **one) for text, one in targets.items()}
    if as_json:
        told = {text: {name: one.to_json() for name, one in each.items()} for text, each in found.items()}
        typer.echo(json.dumps(told if len(told) > 1 else next(iter(told.values())), indent=2))
        return
    from rich.console import Console

    for each in found.values():
        Console().print(latency_table(each, reference))
    if unstable := [one for each in found.values() for one in each.values() if not one.stable]:
        what, wanted = remedy(unstable)
        typer.echo(f"{what}: say --runs {wanted}")


def _target(text: str) -> Any:
    """What an option gives: the name of a target, or JSON."""
    from bnas.runtime import LatencyError

    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        told = 'it begins as JSON does, and is none; write {"kind": "openvino"} or a name such as openvino'
        raise LatencyError(f"--target {text}: {told} ({error})") from None


def latency_table(found: dict[str, Latency], reference: str) -> Table:
    """A latency_table for the terminal; it says of each number whether it is stable, and on what it was measured."""
    from rich.markup import escape
    from rich.table import Table

    from bnas.runtime.latency.machine import place_of

    first = next(iter(found.values()))
    about = f"batch {first.batch}, {first.threads} threads, {first.machine.get('cpu', 'a machine of the target')}"
    shown = Table(title=f"ms on {place_of(first.machine)}: {about}", title_justify="left")
    shown.add_column("file", overflow="fold")
    clock = {"cpu": "CPU", "wall": "wall clock"}[first.clock]
    for column in (clock, "quartiles", "wall clock", f"ratio to {escape(Path(reference).name)}"):
        shown.add_column(column, justify="right")
    shown.add_column("stable", overflow="fold")
    for name, latency in found.items():
        quartiles = " to ".join(f"{one:.3f}" for one in latency.quartiles_ms)
        numbers = (f"{latency.median_ms:.3f}", quartiles, f"{latency.wall_median_ms:.3f}", f"{latency.ratio:.3f}")
        stable = "yes" if latency.unstable is None else f"no: {latency.unstable}"
        shown.add_row(escape(Path(name).name), *numbers, stable)
    return shown


# ``bnas optuna``: a search as a study of Optuna.


def optuna(
    run: options.Run,
    storage: Annotated[str, typer.Option(help="Storage of Optuna; a server or a file.")] = "sqlite:///optuna.db",
    study: Annotated[str | None, typer.Option(help="Name of the study; by default that of the folder.")] = None,
) -> None:
    """Write the evaluations of a run's search into a study of Optuna, for its dashboard and plots.

    Say it again while the search goes on: new evaluations are added. No code of the run is executed.
    """
    from bnas.loggers import to_optuna
    from bnas.page.recorded import read_run
    from bnas.run.mark import OutputError

    recorded = read_run(run)
    if recorded.search is None:
        raise OutputError(f"{run} holds no evaluations yet; `bnas search {run}` makes them")
    found = to_optuna(recorded.search, storage, study or recorded.name)
    typer.echo(f"{len(found.trials)} trials are in the study {found.study_name!r}; optuna-dashboard {storage}")
