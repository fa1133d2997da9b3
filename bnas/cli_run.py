"""``bnas run`` and ``bnas train``: from a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bnas import cli_options as options
from bnas.cli_report import report_told

if TYPE_CHECKING:
    from bnas.job import Watch
    from bnas.steps import Steps


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
    from bnas.configuration_file import load_config
    from bnas.output import OutputError
    from bnas.runner import begin

    configuration = load_config(config, changes)
    folder = output or configuration.log_dir
    if folder is None:
        raise OutputError(f"{config} has no log_dir; say --output DIR")
    return begin(configuration, config.parent, Path(folder), watch, resume=resume, overwrite=overwrite)
