"""The base class of loggers, which turns events of a training or search into named numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from bnas.passes import BnasError
from bnas.search import Callback

if TYPE_CHECKING:
    from bnas.runtime import EpochRecord, Progress
    from bnas.runtime.train.callbacks import Training
    from bnas.search import Search, SearchRecord, SearchResult


class LoggerError(BnasError):
    """A logger cannot work: its library is not installed, or the run or study to continue belongs to another search."""


class Logger(Callback, ABC):
    """Base class of loggers: derive from it and override `write`, and `note` and `close` if you need them.

    - After each step: ``train/loss`` and ``train/learning_rate``.
    - After each epoch: ``val/NAME`` for each sub-network that is validated.
    - After each evaluation of a search: ``search/evaluations``, ``search/hypervolume``, ``search/best_METRIC`` within
      the constraints, and ``search/last_NAME`` for each value of the evaluation.

    Where a training has a name (`bnas.Trainer`), such as the fine-tuning of a winner in a run, the name and a slash
    stand before the names of its numbers.
    """

    def __init__(self) -> None:
        self._prefix, self._taken = "", 0

    def note(self, settings: Mapping[str, str | int | float | bool]) -> None:
        """Write the settings of a training or a search that starts, by names such as ``recipe.learning_rate``."""

    @abstractmethod
    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers by their names, at a number of steps or evaluations that are done."""

    def close(self, error: BaseException | None = None) -> None:
        """Write remaining data: a training or search has ended, or `error` stopped it. Another one may start later."""

    def on_train_start(self, training: Training) -> None:
        """Note stages and recipe."""
        self._prefix = f"{training.name}/" if training.name else ""
        settings = {"recipe": training.recipe, "stages": list(training.stages)}
        self.note({f"{self._prefix}{name}": value for name, value in flat(settings)})

    def on_step_end(self, progress: Progress) -> None:
        """Write loss and learning rate."""
        self._taken = progress.step + 1
        self._write({"train/loss": progress.loss, "train/learning_rate": progress.learning_rate})

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Write the metrics of the validation."""
        self._write({f"val/{name}": value for name, value in record.metrics.items()})

    def on_train_end(self, history: tuple[EpochRecord, ...]) -> None:
        """Write what is left."""
        self.close()

    def on_search_start(self, search: Search) -> None:
        """Note settings and objectives."""
        objectives = ", ".join(f"{one.name} ({one.direction})" for one in search.objectives)
        self.note(dict(flat({"search": search.settings, "objectives": objectives})))

    def on_evaluation_end(self, record: SearchRecord) -> None:
        """Write how far the search has come, and the values of the evaluation."""
        done = record.evaluation.index + 1
        told = {"evaluations": float(done), "hypervolume": record.hypervolume}
        if record.best is not None:
            told[f"best_{record.metric}"] = record.best
        told |= {f"last_{name}": value for name, value in record.evaluation.values.items()}
        self.write({f"search/{name}": value for name, value in told.items()}, done)

    def on_search_end(self, result: SearchResult) -> None:
        """Write what is left."""
        self.close()

    def on_exception(self, error: BaseException) -> None:
        """Write what is left."""
        self.close(error)

    def _write(self, values: Mapping[str, float]) -> None:
        if values:
            self.write({f"{self._prefix}{name}": value for name, value in values.items()}, self._taken)


def flat(data: Any, name: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Return settings as single values with dotted names, without None and without settings that files cannot have."""
    plain = TypeAdapter(Any).dump_python(data, mode="json") if not name else data
    if isinstance(plain, Mapping | list):
        entries = plain.items() if isinstance(plain, Mapping) else enumerate(plain)
        for key, value in entries:
            yield from flat(value, f"{name}.{key}" if name else str(key))
    elif plain is not None:
        yield name, plain


def library(name: str, extra: str) -> Any:
    """Import the library of a logger.

    Raises:
        LoggerError: The library is not installed; the message says what to install.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise LoggerError(f"{name} cannot be imported ({error}): pip install 'bnas[{extra}]'") from error
