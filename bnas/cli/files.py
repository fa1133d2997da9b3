"""Commands that pass on the results of a run: ``bnas export``, ``bench`` and ``optuna``."""

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
    from bnas.runtime import Latency, LayerTimes


# ``bnas export``: the winners of a search as modules and ONNX files, or one sub-network as one file.


def export(
    run: options.Run,
    onnx: Annotated[Path | None, typer.Option("--onnx", help="Write only one sub-network, to this file.")] = None,
    subnet: Annotated[
        str | None,
        typer.Option(
            "--subnet", help="A winner (default: the first), fastest, the number of an evaluation, or a JSON file."
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise to int8; calibrates on the training data.")] = False,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Layers to keep in float (globs).")] = None,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="With --onnx: fix all sizes to those of one sample, as some runtimes need.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Allow --onnx to replace an ONNX file that bnas did not write.")
    ] = False,
    changes: options.Changes = None,
    source: options.Source = None,
    trust: options.Trust = False,
    verbose: options.Verbose = False,
) -> None:
    """Export and measure the winners of a run, and write its report. With --onnx, export one sub-network instead."""
    from bnas.run.files.mark import OutputError
    from bnas.run.folder import RunFolder
    from bnas.runtime import QuantisationError

    from .commands import told_of_run

    if exclude and not int8:
        raise QuantisationError(f"--exclude {exclude[0]}: names a layer that int8 leaves in float; add --int8")
    if fixed and onnx is None:
        raise OutputError("--fixed: fixes the sizes of one file; also give --onnx FILE, and --subnet NAME")
    wanted = [*(changes or ()), *(["export.int8=true"] if int8 else [])]
    wanted += [f"export.exclude={json.dumps(exclude)}"] if exclude else []
    with options.watched(verbose, resumes=False) as (console, watch):
        folder = RunFolder.open(run, source, changes=tuple(wanted), watch=watch, trust=trust)
        if onnx is not None:
            check_target(onnx, overwrite)
            options.say(console, written(folder, subnet, onnx, int8, fixed))
        else:
            told_of_run(console, folder.steps, folder.export())


def check_target(path: Path, overwrite: bool) -> None:
    """Raise `OutputError` if `path` is a file that must not be replaced: it belongs to a run, or is not from bnas."""
    from bnas.run.files.ledger import Ledger
    from bnas.run.files.mark import OutputError
    from bnas.runtime.onnx.file import made_by_bnas, replaceable

    if not path.is_file():
        return
    place = path.resolve()
    for run in place.parents:
        if place.relative_to(run).as_posix() in Ledger(run).files():
            raise OutputError(f"{path} is a file of the run in {run}; choose another name")
    if not replaceable(path):
        raise OutputError(f"{path} exists and is not an ONNX file; choose another name, or move it away first")
    if path.stat().st_size and not (overwrite or made_by_bnas(path)):
        raise OutputError(f"{path} is an ONNX file that bnas did not write; choose another name, or use --overwrite")


def written(folder: RunFolder, subnet: str | None, path: Path, quantised: bool, fixed: bool = False) -> str:
    """Write one sub-network to an ONNX file; return the report."""
    from bnas.runtime import Int8, OnnxModule, export_onnx, origin
    from bnas.runtime.example import one_sample

    folder.check_export()
    chosen, job = folder.subnet(subnet or next(iter(folder.steps.winners().found))), folder.job
    how = job.int8 or Int8()
    how = how if how.calibration is not None else replace(how, calibration=job.data.train)
    settings = replace(how, validation=job.data.test, metric=job.quality.measure) if quantised else None
    module, example, metadata = folder.module(chosen), one_sample(folder.supernet), origin(folder.supernet, chosen)
    report = export_onnx(module, path, example, settings, metadata=metadata, fixed=fixed)
    before = " before int8" if quantised else ""
    error = f"largest relative difference from PyTorch{before} {report.max_relative_error:.1e}"
    told = f"{report.path}: {report.bytes:,} bytes, {error}\n"
    where, show = f"test {job.quality.name} on ONNX Runtime", job.quality.show
    if report.int8 is None:
        return f"{told}{where}: {show(job.quality.measure(OnnxModule(report.path), job.data.test))}"
    assert report.int8.metric_int8 is not None
    assert report.int8.metric_fp32 is not None
    return f"{told}{where}: {show(report.int8.metric_int8)}, in float {show(report.int8.metric_fp32)}"


# ``bnas bench``: the latency of ONNX files on this machine.


def bench(
    file: Annotated[Path, typer.Argument(help="An ONNX file.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="Another file, timed alternately with the first.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Batch size of the inputs.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads for each operator.")] = None,
    runs: Annotated[int | None, typer.Option(help="How often each file is timed.")] = None,
    provider: Annotated[str | None, typer.Option(help="Execution provider of ONNX Runtime.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help='What runs it: onnxruntime, openvino, or JSON such as {"kind": ...}. Repeatable.'),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option("--sizes", metavar="TITLE=SIZE", help="Size of a dynamic axis, such as length=128."),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also show where the time goes, by layer (ONNX Runtime only).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the latency of an ONNX file on ONNX Runtime or other targets, alone or against another file.

    Defaults are those of `bnas.LatencySettings`.
    """
    from bnas.data.inputs import parse_sizes
    from bnas.run.results.commands import remedy
    from bnas.runtime import layer_times, measure_latency

    files = {str(path): path for path in (file, against) if path is not None}
    reference = str(file if against is None else against)
    given = {"batch": batch, "threads": threads, "runs": runs, "provider": provider, "sizes": parse_sizes(sizes or [])}
    settings: Any = {key: value for key, value in given.items() if value not in (None, {})}
    targets: dict[str, Any] = {text: {"target": _target(text)} for text in target or ()} or {"": {}}
    times = {name: layer_times(name, **settings, **one) for name in files for one in targets.values()} if layers else {}
    found = {text: measure_latency(files, reference=reference, **settings, **one) for text, one in targets.items()}
    if as_json:
        shown = {name: {"layers": one.to_json()} for name, one in times.items()}
        told = {
            text: {name: one.to_json() | shown.get(name, {}) for name, one in each.items()}
            for text, each in found.items()
        }
        typer.echo(json.dumps(told if len(told) > 1 else next(iter(told.values())), indent=2))
        return
    from rich.console import Console

    for each in found.values():
        Console().print(latency_table(each, reference))
    for name, one in times.items():
        Console().print(layer_table(name, one))
    if unstable := [one for each in found.values() for one in each.values() if not one.stable]:
        what, wanted = remedy(unstable[0].runs)
        typer.echo(f"{what}: use --runs {wanted}")


def _target(text: str) -> Any:
    """Return the value of an option: the name of a target, or JSON."""
    from bnas.runtime import LatencyError

    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        told = 'it begins with a brace but is not valid JSON; write {"kind": "openvino"} or a name such as openvino'
        raise LatencyError(f"--target {text}: {told} ({error})") from None


def layer_table(name: str, times: LayerTimes) -> Table:
    """Return a table for the terminal: layers in the order of execution, other operators, and the sum."""
    from rich.markup import escape
    from rich.table import Table

    total, other = times.total_ms, sum(times.other.values())
    note = (
        f"Medians of {times.runs} profiled runs. A profiled run takes {times.run_ms:.3f} ms, longer than a normal run."
    )
    shown = Table(title=f"ms by layer of {escape(Path(name).name)}", title_justify="left", caption=note)
    shown.add_column("layer", overflow="fold")
    for column in ("ms", "share"):
        shown.add_column(column, justify="right", no_wrap=True)
    for layer, ms in times.layers.items():
        shown.add_row(escape(layer), f"{ms:.3f}", f"{ms / total:.1%}")
    shown.add_section()
    named = ", ".join(f"{kind} {ms:.3f}" for kind, ms in sorted(times.other.items(), key=lambda one: -one[1]))
    shown.add_row(f"other operators: {named or 'none'}", f"{other:.3f}", f"{other / total:.1%}")
    shown.add_row("all operators", f"{total:.3f}", "100.0%")
    return shown


def latency_table(found: dict[str, Latency], reference: str) -> Table:
    """Return a table for the terminal: latencies, the machine, and whether each number is stable."""
    from rich.markup import escape
    from rich.table import Table

    from bnas.passes.wording import counted
    from bnas.runtime.latency.machine import place_of

    first = next(iter(found.values()))
    threads = counted(first.threads, "thread")
    about = f"batch {first.batch}, {threads}, {first.machine.get('cpu', 'a machine of the target')}"
    shown = Table(title=f"ms on {place_of(first.machine)}: {about}", title_justify="left")
    shown.add_column("file", overflow="fold")
    clock = {"cpu": "CPU", "wall": "wall clock"}[first.clock]
    for column in (clock, "quartiles", "wall clock", f"ratio to {escape(Path(reference).name)}"):
        shown.add_column(column, justify="right", overflow="fold")
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

    Repeat the command while the search goes on: it adds the new evaluations. It executes no code of the run.
    """
    from bnas.loggers import to_optuna
    from bnas.page.recorded import read_run
    from bnas.run.files.mark import OutputError

    recorded = read_run(run)
    if recorded.search is None:
        raise OutputError(f"{run} holds no evaluations yet; `bnas search {run}` makes them")
    found = to_optuna(recorded.search, storage, study or recorded.name)
    typer.echo(f"{len(found.trials)} trials are in the study {found.study_name!r}; optuna-dashboard {storage}")
