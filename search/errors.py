"""The errors of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnas.passes import BnasError

if TYPE_CHECKING:
    from .result import SearchResult


class SearchError(BnasError, ValueError):
    """A setting of a search is out of bounds, an objective is unknown, or every evaluation failed."""


class MetricError(BnasError, ValueError):
    """An evaluation returned no number for an objective, or NaN or infinity."""


class WorkerError(SearchError):
    """Workers cannot be reached, or cannot create the evaluator. No evaluation is lost."""


class RecordError(BnasError, ValueError):
    """An evaluation does not fit its log, or a file of evaluations is malformed or of another super-network."""


class InfeasibleError(BnasError, ValueError):
    """No evaluated sub-network meets the constraints; `result` has the result of the search."""

    def __init__(self, message: str, result: SearchResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle both arguments; by default an exception is pickled with its message only."""
        return InfeasibleError, (str(self), self.result)
