"""The command line: ``bnas run``, ``demo``, ``inspect``, ``export``, ``bench``, ``report``, ``schema``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnas.cli_bench import bench
from bnas.cli_export import export
from bnas.cli_report import report, report_told
from bnas.passes.errors import BnasError

if TYPE_CHECKING:
    from bnas.output import Output
    from bnas.pipeline import Splits

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder for all results.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show the passes and what each left alone.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the run that the folder holds.")]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Configuration file: .json, .json5, .yaml or .yml.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for all results; by default the file's log_dir.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key, such as optimizer.base_lr=0.1.")
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Bootstrap, train, search, export and measure what a configuration file says."""
    from bnas.configuration_file import load_config
    from bnas.output import OutputError, open_output

    configuration = load_config(config, changes or ())
    folder = output or configuration.log_dir
    if folder is None:
        raise OutputError(f"{config} has no log_dir; say --output DIR")
    place = open_output(Path(folder), configuration.model_dump(mode="json"), resume=resume, overwrite=overwrite)
    _run(configuration, config.parent, place, verbose)


@app.command()
def demo(
    output: OutputOption = Path("bnas-demo"),
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the pre-training.")] = 20,
    verbose: VerboseOption = False,
) -> None:
    """Show all of it on real images: scikit-learn's handwritten digits, in a few minutes on two cores."""
    from bnas.configuration_file import load_config
    from bnas.output import open_output

    configuration = load_config(Path(__file__).with_name("demo.json"))
    place = open_output(output, configuration.model_dump(mode="json"), resume=resume, overwrite=overwrite)
    weights = place.path(str(configuration.weights))
    if not weights.is_file():
        _pretrain(weights, epochs)
    _run(configuration, output, place, verbose)


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration file, which editors complete from."""
    from bnas.configuration import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _pretrain(path: Path, epochs: int) -> None:
    import safetensors.torch
    import torch
    from rich.progress import Progress

    from bnas.digits import pretrain, splits
    from bnas.runtime.files import write_bytes

    torch.manual_seed(0)
    data: Splits = splits()
    with Progress() as bars:
        task = bars.add_task("pre-training", total=epochs)

        def show(epoch: int, loss: float) -> None:
            bars.update(task, completed=epoch, description=f"pre-training, loss {loss:.3f}")

        model = pretrain(data, epochs, show)
    write_bytes(path, safetensors.torch.save(model.state_dict()))


def _run(configuration: Any, folder: Path, output: Output, verbose: bool) -> None:
    from rich.console import Console

    from bnas.progress import watching
    from bnas.runner import run_configuration

    console = Console()
    with watching(console, verbose) as watch:
        found = run_configuration(configuration, folder, output, watch)
    console.print(found.table())
    console.print(f"All files are in {output.folder}")
    console.print(report_told(output.folder), markup=False)


app.command()(export)
app.command()(bench)
app.command()(report)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="torchvision:NAME, package.module:FACTORY or path/file.py:FACTORY.")],
    size: Annotated[str, typer.Option("--input", help="Shape of the input, the batch first.")] = "1,3,224,224",
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of tables.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Print the graph with its axis types instead.")] = False,
) -> None:
    """Tell what is elastic in a model, and what is not and why."""
    from bnas.inspection import inspect_model, parse_shape
    from bnas.passes import describe
    from bnas.sources import load_model

    found = inspect_model(model, load_model(model), parse_shape(size))
    if as_json or graph:
        typer.echo(json.dumps(found.to_json(), indent=2) if as_json else describe(found.supernet.analysis))
        return
    from rich.console import Console

    Console().print(*found.tables(), sep="\n")


def main() -> None:
    """Run the command line; an error of bnas is told in a few lines, without a traceback, with exit status 1."""
    try:
        app()
    except Exception as error:
        if not isinstance(error, BnasError):
            raise
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        typer.secho(f"bnas: {error}{notes}", fg="red", err=True)
        sys.exit(1)
