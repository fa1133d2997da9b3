"""What can be wrong with a search, apart from the sub-networks themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnas.passes import BnasError

if TYPE_CHECKING:
    from .result import SearchResult


class SearchError(BnasError, ValueError):
    """A setting of a search is out of its bounds, an objective is not known, or every evaluation failed."""


class MetricError(BnasError, ValueError):
    """An evaluation gave no number for an objective, or one that cannot be compared (NaN, infinity)."""


class WorkerError(SearchError):
    """Nobody can evaluate: workers cannot be reached, or cannot make what evaluates. No evaluation is lost."""


class RecordError(BnasError, ValueError):
    """An evaluation does not fit its log, or a file of evaluations is malformed or of another super-network."""


class InfeasibleError(BnasError, ValueError):
    """No sub-network that was evaluated keeps the constraints; `result` is what was found."""

    def __init__(self, message: str, result: SearchResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[object, ...]:
        """With both arguments: an exception is otherwise pickled with its message alone."""
        return InfeasibleError, (str(self), self.result)
