"""Progress in the terminal: a bar with the remaining time for each phase of a run, or lines without a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from bnas.run.job import Job, Watch
from bnas.run.plan.budget import time_told
from bnas.run.quality import Quality

from .options import Unheard
from .terminal import passes_of, plan_table

if TYPE_CHECKING:
    from bnas.run.plan.budget import Plan
    from bnas.runtime import EpochRecord, SuperNetwork
    from bnas.runtime import Progress as Step
    from bnas.search import Evaluation

STEPS, EVALUATIONS = 20, 20
"""Without a terminal, a line is printed after this share of a training, or this number of evaluations."""
EPOCHS = 20
"""A phase prints lines of about so many of its epochs; every epoch that is validated has a line."""


def seconds_left(elapsed: float, done: float, total: float) -> float | None:
    """Return the remaining seconds of a phase; None at the beginning.

    The estimate uses the mean speed of the whole phase, which includes pauses such as the validation after each epoch.
    """
    return elapsed / done * max(0.0, total - done) if done > 0 else None


def _whole(seconds: float) -> str:
    """Return a duration in whole seconds, as a changing display shows it."""
    return time_told(float(math.ceil(seconds)))


class Terminal(Console):
    """The standard output; a command stops with a message when it is closed (rich stops it without one)."""

    def on_broken_pipe(self) -> None:
        """Print nothing more, and stop the command."""
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise Unheard


class TimeLeft(ProgressColumn):
    """Column with the finished part of a phase and the remaining time; at the end, the time that it took."""

    def render(self, task: Task) -> Text:
        """Return the column of one phase."""
        if task.finished:
            return Text(f"took {_whole(task.finished_time or 0.0)}")
        if task.total is None:
            return Text(_whole(task.elapsed or 0.0))
        first = task.fields.get("first", 0)
        left = seconds_left(task.elapsed or 0.0, task.completed - first, task.total - first)
        told = "" if left is None else f", {_whole(left)} left"
        return Text(f"{task.completed:.0f} of {task.total:.0f}{told}")


class Phases:
    """The phases of a run, one bar below the other, or lines if the console is not a terminal.

    Args:
        bars: The progress display that draws the bars.
        console: The console.
    """

    def __init__(self, bars: Progress, console: Console) -> None:
        self.bars, self.console = bars, console
        self.name, self.began, self.quality = "training", time.monotonic(), Quality()
        self._task: TaskID | None = None
        self._first: int | None = None
        self._share, self._printed = 0.0, 0

    def begin(self, name: str) -> None:
        """Begin a phase, and end the one before."""
        self.end()
        self.name, self.began, self._first = name, time.monotonic(), None
        self._share, self._printed = 0.0, 0
        if self.console.is_terminal:
            self._task = self.bars.add_task(name, total=None)
        else:
            self.console.print(name, style="bold", markup=False)

    def end(self) -> None:
        """End the phase, even if it did less than announced."""
        if self._task is not None and not (task := self._found(self._task)).finished:
            done = max(1.0, task.completed)
            self.bars.update(self._task, total=done, completed=done)
        self._task = None

    def close(self) -> None:
        """End the last phase and leave the bars where they are: what is printed next stands below them."""
        self.end()
        if self.console.is_terminal:
            self.bars.stop()

    def advance(self, text: str, done: int, total: int, what: str, due: bool) -> None:
        """Update the phase to `done`; without a terminal, print a line if one is due."""
        if self._first is None:
            self._first = done - 1  # in a resumed phase, an earlier process did the others
        self._share = done / total
        if not self.console.is_terminal:
            left = seconds_left(time.monotonic() - self.began, done - self._first, total - self._first)
            more = "" if left is None or done == total else f", {_whole(left)} left"
            if due:
                self.console.print(f"{text}, {what} {done} of {total}{more}", markup=False)
            return
        if self._task is None:
            self._task = self.bars.add_task(text, total=total)
        self.bars.update(self._task, total=total, completed=done, description=text, first=self._first)

    def epoch_is_due(self) -> bool:
        """Return whether the phase has come to its next twentieth since the last epoch that had a line."""
        before, self._printed = self._printed, int(EPOCHS * self._share)
        return self._printed > before

    def _found(self, wanted: TaskID) -> Task:
        return next(task for task in self.bars.tasks if task.id == wanted)


@contextmanager
def watching(console: Console, verbose: bool = False) -> Iterator[Watch]:
    """Return a `Watch` that shows the plan and the phases of a job on `console`, each with the remaining time.

    With `verbose` it also shows the compiler passes, and what each left unchanged. If `console` is not a terminal, it
    prints lines instead of bars.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeLeft())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        phases = Phases(bars, console)

        def on_step(step: Step) -> None:
            stage = f", stage {step.stage + 1}" if phases.name == "training" else ""
            text = f"{phases.name}{stage}, epoch {step.epoch + 1}, loss {step.loss:.3f}"
            due = (step.step + 1) % max(1, step.steps // STEPS) == 0
            phases.advance(text, step.step + 1, step.steps, "step", due)

        def on_job(job: Job) -> None:
            phases.quality = job.quality

        def on_evaluation(evaluation: Evaluation, total: int) -> None:
            name, show = phases.quality.name, phases.quality.show
            last = evaluation.failure or f"last {name} {show(evaluation.values[name])}"
            due = (evaluation.index + 1) % EVALUATIONS == 0
            phases.advance(f"searching, {last}", evaluation.index + 1, total, "evaluation", due)

        def on_epoch(record: EpochRecord) -> None:
            # A run with a budget validates only the winners: then there are no metrics.
            alone = len(record.metrics) == 1 and phases.name.startswith("fine-tuning")  # there is only one network
            names = [f"validation {phases.quality.name}"] if alone else list(record.metrics)
            values = [phases.quality.show(value) for value in record.metrics.values()]
            metrics = ", ".join(map(" ".join, zip(names, values, strict=True)))
            told = f"{phases.name}, epoch {record.epoch + 1}: mean loss {record.loss:.4f}"
            if phases.epoch_is_due() or metrics:
                console.print(f"{told}; {metrics}" if metrics else told, markup=False)

        def on_supernet(supernet: SuperNetwork) -> None:
            for line in passes_of(supernet) if verbose else ():
                console.print(line, markup=False, highlight=False)

        def on_plan(plan: Plan) -> None:
            console.print(plan_table(plan))

        yield Watch(phases.begin, on_job, on_supernet, on_step, on_epoch, on_evaluation, on_plan, phases.close)
        phases.end()
