"""What the folder of a run holds, read back without the model, its data or torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bnas.passes.cost.architecture import Architecture, ArchitectureError
from bnas.passes.errors import BnasError
from bnas.run.ledger import Ledger
from bnas.run.mark import OutputError
from bnas.run.output import ARCHITECTURE, CONFIG, ENVIRONMENT, SEARCH
from bnas.runtime.storage.files import ReadError, reading, there
from bnas.search import Constraint, Evaluation, EvaluationLog, Objective, RecordError, SearchResult


class ReportError(BnasError):
    """The report of a run cannot be made; names the file and what is wrong with it."""


# The files of a run that its report reads, as far as the report needs them.


class Part(BaseModel):
    """A part of a file; what else stands there is not needed."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Process(Part):
    """An entry of ``environment.json``."""

    began: str
    machine: dict[str, Any]
    versions: dict[str, str]


class StageNote(Part):
    """A stage of the training."""

    train_dims: tuple[str, ...] | None
    epochs: int


class Epoch(Part):
    """What an epoch ended with."""

    epoch: int
    stage: int
    loss: float
    learning_rate: float
    metrics: dict[str, float]


class History(Part):
    """``training/history.json``."""

    format: Literal["bnas-training-history"]
    version: Literal[1]
    metric: str
    stages: tuple[StageNote, ...]
    epochs: tuple[Epoch, ...]


class ObjectivePart(Part):
    """An entry of ``objectives``."""

    name: str
    direction: Literal["min", "max"]


class SearchSettings(Part):
    """``search.json``."""

    objectives: tuple[ObjectivePart, ...]
    constraints: tuple[str, ...]
    maximal: dict[str, float]
    reference: float
    acc_delta: float
    evaluations: int
    samples: int | None = None
    targets: dict[str, str] = Field(default={})
    latencies: dict[str, str] = Field(default={})
    """The values that are latencies, with the places that they are measured on."""


class LatencyNote(Part):
    """A measured latency; see `bnas.runtime.Latency`."""

    median_ms: float
    quartiles_ms: tuple[float, float]
    spread: float
    runs: int
    threads: int
    batch: int
    provider: str
    clock: Literal["cpu", "wall"] = "cpu"
    unstable: str | None = None
    machine: dict[str, Any] = Field(default={})


class Int8Note(Part):
    """A network in int8."""

    test_accuracy: float | None = None
    latency: LatencyNote | None = None
    failure: str | None = None


class TargetNote(Part):
    """The bound that a winner was chosen by."""

    bound: str
    missed: bool


class SubnetNote(Part):
    """A choice."""

    widths: dict[str, int]
    skipped: tuple[str, ...]
    kernels: dict[str, int]


class Network(Part):
    """An entry of ``rows``: a network that was exported and measured."""

    name: str
    test_accuracy: float
    test_accuracy_before: float | None = None
    macs: float
    parameters: float
    latency: LatencyNote
    latencies: dict[str, LatencyNote] = Field(default={})
    int8: Int8Note | None = None
    target: TargetNote | None = None
    subnet: SubnetNote


class Results(Part):
    """``report.json``."""

    rows: tuple[Network, ...]
    reference: float
    acc_delta: float
    evaluations: int
    missed: bool
    machine: dict[str, Any]
    test_samples: int | None = None
    bound: str | None = None
    """What `bnas prune` pruned to; None in the folder of another command."""


HISTORY, EVALUATIONS, RESULTS, DATA = "training/history.json", "evaluations.jsonl", "report.json", "data.json"
MISSING = {
    ENVIRONMENT: "start time, machine and versions",
    ARCHITECTURE: "the layers, so the report has no picture of the architecture",
    HISTORY: "the training epochs: none is complete yet, or this run did not train the super-network",
    SEARCH: "the objectives: the search has not begun",
    EVALUATIONS: "the evaluations: the search has not begun",
    RESULTS: "test accuracy and latency: the run is not finished",
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
    ledger = Ledger(folder)
    if not (ledger.exists and _there(ledger, CONFIG)):
        raise ReportError(
            f"{folder} is not the folder of a run: {CONFIG} is missing; give the folder that a run wrote to"
        )
    processes, evaluations = _json(ledger, ENVIRONMENT), _evaluations(ledger, EVALUATIONS)
    _check_whole(ledger, len(evaluations))
    configuration = _json(ledger, CONFIG)
    unneeded = (SEARCH, EVALUATIONS) if isinstance(configuration, dict) and "prune" in configuration else ()
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
    )


def _check_whole(ledger: Ledger, found: int) -> None:
    """Raise where the log has fewer evaluations than the search that came to its end: it was cut."""
    winners = _json(ledger, "winners.json")
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


def _evaluations(ledger: Ledger, name: str) -> tuple[Evaluation, ...]:
    if not _there(ledger, name):
        return ()
    try:
        ledger.refuse_links(name)
        with reading(path := ledger.folder / name):
            return tuple(EvaluationLog.read(path))
    except (OutputError, ReadError, RecordError) as error:
        raise ReportError(str(error)) from error
