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
    """A search that starts."""

    space: SearchSpace
    """What is searched."""
    objectives: tuple[Objective, ...]
    settings: SearchSettings
    planned: int
    """Number of evaluations that it will have at most: as the settings say, or as the space has sub-networks."""


@dataclass(frozen=True)
class SearchRecord:
    """How far a search has come, after an evaluation or a generation."""

    generation: int
    """From 0."""
    evaluation: Evaluation
    """The last one; ``evaluation.index + 1`` evaluations are made so far."""
    planned: int
    """Number of evaluations that the search will have at most."""
    metric: str | None
    """The name of the first objective that is maximised, if any."""
    best: float | None
    """The best value of it so far, within the constraints; None: there is none."""
    hypervolume: float
    """That of the front, as `bnas.search.SearchProgress` measures it: a share of a box; of accuracies from 0 to 1."""
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
        """Called before the first evaluation; of a resumed search again."""

    def on_evaluation_end(self, record: SearchRecord) -> None:
        """Called after each evaluation in the order of the result, also for those that the log already had."""

    def on_generation_end(self, record: SearchRecord) -> None:
        """Called after each generation: as many evaluations as the population has candidates."""

    def on_search_end(self, result: SearchResult) -> None:
        """Called in the end, also where no sub-network keeps the constraints."""


class Evaluated(Callback):
    """A function as a callback: what `bnas.Searcher` takes as ``on_evaluation``."""

    def __init__(self, function: Callable[[Evaluation], None]) -> None:
        self._function = function

    def on_evaluation_end(self, record: SearchRecord) -> None:
        """Call the function."""
        self._function(record.evaluation)
