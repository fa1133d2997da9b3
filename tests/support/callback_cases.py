"""Callbacks that tests give: one that notes all events, and one that fails."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from bnas import Callback
from bnas.runtime import EpochRecord, Place, Progress, Training
from bnas.search import Search, SearchRecord, SearchResult


class Noted(Callback):
    """Notes the events, and draws random numbers as a careless callback does."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def note(self, event: str, what: Any) -> None:
        self.told.append((event, what))
        torch.rand(3), np.random.rand(3), random.random()

    def on_train_start(self, training: Training) -> None:
        self.note("start", training)

    def on_epoch_start(self, place: Place) -> None:
        self.note("epoch start", place)

    def on_step_end(self, progress: Progress) -> None:
        self.note("step", progress)

    def on_epoch_end(self, record: EpochRecord) -> None:
        self.note("epoch", record)

    def on_train_end(self, history: tuple[EpochRecord, ...]) -> None:
        self.note("end", history)

    def on_search_start(self, search: Search) -> None:
        self.note("start", search)

    def on_evaluation_end(self, record: SearchRecord) -> None:
        self.note("evaluation", record)

    def on_generation_end(self, record: SearchRecord) -> None:
        self.note("generation", record)

    def on_search_end(self, result: SearchResult) -> None:
        self.note("end", result)

    def on_exception(self, error: BaseException) -> None:
        self.note("exception", error)

    def events(self) -> list[str]:
        """The names of the events, in order."""
        return [event for event, _ in self.told]

    def all(self, wanted: str) -> list[Any]:
        """What came with each event of a name."""
        return [one for event, one in self.told if event == wanted]


class Broken(Callback):
    """Fails at the so manieth call of one event."""

    def __init__(self, event: str, count: int) -> None:
        self.left = iter(range(count - 1, -1, -1))
        setattr(self, event, self.fail)

    def fail(self, _: Any) -> None:
        if not next(self.left):
            raise OSError("the server is gone")
