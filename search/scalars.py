"""TensorBoard scalars of a search (extra "tensorboard")."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnas.runtime.storage.files import discard
from bnas.runtime.train.validation import Scalars

from .evaluation import Evaluation
from .objectives import Constraint, Objective
from .progress import SearchProgress


class SearchScalars:
    """Writes ``search/...`` after each evaluation, at the number of evaluations made then.

    What `SearchProgress` says: the best metric (under its name), the hypervolume and the number of evaluations.
    A resumed search tells its evaluations from the first one on, so what `directory` holds of it is replaced.

    Args:
        directory: of the event files; the event files that are in it are removed.
        objectives: of the search.
        constraints: of the search.

    Raises:
        TrainingError: TensorBoard is not installed.
        WriteError: The files cannot be written.
    """

    def __init__(
        self, directory: Path, objectives: Sequence[Objective], constraints: Sequence[Constraint | str] = ()
    ) -> None:
        for former in directory.glob("events.out.tfevents.*"):
            discard(former)
        self._scalars = Scalars(directory)
        self._progress = SearchProgress(objectives, constraints)

    def add(self, evaluation: Evaluation) -> None:
        """Take the next evaluation."""
        progress = self._progress
        progress.add(evaluation)
        told = {"search/evaluations": float(progress.evaluations), "search/hypervolume": progress.hypervolume}
        if progress.best is not None:
            told[f"search/best_{progress.metric}"] = progress.best
        self._scalars.add(progress.evaluations, told)

    def close(self) -> None:
        """Write what is left."""
        self._scalars.close()
