"""The files of a run that its report reads, as far as the report needs them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


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


class Objective(Part):
    """An entry of ``objectives``."""

    name: str
    direction: Literal["min", "max"]


class SearchSettings(Part):
    """``search.json``."""

    objectives: tuple[Objective, ...]
    constraints: tuple[str, ...]
    maximal: dict[str, float]
    reference: float
    acc_delta: float
    evaluations: int
    samples: int | None = None


class LatencyNote(Part):
    """A measured latency; see `bnas.runtime.Latency`."""

    median_ms: float
    quartiles_ms: tuple[float, float]
    spread: float
    runs: int
    threads: int
    batch: int
    provider: str
    unstable: str | None = None
    machine: dict[str, Any] = Field(default={})


class Int8Note(Part):
    """A network in int8."""

    test_accuracy: float | None = None
    latency: LatencyNote | None = None
    failure: str | None = None


class SubnetNote(Part):
    """A choice."""

    widths: dict[str, int]
    skipped: tuple[str, ...]
    kernels: dict[str, int]


class Network(Part):
    """An entry of ``rows``: a network that was exported and measured."""

    name: str
    test_accuracy: float
    macs: float
    parameters: float
    latency: LatencyNote
    int8: Int8Note | None = None
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
