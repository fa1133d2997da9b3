"""Read the folder of a run for its report, without the model, its data or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from bnas.passes.cost.architecture import Architecture, ArchitectureError
from bnas.passes.errors import BnasError
from bnas.run.files.ledger import Ledger
from bnas.run.files.mark import OutputError
from bnas.run.files.names import (
    ARCHITECTURE,
    CONFIG,
    DATA,
    ENVIRONMENT,
    EVALUATIONS,
    HISTORY,
    RESULTS,
    SEARCH,
    TUNING,
    WINNERS,
)
from bnas.run.quality import Quality
from bnas.runtime.storage.files import ReadError, there
from bnas.search import Constraint, Evaluation, Objective, RecordError, SearchResult

from .notes import ChosenNote, History, Process, Results, SearchSettings, SubnetNote, TuningNote


class ReportError(BnasError):
    """The report of a run cannot be made; the message has the file and what is wrong with it."""


MISSING = {
    ENVIRONMENT: "start time, machine and versions",
    ARCHITECTURE: "the layers, so the report has no picture of the architecture",
    HISTORY: "the training epochs: none is complete yet, or this run did not train the super-network",
    SEARCH: "the objectives: the search has not begun",
    EVALUATIONS: "the evaluations: the search has not begun",
    RESULTS: "test accuracy and latency: the run is not finished",
}
"""For each file, the part of the report that is missing without it."""
Read = TypeVar("Read", bound=BaseModel)


@dataclass(frozen=True)
class Recorded:
    """A run that may be unfinished. A part is None if its file does not exist."""

    folder: Path
    configuration: Any
    processes: tuple[Process, ...]
    architecture: Architecture | None
    history: History | None
    settings: SearchSettings | None
    evaluations: tuple[Evaluation, ...]
    results: Results | None
    data: Any
    missing: tuple[str, ...]
    """The names of the files that are not there."""
    tunings: Mapping[str, History] = field(default_factory=dict)
    """How the fine-tuning of each winner went, by its name."""
    chosen: Mapping[str, SubnetNote] | None = None
    """The winners of the last search, and of its fine-tuning; None before the end of the search."""
    again: tuple[str, ...] = ()
    """The names of the winners that the fine-tuning chose."""

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name

    @property
    def finished(self) -> bool:
        """Whether the run came to the end."""
        return self.results is not None

    @property
    def pruned(self) -> bool:
        """Whether `bnas prune` made the run: it has no super-network, and its training is a fine-tuning."""
        return is_pruned(self.configuration)

    @property
    def tuned(self) -> bool:
        """Whether the winners in the results were fine-tuned."""
        return self.results is not None and any(row.test_accuracy_before is not None for row in self.results.rows)

    @property
    def outdated(self) -> bool:
        """Whether the results are of other winners than those of the last search."""
        if self.results is None or self.chosen is None:
            return False
        return {one.name: one.subnet for one in self.results.rows[1:]} != self.chosen

    @cached_property
    def quality(self) -> Quality:
        """What the winners were chosen by: accuracy, or the metric of the run."""
        noted = self.results or self.settings
        return Quality() if noted is None else Quality(noted.metric.name, noted.metric.direction)

    @cached_property
    def search(self) -> SearchResult | None:
        """All evaluations with objectives and bounds; None before the first that gave values."""
        if self.settings is None or all(one.failure is not None for one in self.evaluations):
            return None
        objectives = [Objective(one.name, one.direction) for one in self.settings.objectives]
        maximal = {**self.settings.maximal, **self.evaluations[0].values}
        bounds = [Constraint.parse(text) for text in self.settings.constraints]
        known = [one.resolved(maximal) for one in bounds if not one.relative or one.name in maximal]
        return SearchResult.checked(objectives, self.evaluations, known)

    @cached_property
    def front(self) -> tuple[Evaluation, ...]:
        """The Pareto front; empty before the search."""
        return () if self.search is None else self.search.pareto()


def is_pruned(configuration: Any) -> bool:
    """Whether `bnas prune` wrote this configuration."""
    return isinstance(configuration, dict) and "prune" in configuration


def read_run(folder: Path) -> Recorded:
    """What the run in `folder` left so far; it may still be at work.

    Raises:
        ReportError: there is no run, or a file is damaged; names it.
    """
    ledger = Ledger(folder)
    if needed := ledger.missing:
        raise ReportError(f"{folder} is not the folder of a run: {needed} is missing; give the folder of a run")
    processes, evaluations = _json(ledger, ENVIRONMENT), _evaluations(ledger)
    _check_whole(ledger, len(evaluations))
    configuration = _json(ledger, CONFIG)
    tuning, chosen = _part(ledger, TUNING, TuningNote), _part(ledger, WINNERS, ChosenNote)
    unneeded = (SEARCH, EVALUATIONS) if is_pruned(configuration) else ()
    missing = tuple(name for name in MISSING if name not in unneeded and not _there(ledger, name))
    return Recorded(
        folder,
        configuration,
        () if processes is None else _checked(folder / ENVIRONMENT, TypeAdapter(tuple[Process, ...]), processes),
        _architecture(ledger, ARCHITECTURE),
        _part(ledger, HISTORY, History),
        _part(ledger, SEARCH, SearchSettings),
        evaluations,
        _part(ledger, RESULTS, Results),
        _json(ledger, DATA),
        missing,
        _tunings(ledger, tuning),
        None if chosen is None else chosen.subnets(tuning),
        () if chosen is None else tuple(chosen.again(tuning)),
    )


def _tunings(ledger: Ledger, noted: TuningNote | None) -> dict[str, History]:
    """The histories of the winners whose fine-tuning has begun."""
    names = [] if noted is None else [one.name for one in noted.winners]
    found = {name: _part(ledger, f"tuning/{name}/history.json", History) for name in names}
    return {name: history for name, history in found.items() if history is not None}


def _check_whole(ledger: Ledger, found: int) -> None:
    """Raise where the log has fewer evaluations than the search that came to its end: it was cut."""
    winners = _json(ledger, WINNERS)
    wanted = winners.get("evaluations", 0) if isinstance(winners, dict) else 0
    if _there(ledger, EVALUATIONS) and found < wanted:
        told = f"restore it from a backup, or evaluate again: `bnas search {ledger.folder} --resume`"
        raise ReportError(f"{ledger.folder / EVALUATIONS} is damaged: it has {found} of {wanted} evaluations; {told}")


def _there(ledger: Ledger, name: str) -> bool:
    try:
        return there(ledger.folder / name)
    except ReadError as error:
        raise ReportError(str(error)) from error


def _json(ledger: Ledger, name: str) -> Any:
    if not _there(ledger, name):
        return None
    try:
        return ledger.json(name)
    except (OutputError, ReadError) as error:
        raise ReportError(str(error)) from error


def _part(ledger: Ledger, name: str, kind: type[Read]) -> Read | None:
    data = _json(ledger, name)
    return None if data is None else _checked(ledger.folder / name, TypeAdapter(kind), data)


def _checked(path: Path, adapter: TypeAdapter[Any], data: Any) -> Any:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ReportError(f"{path}: {place}: {first['msg']}; the file was changed after bnas wrote it") from error


def _architecture(ledger: Ledger, name: str) -> Architecture | None:
    if (data := _json(ledger, name)) is None:
        return None
    try:
        return Architecture.from_json(data)
    except ArchitectureError as error:
        raise ReportError(f"{ledger.folder / name}: {error}") from error


def _evaluations(ledger: Ledger) -> tuple[Evaluation, ...]:
    try:
        return ledger.evaluations()
    except (OutputError, ReadError, RecordError) as error:
        raise ReportError(str(error)) from error
