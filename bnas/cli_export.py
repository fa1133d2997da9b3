"""``bnas export``: the winners of a search as modules and ONNX files, or one sub-network as one file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnas import cli_options as options

if TYPE_CHECKING:
    from bnas.run_folder import RunFolder


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
    from bnas.run_folder import RunFolder
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
    from bnas.delivery import one_sample
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
