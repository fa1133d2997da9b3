"""What a person reads in the terminal: progress, and mistakes in a few lines instead of a traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bnas.passes import PIPELINE
from bnas.passes.errors import BnasError
from bnas.run.job import Watch
from bnas.runtime.storage.files import why

if TYPE_CHECKING:
    from rich.console import Console

    from bnas.run.budget import Plan
    from bnas.runtime import EpochRecord, SuperNetwork
    from bnas.runtime import Progress as Step
    from bnas.search import Evaluation


# Progress in the terminal.


@contextmanager
def watching(console: Console, verbose: bool = False) -> Iterator[Watch]:
    """A `Watch` that shows the phases of a job, with bars for training and search, on `console`.

    With `verbose` also the passes that found the super-network, and what each left alone. Where `console` is no
    terminal there are lines instead of bars.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        training = bars.add_task("training", visible=False)
        searching = bars.add_task("searching", visible=False)

        def on_step(step: Step) -> None:
            text = f"training, stage {step.stage + 1}, epoch {step.epoch + 1}, loss {step.loss:.3f}"
            bars.update(training, visible=True, total=step.steps, completed=step.step + 1, description=text)
            tell(f"{text}, step {step.step + 1} of {step.steps}", (step.step + 1) % max(1, step.steps // 20) == 0)

        def on_evaluation(evaluation: Evaluation, total: int) -> None:
            last = evaluation.failure or f"last accuracy {100 * evaluation.values['accuracy']:.2f} %"
            text = f"searching, {last}"
            bars.update(searching, visible=True, total=total, completed=evaluation.index + 1, description=text)
            tell(f"{text}, evaluation {evaluation.index + 1} of {total}", (evaluation.index + 1) % 20 == 0)

        def tell(text: str, due: bool) -> None:
            if due and not console.is_terminal:
                console.print(text, markup=False)

        def on_epoch(record: EpochRecord) -> None:
            metrics = ", ".join(f"{name} {100 * value:.2f} %" for name, value in record.metrics.items())
            console.print(
                f"epoch {record.epoch + 1}: mean loss {record.loss:.4f}; {metrics or 'no validation data'}",
                markup=False,
            )

        def on_supernet(supernet: SuperNetwork) -> None:
            for line in passes_of(supernet) if verbose else ():
                console.print(line, markup=False, highlight=False)

        def on_phase(name: str) -> None:
            console.print(name, style="bold", markup=False)

        def on_plan(plan: Plan) -> None:
            console.print(plan_table(plan))

        yield Watch(on_phase, on_supernet, on_step, on_epoch, on_evaluation, on_plan)


def plan_table(plan: Plan) -> Table:
    """What the budget of a run is spent on, from now on."""
    shown = Table(title="the plan", title_justify="left")
    for column in ("phase", "what", "time"):
        shown.add_column(column, justify="right" if column == "time" else "left")
    for row in plan.rows():
        shown.add_row(*row)
    return shown


def passes_of(supernet: SuperNetwork) -> Iterator[str]:
    """The passes in order, each with what it left alone; then what was found."""
    for name in PIPELINE.names:
        refusals = supernet.analysis.refusals.get(name, ())
        yield f"pass {name}: {f'{len(refusals)} left alone' if refusals else 'nothing left alone'}"
        yield from (f"    {one.place}: {one.reason}" for one in refusals)
    space = supernet.space
    yield f"{len(space.blocks)} blocks, {len(space.widths)} widths, {len(space.kernels)} kernels"


# What a person reads who made a mistake, or whose machine lacks something: a few lines instead of a traceback.


def told(error: Exception) -> str | None:
    """What to tell of `error`; None where it is a fault of bnas or of code that a user brought, to be seen whole."""
    if isinstance(error, BnasError):
        return _plain(str(error) + "".join(f"\n  {note}" for note in getattr(error, "__notes__", ())))
    if isinstance(error, torch.OutOfMemoryError):
        first = str(error).split(". ")[0]
        return f"{first}: a smaller batch_size, batch_size_val or accumulate instead of large batches needs less"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and (full or error.filename is not None):
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}{why(error) if full else error.strerror} (-v shows where)"
    return None


def _plain(text: str) -> str:
    """A text without characters that steer a terminal: a file of somebody else may have them in any name."""
    return "".join(one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in text)
