"""``bnas export``: a sub-network of a run as an ONNX file, in float or int8."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    onnx: Annotated[Path, typer.Option("--onnx", help="Where the file goes.")],
    subnet: Annotated[str, typer.Option("--subnet", help="best, smallest, fastest, or a JSON file.")] = "best",
    int8: Annotated[bool, typer.Option("--int8", help="Quantise it, calibrated on the run's training data.")] = False,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Layers that stay in float (globs).")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Folder of the configuration's files; by default where it was.")
    ] = None,
) -> None:
    """Write a sub-network of a run to an ONNX file, and tell its accuracy on ONNX Runtime."""
    from bnas.run_folder import RunFolder
    from bnas.runtime import Int8, QuantisationError, evaluate_onnx, export_onnx, origin

    if exclude and not int8:
        raise QuantisationError(f"--exclude {exclude[0]}: says what int8 leaves out; say --int8 too")
    folder = RunFolder(run, source or recorded_source(run))
    chosen = folder.subnet(subnet)
    example = [tensor[:1] for tensor in folder.supernet.example()]
    settings = Int8(folder.data.train, exclude=tuple(exclude or ()), validation=folder.data.test) if int8 else None
    metadata = origin(folder.supernet, chosen)
    report = export_onnx(folder.module(chosen), onnx, example, settings, metadata=metadata)
    typer.echo(f"{report.path}: {report.bytes:,} bytes, relative error in float {report.max_relative_error:.1e}")
    if report.int8 is None:
        typer.echo(f"test accuracy on ONNX Runtime: {evaluate_onnx(report.path, folder.data.test):.2%}")
    else:
        typer.echo(
            f"test accuracy on ONNX Runtime: {report.int8.metric_int8:.2%}, in float {report.int8.metric_fp32:.2%}"
        )


def recorded_source(run: Path) -> Path:
    """The folder that the configuration of a run was read from: as the run noted it, or else the current one."""
    note = run / "source.txt"
    return Path(note.read_text(encoding="utf-8").strip()) if note.is_file() else Path()
