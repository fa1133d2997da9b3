"""The commands of a run: ``bnas run``, ``train``, ``search`` and ``report``."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .runs import begun, opened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bnas.run.quality import Quality
    from bnas.run.results.results import Report
    from bnas.run.steps import Steps
    from bnas.run.winners.tuned import Record
    from bnas.run.winners.winners import Winners


# ``bnas report``: the results of a run as one HTML file.


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    other: Annotated[Path | None, typer.Argument(help="Folder of a second run, to compare both on one page.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the page. Default: that of the run (two runs: the current)."),
    ] = None,
) -> None:
    """Write the report of a run, or compare two runs: one self-contained HTML file, and each plot as PNG and CSV."""
    with _uncollected():
        from bnas.page import write_comparison, write_page

        if other is not None:
            typer.echo(f"The comparison is in {write_comparison(run, other, output)}")
            return
        typer.echo(f"The report is in {write_page(run, output)}")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Disable garbage collection inside, which would take an eighth of the time; memory is freed at the end anyway."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def report_told(run: Path) -> str:
    """Write the report of a finished run; return the message for the user, also if libraries are missing.

    Raises:
        ReportError, WriteError: The report cannot be made; the files of the run itself are complete.
    """
    from bnas.passes.errors import BnasError

    try:
        from bnas.page import write_page
    except BnasError as error:
        return f"The report was not written: {error}"
    return f"The report is in {write_page(run)}"


# ``bnas run`` and ``bnas train``: from a configuration file.


def run(
    config: options.Config,
    output: options.LogDir = None,
    changes: options.Changes = None,
    budget: options.Budget = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    trust: options.Trust = False,
    verbose: options.Verbose = False,
) -> None:
    """Run a configuration file: train, search, fine-tune the winners if asked to, export and measure."""
    changes = [*(changes or []), *([] if budget is None else [f"budget={budget}"])]
    with (
        options.watched(verbose) as (console, watch),
        begun(config, output, changes, watch, resume=resume, overwrite=overwrite, trust=trust) as steps,
    ):
        told_of_run(console, steps, steps.all())


def told_of_run(console: Console, steps: Steps, report: Report) -> None:
    """Print the results of a run: the table, the place of the files, and the verdict with the next command."""
    from bnas.run.results.verdict import verdict

    remarks = verdict(report, steps.output.folder, tuned=steps.job.tuning is not None)
    told_results(console, steps, report.table(), remarks)


def told_results(console: Console, steps: Steps, table: Table, remarks: Sequence[str]) -> None:
    """Print below the progress bars: a table, the place of the files, and remarks."""
    folder = steps.output.folder
    steps.watch.on_results()
    console.print(table)
    options.say(console, f"All files are in {folder}\n{report_told(folder)}")
    options.say(console, "\n".join(remarks))


def train(
    config: options.Config,
    output: options.LogDir = None,
    changes: options.Changes = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    trust: options.Trust = False,
    verbose: options.Verbose = False,
) -> None:
    """Train the super-network of a configuration file. The next step is `bnas search`."""
    with (
        options.watched(verbose) as (console, watch),
        begun(config, output, changes, watch, resume=resume, overwrite=overwrite, trust=trust) as steps,
    ):
        steps.train()
    from bnas.run.results.commands import step_command

    folder = steps.output.folder
    told = step_command("search", folder)
    options.say(console, f"The trained super-network is in {folder / 'supernet'}; to search it: `{told}`")


def prune(
    config: options.Config,
    to: Annotated[
        str, typer.Option("--to", metavar="BOUND", help="Largest cost allowed: 'macs <= 50 %', 'latency <= 2 ms'.")
    ],
    output: options.LogDir = None,
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of the fine-tuning; 0 skips it.")] = 10,
    importance: Annotated[str, typer.Option(help="taylor, L1, L2, geometric_median or external.")] = "taylor",
    allocation: Annotated[str, typer.Option(help="global, or uniform: the same fraction of each layer.")] = "global",
    divisor: Annotated[int, typer.Option(min=1, help="Remove channels in multiples of this number.")] = 8,
    depth: Annotated[bool, typer.Option("--depth", help="Also remove whole blocks.")] = False,
    changes: options.Changes = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    trust: options.Trust = False,
    verbose: options.Verbose = False,
) -> None:
    """Prune the model of a configuration file to a bound without training a super-network; fine-tune and export it."""
    from bnas.run.pruning import PrunePlan, Pruning
    from bnas.run.results.verdict import verdict
    from bnas.search import Constraint

    bound = str(Constraint.parse(to))
    plan = PrunePlan(bound, importance, allocation, epochs, divisor, depth)
    said: Any = {"resume": resume, "overwrite": overwrite, "trust": trust, "prune": asdict(plan)}
    with options.watched(verbose) as (console, watch), begun(config, output, changes, watch, **said) as steps:
        report = Pruning(steps.job, plan, steps.output, watch).all()
        told_results(console, steps, report.table(), verdict(report.measured, steps.output.folder, exportable=False))


# ``bnas search``: search the trained super-network of a run, also repeatedly with other settings.


def search(
    run: options.Run,
    changes: options.Changes = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    source: options.Source = None,
    trust: options.Trust = False,
    verbose: options.Verbose = False,
) -> None:
    """Search the super-network of a run. Use --set to change settings of the search."""
    with options.watched(verbose) as (console, watch), opened(run, source, changes, watch, trust) as folder:
        with options.unchanged():
            folder.begin_search(resume=resume, overwrite=overwrite)
        winners = folder.steps.search()
    from bnas.run.files.names import FRONT, TUNING
    from bnas.run.results.commands import step_command
    from bnas.runtime.storage.files import there

    console.print(winners_table(winners, folder.job.quality))
    tuned = folder.job.tuning is not None
    again = tuned and there(run / TUNING)  # a fine-tuning of other winners, which are replaced
    told = step_command("tune" if tuned else "export", run, resume=again)
    what = "fine-tune these winners" if tuned else "export and measure these winners"
    options.say(console, f"The Pareto front is in {run / FRONT}; to {what}: `{told}`")


# ``bnas tune``: fine-tune the winners of a search.


def tune(
    run: options.Run,
    changes: options.Changes = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    source: options.Source = None,
    trust: options.Trust = False,
    verbose: options.Verbose = False,
) -> None:
    """Fine-tune the winners of a run's search, for example with --set fine_tune.epochs=8."""
    with options.watched(verbose) as (console, watch), opened(run, source, changes, watch, trust) as folder:
        with options.unchanged():
            folder.begin_tuning(resume=resume, overwrite=overwrite)
        record = folder.steps.tune()
    from bnas.run.results.commands import step_command

    console.print(tuning_table(record, folder.job.quality))
    told = step_command("export", run)
    options.say(console, f"The weights are in {run / 'tuning'}; to export and measure these winners: `{told}`")


def tuning_table(record: Record, quality: Quality) -> Table:
    """Return a table for the terminal: the quality of each winner on the validation data, before and after."""
    from rich.table import Table

    shown = Table(title=f"{quality.name} on the validation data", title_justify="left")
    for name in ("winner", "before", "after"):
        shown.add_column(name, justify="left" if name == "winner" else "right")
    for one in record.winners:
        shown.add_row(one.name, quality.show(one.before), "" if one.after is None else quality.show(one.after))
    return shown


def winners_table(winners: Winners, quality: Quality) -> Table:
    """Return a table for the terminal: the winners with their values, measured on the validation data."""
    from rich.table import Table

    sign = "plus" if quality.direction == "min" else "minus"
    least = f"{quality.show(winners.reference)} {sign} {quality.amount(winners.acc_delta)}"
    bound = f"{least}{' (reached by none)' if winners.missed else ''}"
    title = f"{winners.evaluations} evaluations" + ("" if winners.targets else f"; {quality.name} to reach: {bound}")
    shown = Table(title=title, title_justify="left")
    values = list(next(iter(winners.found.values())).values)
    shown.add_column("sub-network")
    for name in values:
        shown.add_column(name, justify="right")
    for name, evaluation in winners.found.items():
        label = f"{name}, {winners.targets[name]}" if name in winners.targets else name
        shown.add_row(label, *(_number(key, evaluation.values[key], quality) for key in values))
    return shown


def _number(name: str, value: float, quality: Quality) -> str:
    if name == quality.name:
        return quality.show(value)
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"
