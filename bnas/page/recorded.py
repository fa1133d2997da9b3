"""What the folder of a run holds, read back without the model, its data or torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from bnas.notes import ARCHITECTURE, ENVIRONMENT, SEARCH
from bnas.output import CONFIG
from bnas.page.errors import ReportError
from bnas.page.files import History, Process, Results, SearchSettings
from bnas.passes.architecture import Architecture, ArchitectureError
from bnas.search import Constraint, Evaluation, EvaluationLog, Objective, RecordError, SearchResult

HISTORY, EVALUATIONS, RESULTS, DATA = "training/history.json", "evaluations.jsonl", "report.json", "data.json"
MISSING = {
    ENVIRONMENT: "when and on what machine the run began, and the versions",
    ARCHITECTURE: "the layers, so there is no picture of the architecture",
    HISTORY: "the epochs of the training: none has ended, or the super-network was not trained in this run",
    SEARCH: "what is searched for: the search has not begun",
    EVALUATIONS: "the evaluations: the search has not begun",
    RESULTS: "accuracy on test data and latency: the run did not come to the end",
}
"""What a report lacks without a file."""
Read = TypeVar("Read", bound=BaseModel)


@dataclass(frozen=True)
class Recorded:
    """A run, as far as it came; each part is None where its file is not there."""

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

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name

    @property
    def finished(self) -> bool:
        """Whether the run came to the end."""
        return self.results is not None

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


def read_run(folder: Path) -> Recorded:
    """What the run in `folder` left so far; it may still be at work.

    Raises:
        ReportError: there is no run, or a file is damaged; names it.
    """
    if not (folder / CONFIG).is_file():
        raise ReportError(f"{folder} holds no run of bnas: {CONFIG} is missing; give the folder that a run wrote to")
    processes = _json(folder / ENVIRONMENT)
    missing = tuple(name for name in MISSING if not (folder / name).is_file())
    return Recorded(
        folder,
        _json(folder / CONFIG),
        () if processes is None else _checked(folder / ENVIRONMENT, TypeAdapter(tuple[Process, ...]), processes),
        _architecture(folder / ARCHITECTURE),
        _part(folder / HISTORY, History),
        _part(folder / SEARCH, SearchSettings),
        _evaluations(folder / EVALUATIONS),
        _part(folder / RESULTS, Results),
        _json(folder / DATA),
        missing,
    )


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} is not a JSON file: {error}") from error


def _part(path: Path, kind: type[Read]) -> Read | None:
    data = _json(path)
    return None if data is None else _checked(path, TypeAdapter(kind), data)


def _checked(path: Path, adapter: TypeAdapter[Any], data: Any) -> Any:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ReportError(f"{path}: {place}: {first['msg']}; bnas did not write it so") from error


def _architecture(path: Path) -> Architecture | None:
    data = _json(path)
    if data is None:
        return None
    try:
        return Architecture.from_json(data)
    except ArchitectureError as error:
        raise ReportError(f"{path}: {error}") from error


def _evaluations(path: Path) -> tuple[Evaluation, ...]:
    if not path.is_file():
        return ()
    try:
        return tuple(EvaluationLog.read(path))
    except (OSError, RecordError) as error:
        raise ReportError(str(error)) from error
