"""The files of a run that its report reads, as far as the report needs them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bnas.run.quality import Quality


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


class MetricNote(Part):
    """The metric of a run; accuracy in the files of earlier versions."""

    name: str = "accuracy"
    direction: Literal["min", "max"] = "max"


class SearchSettings(Part):
    """``search.json``."""

    metric: MetricNote = MetricNote()

    objectives: tuple[ObjectivePart, ...]
    constraints: tuple[str, ...]
    maximal: dict[str, float]
    reference: float
    reference_of: str | None = None
    """The network that `reference` was measured of; None if it is a number of the user's, or of an earlier version."""
    acc_delta: float
    evaluations: int
    samples: int | None = None
    targets: dict[str, str] = Field(default={})
    latencies: dict[str, str] = Field(default={})
    """The values that are latencies, with the places that they are measured on."""


class LatencyNote(Part):
    """A measured latency; see `bnas.runtime.Latency`."""

    median_ms: float
    wall_median_ms: float | None = None
    quartiles_ms: tuple[float, float]
    spread: float
    ratio: float | None = None
    runs: int
    threads: int
    batch: int
    provider: str
    clock: Literal["cpu", "wall"] = "cpu"
    unstable: str | None = None
    machine: dict[str, Any] = Field(default={})


class ProfileNote(Part):
    """Where the time of a network goes; see `bnas.runtime.LayerTimes`."""

    layers: dict[str, float]
    other: dict[str, float]
    run_ms: float
    runs: int


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


class WinnerNote(Part):
    """A winner in ``winners.json``, or one that was chosen again in ``tuning.json``."""

    subnet: SubnetNote


class TunedNote(WinnerNote):
    """A winner in ``tuning.json``."""

    name: str
    chosen: WinnerNote | None = None


class TuningNote(Part):
    """``tuning.json``."""

    winners: tuple[TunedNote, ...]


class ChosenNote(Part):
    """``winners.json``."""

    winners: dict[str, WinnerNote]

    def subnets(self, tuning: TuningNote | None) -> dict[str, SubnetNote]:
        """Return the winners by name, with those that a fine-tuning of these winners chose again."""
        return {name: one.subnet for name, one in self.winners.items()} | self.again(tuning)

    def again(self, tuning: TuningNote | None) -> dict[str, SubnetNote]:
        """Return the winners that a fine-tuning of these winners chose again."""
        searched = {name: one.subnet for name, one in self.winners.items()}
        ours = [] if tuning is None else [one for one in tuning.winners if searched.get(one.name) == one.subnet]
        return {one.name: one.chosen.subnet for one in ours if one.chosen is not None}


class Network(Part):
    """An entry of ``rows``: a network that was exported and measured."""

    name: str
    test_accuracy: float
    test_accuracy_before: float | None = None
    macs: float
    parameters: float
    latency: LatencyNote
    latencies: dict[str, LatencyNote] = Field(default={})
    profile: ProfileNote | None = None
    int8: Int8Note | None = None
    target: TargetNote | None = None
    subnet: SubnetNote


class Results(Part):
    """``report.json``."""

    metric: MetricNote = MetricNote()
    rows: tuple[Network, ...]
    reference: float
    acc_delta: float
    evaluations: int
    missed: bool
    machine: dict[str, Any]
    test_samples: int | None = None
    bound: str | None = None
    """What `bnas prune` pruned to; None in the folder of another command."""

    @property
    def quality(self) -> Quality:
        """What is called accuracy in the rows."""
        return Quality(self.metric.name, self.metric.direction)
