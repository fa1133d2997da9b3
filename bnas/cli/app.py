"""The command line: train, search and export a super-network, and look at the results."""

from __future__ import annotations

import atexit
import json
import os
import platform
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .commands import prune, report, run, search, told_of_run, train, tune
from .files import bench, export, optuna
from .init import init
from .operators import operators

if TYPE_CHECKING:
    from bnas.run.job import Splits

    from .inspection import Inspection

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

for command in (init, run, train, search, tune, export, prune, bench, report, optuna, operators):
    app.command()(command)


TOGETHER = ("run", "train", "search", "tune")
"""Commands that torchrun can start as several processes that work together."""


def _told_version(wanted: bool) -> None:
    """Print the versions that a bug report needs, and exit."""
    if not wanted:
        return
    from bnas.run.files.output import versions

    found = versions()
    told = [f"{name} {found.get(name, 'is not installed')}" for name in ("bnas", "torch", "onnxruntime")]
    typer.echo(", ".join([*told, f"Python {platform.python_version()}"]))
    raise typer.Exit


@app.callback(help=__doc__)
def begin(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_told_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Refuse several processes for a command that only works in one."""
    command = context.invoked_subcommand
    if command in TOGETHER or int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        return
    if os.environ["RANK"] != "0":  # only process 0 prints the message
        raise typer.Exit(1)
    from bnas.runtime import ParallelError

    raise ParallelError(f"bnas {command} runs in one process: start it without torchrun")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all results.")] = Path("bnas-demo"),
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the pre-training.")] = 20,
    verbose: options.Verbose = False,
) -> None:
    """Run everything on small real images (scikit-learn's handwritten digits), in a few minutes on two cores."""
    from bnas.config.file import load_config
    from bnas.run.files.lock import kept
    from bnas.run.files.output import open_output
    from bnas.run.pipeline import free_in
    from bnas.run.runner import begin
    from bnas.runtime.storage.files import there

    configuration = load_config(Path(__file__).with_name("demo.json"))
    data, name = configuration.model_dump(mode="json"), str(configuration.weights)
    said: dict[str, Any] = {"resume": resume, "overwrite": overwrite}
    with options.watched(verbose) as (console, watch), kept(output) as ledger:
        open_output(output, data, **said, free=free_in(output))
        if there(output / name):
            ledger.check(name)
        else:
            _pretrain(output / name, epochs)
        steps = begin(configuration, output, output, watch, resume=True)
        told_of_run(console, steps, steps.all())


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration file, for editors that complete and check it."""
    from bnas.config.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _pretrain(path: Path, epochs: int) -> None:
    import safetensors.torch
    import torch
    from rich.progress import Progress

    from bnas.data.digits import pretrain, splits
    from bnas.runtime.storage.files import write_bytes

    torch.manual_seed(0)
    data: Splits = splits()
    with Progress() as bars:
        task = bars.add_task("pre-training", total=epochs)

        def show(epoch: int, loss: float) -> None:
            bars.update(task, completed=epoch, description=f"pre-training, loss {loss:.3f}")

        model = pretrain(data, epochs, show)
    write_bytes(path, safetensors.torch.save(model.state_dict()))


@app.command()
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="torchvision:NAME, package.module:FACTORY, file.py:FACTORY, file.pt2 or a configuration file."
        ),
    ],
    inputs: options.Inputs = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option("--dynamic", metavar="NAME:AXIS=TITLE", help="Name a dynamic axis, such as input_ids:1=length."),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option("--sizes", metavar="TITLE=SIZE", help="Size of a dynamic axis for the costs: height=64."),
    ] = None,
    changes: options.Changes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Print the graph with its axis types instead.")] = False,
) -> None:
    """Show which parts of a model can shrink, which cannot, and why.

    Give one --input for each input of the model; the default is one of 1,3,224,224. An input without a type is tried
    with floating-point numbers first, and with whole numbers if the model refuses those. A configuration file names the
    inputs and their dynamic axes itself, and its section elasticity applies; --set changes it.
    """
    from bnas.config.formats import FORMATS
    from bnas.passes import describe

    if Path(model).suffix in FORMATS:
        if inputs or dynamic:
            raise typer.BadParameter("a configuration names its inputs: use --set instead of --input and --dynamic")
        found = _of_configuration(Path(model), changes or [], sizes or [])
    else:
        if changes:
            raise typer.BadParameter("--set changes a configuration: give its file in place of a model")
        found = _of_model(model, inputs or ["1,3,224,224"], dynamic or [], sizes or [])
    if as_json or graph:
        typer.echo(json.dumps(found.to_json(), indent=2) if as_json else describe(found.supernet.analysis))
        return
    from rich.console import Console

    Console().print(*found.tables(), sep="\n")


def _of_model(model: str, inputs: list[str], dynamic: list[str], sizes: list[str]) -> Inspection:
    from bnas.data.inputs import parse_dynamic, parse_input, parse_sizes
    from bnas.data.sources import load_model
    from bnas.run.files.trust import code_in, remember

    from .inspection import inspect_model

    given, named, at = [parse_input(one) for one in inputs], parse_dynamic(dynamic), parse_sizes(sizes)
    remember(code_in({"model": model}, Path()).values())
    return inspect_model(model, load_model(model), given, named, at)


def _of_configuration(file: Path, changes: list[str], sizes: list[str]) -> Inspection:
    from bnas.config.file import load_config
    from bnas.data.inputs import parse_sizes
    from bnas.run.files.trust import admit

    from .inspection import inspect_configuration

    configuration, at = load_config(file, changes), parse_sizes(sizes)
    admit(file, configuration, changes)
    return inspect_configuration(configuration, file.parent, at)


def main() -> None:
    """Run the command line. A user's mistake is reported in a few lines, without a traceback, with exit status 1."""
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, warnings.showwarning, set())
        try:
            with options.interruptible():
                app()
        except KeyboardInterrupt:  # before any command has begun, so there is nothing to resume
            sys.exit(options.SIGNALS + signal.SIGINT)
        except Exception as error:
            from .terminal import told  # imported here because it loads torch, which --help does not need

            if (text := told(error)) is None:
                raise
            if isinstance(error, OSError) and {"-v", "--verbose"} & set(sys.argv):
                traceback.print_exc()
            typer.secho(f"bnas: {text}", fg="red", err=True)
            sys.exit(1)
        finally:
            atexit.register(options.no_traceback)  # it runs first, since it is registered last


def _show_warning(
    otherwise: Callable[..., None],
    shown: set[str],
    message: Warning | str,
    category: type[Warning],
    *where: Any,
    **more: Any,
) -> None:
    """Show each warning of bnas once, without the line of code that raised it."""
    if category.__module__.startswith("bnas."):
        if str(message) in shown:
            return  # such as that of an operator without ONNX rule, once for each exported network
        shown.add(str(message))
        typer.secho(f"bnas: {message}", fg="yellow", err=True)
    else:
        otherwise(message, category, *where, **more)
