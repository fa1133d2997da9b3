"""Callbacks of a search, and of a training too: what they receive and when they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnas.runtime.train.callbacks import TrainingCallback

if TYPE_CHECKING:
    from bnas.passes import SearchSpace

    from .evaluation import Evaluation
    from .objectives import Objective
    from .result import SearchResult
    from .settings import SearchSettings


@dataclass(frozen=True)
class Search:
    """A search that is about to start."""

    space: SearchSpace
    """The searched space."""
    objectives: tuple[Objective, ...]
    settings: SearchSettings
    planned: int
    """Largest number of evaluations: the setting, or the number of sub-networks in the space if that is smaller."""


@dataclass(frozen=True)
class SearchRecord:
    """Progress of a search after an evaluation or a generation."""

    generation: int
    """Number of the generation, from 0."""
    evaluation: Evaluation
    """The latest evaluation; ``evaluation.index + 1`` evaluations are finished."""
    planned: int
    """Largest number of evaluations of the search."""
    metric: str | None
    """Name of the first maximised objective, if any."""
    best: float | None
    """The best feasible value of `metric` so far; None if there is none."""
    hypervolume: float
    """Normalised hypervolume of the front; see `bnas.search.SearchProgress`."""
    result: SearchResult
    """All evaluations so far; ``result.pareto()`` is the front."""


class Callback(TrainingCallback):
    """Base class of callbacks of trainings and searches: override the methods that you need, the others do nothing.

        class Rates(bnas.Callback):
            def on_step_end(self, progress):
                print(progress.step, progress.learning_rate)

        bnas.Trainer(supernet, callbacks=[Rates()]).fit(loader)

    `bnas.Trainer`, `bnas.fine_tune`, `bnas.Searcher` and `bnas.Job` take ``callbacks``, and call the methods in the
    order of the list; where several processes work together, in process 0 only. A callback changes no number, as long
    as it leaves super-network and optimizer alone: random numbers that it draws from the global generators of Python,
    numpy and PyTorch are put back. An error that it raises stops training, search or run as Ctrl-C does: checkpoints
    and log are complete, and can be resumed.
    """

    def on_search_start(self, search: Search) -> None:
        """Called before the first evaluation, and again when a search is resumed."""

    def on_evaluation_end(self, record: SearchRecord) -> None:
        """Called after each evaluation in the order of the result, also for those that the log already had."""

    def on_generation_end(self, record: SearchRecord) -> None:
        """Called after each generation, which has as many evaluations as the population has candidates."""

    def on_search_end(self, result: SearchResult) -> None:
        """Called at the end, even if no sub-network meets the constraints."""


class Evaluated(Callback):
    """Wraps the function that `bnas.Searcher` gets as ``on_evaluation`` as a callback."""

    def __init__(self, function: Callable[[Evaluation], None]) -> None:
        self._function = function

    def on_evaluation_end(self, record: SearchRecord) -> None:
        """Call the function."""
        self._function(record.evaluation)
