"""A small training and a small search that tell a logger of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training_cases import batches, plain, supernet

from bnas import Callback
from bnas.passes import SearchSpace, Subnet
from bnas.runtime import EpochRecord, Progress, Stage, Trainer
from bnas.search import (
    NSGA2,
    EvaluationLog,
    Objective,
    Searcher,
    SearchRecord,
    SearchResult,
    SearchSettings,
)

HELD = batches(1, seed=9)
SPACE = SearchSpace({"stem": (8, 16, 24), "body": (4, 6, 12)}, ("block",), {"body": (frozenset({"block"}),)})
OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))


class Kept(Callback):
    """Keeps what it is told, to compare it with what a logger wrote."""

    def __init__(self) -> None:
        self.steps: list[Progress] = []
        self.epochs: list[EpochRecord] = []
        self.evaluations: list[SearchRecord] = []

    def on_step_end(self, progress: Progress) -> None:
        self.steps.append(progress)

    def on_epoch_end(self, record: EpochRecord) -> None:
        self.epochs.append(record)

    def on_evaluation_end(self, record: SearchRecord) -> None:
        self.evaluations.append(record)


def train(*callbacks: Callback, **options: Any) -> Kept:
    """Two epochs of three steps."""
    kept = Kept()
    settings: dict[str, Any] = {"watch": 1, **options}
    fitted = {"resume": True} if "directory" in options else {}
    trainer = Trainer(supernet(), [Stage(epochs=2)], plain(), callbacks=[kept, *callbacks], **settings)
    trainer.fit(batches(3), HELD, **fitted)
    return kept


def values_of(subnet: Subnet) -> dict[str, float]:
    """What an evaluation gives; one of the sub-networks fails."""
    stem, body = subnet.widths["stem"], subnet.widths["body"]
    if (stem, body) == (24, 6):
        raise MemoryError("no memory")
    macs = float(stem * 100 + (0 if "block" in subnet.skipped else body * 90))
    return {"accuracy": 1 - 1000 / (1000 + macs) + (stem == 16) / 100, "macs": macs}


def search(*callbacks: Callback, log: EvaluationLog | Path | None = None) -> tuple[SearchResult, Kept]:
    """All twelve sub-networks of a space, in generations of four."""
    kept = Kept()
    settings = SearchSettings(algorithm=NSGA2(population=4), num_evals=12, constraints=("macs <= 90 %",))
    made = Searcher(SPACE, values_of, OBJECTIVES, settings, log=log, callbacks=[kept, *callbacks])
    return made.run(), kept


class Stop(Callback):
    """Interrupts a training or a search."""

    def __init__(self, steps: int = 0, evaluations: int = 0, error: BaseException | None = None) -> None:
        self.steps, self.evaluations, self.error = steps, evaluations, error or KeyboardInterrupt()

    def on_step_end(self, progress: Progress) -> None:
        if progress.step + 1 == self.steps:
            raise self.error

    def on_evaluation_end(self, record: SearchRecord) -> None:
        if record.evaluation.index + 1 == self.evaluations:
            raise self.error
