"""Validation during training: measure the same few sub-networks after every epoch, with recalibrated BatchNorm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bnas.passes import SearchSpace, Subnet
from bnas.runtime.errors import TrainingError
from bnas.runtime.evaluate.evaluation import Batch, Metric, accuracy
from bnas.runtime.evaluate.evaluator import Evaluator
from bnas.runtime.storage.files import is_written_by, write_json
from bnas.runtime.supernetwork import SuperNetwork

if TYPE_CHECKING:
    from .stages import Stage


@dataclass(frozen=True)
class EpochRecord:
    """Results of an epoch."""

    epoch: int
    """Number of the epoch in the whole training, from 0."""
    stage: int
    loss: float
    """Mean loss of the first sub-network of each step (the maximal one, if the rule trains it)."""
    learning_rate: float
    """Learning rate of the last step."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The metric of each watched sub-network; empty without validation data."""

    @property
    def score(self) -> float:
        """The mean of the metrics, by which the best checkpoint is chosen; -inf without validation data."""
        return statistics.fmean(self.metrics.values()) if self.metrics else -np.inf

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {**vars(self), "metrics": dict(self.metrics)}


def watched(space: SearchSpace, count: int, seed: int) -> dict[str, Subnet]:
    """Return the maximal, the minimal and `count` random sub-networks by name; one name if `space` has only one."""
    if space.size == 1:
        return {"maximal": space.maximal()}
    generator = np.random.default_rng(seed)
    random = {f"random{number}": space.sample(generator) for number in range(1, count + 1)}
    return {"maximal": space.maximal(), "minimal": space.minimal(), **random}


class Validator:
    """Measures the watched sub-networks on validation data.

    Args:
        supernet: The super-network.
        subnets: The watched sub-networks by name.
        calibration: Training batches for the BatchNorm statistics; None uses the shared statistics.
        validation: Hold-out batches.
        metric: A function of a module and batches.
        direction: "max" if higher values are better, "min" if lower values are.
    """

    def __init__(
        self,
        supernet: SuperNetwork,
        subnets: Mapping[str, Subnet],
        calibration: Sequence[Batch] | None,
        validation: Iterable[Batch],
        metric: Metric = accuracy,
        direction: Literal["min", "max"] = "max",
    ) -> None:
        self.subnets, self.sign = subnets, 1.0 if direction == "max" else -1.0
        self.name = str(getattr(metric, "__name__", type(metric).__name__))
        self.evaluator = Evaluator(supernet, calibration, validation, metric)

    def __call__(self) -> dict[str, float]:
        """Measure the metric of each sub-network on a copy; the super-network does not change.

        Raises:
            TrainingError: A metric is NaN, so epochs cannot be compared.
        """
        measure, prepare = self.evaluator.measure, self.evaluator.prepare
        found = {name: float(measure(prepare(subnet))) for name, subnet in self.subnets.items()}
        for name in (name for name, value in found.items() if not math.isfinite(value)):
            raise TrainingError(
                f"the metric of the sub-network {name!r} is {found[name]}; it must be a finite number: lower the "
                "learning rate, set clip_norm, or look for NaN in the validation data and a division by 0 in the metric"
            )
        return found


# The history file: a JSON file with the records of all epochs so far.

FORMAT = "bnas-training-history"
VERSION = 1


def write_history(path: Path, stages: Sequence[Stage], metric: str, epochs: Sequence[EpochRecord]) -> None:
    """Write the stages, the name of the metric and the records of all epochs so far, atomically.

    Raises:
        TrainingError: A file with this name exists that bnas did not write.
    """
    if not is_written_by(path, lambda history: history["format"] == FORMAT):
        raise TrainingError(f"{path} exists, but bnas did not write it; move it to another place first")
    write_json(
        path,
        {
            "format": FORMAT,
            "version": VERSION,
            "metric": metric,
            "stages": [{"train_dims": one.train_dims, "epochs": one.epochs} for one in stages],
            "epochs": [one.to_json() for one in epochs],
        },
    )
