"""``bnas search``: what was trained in the folder of a run, searched, and searched again by other settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnas import cli_options as options

if TYPE_CHECKING:
    from rich.table import Table

    from bnas.winners import Winners


def search(
    run: options.Run,
    changes: options.Changes = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    source: options.Source = None,
    verbose: options.Verbose = False,
) -> None:
    """Search the super-network that `bnas train` left in a folder; --set gives the search other settings."""
    from bnas.run_folder import RunFolder

    with options.watched(verbose) as (console, watch):
        folder = RunFolder.open(run, source, changes=tuple(changes or ()), watch=watch)
        folder.begin_search(resume=resume, overwrite=overwrite)
        winners = folder.steps.search()
    console.print(table(winners))
    options.say(console, f"The front is in {run / 'pareto.json'}; `bnas export {run}` writes these and measures them")


def table(winners: Winners) -> Table:
    """A table for the terminal: what is handed back, with what was measured on the validation data."""
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
