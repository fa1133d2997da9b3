"""Search of a super-network: NSGA-II over its sub-networks, objectives, the log of evaluations and the result."""

if __name__ != "bnas.search":
    raise ImportError(f"import 'bnas.search', not {__name__!r}: a second copy would not know the first one's classes")

from bnas.search.errors import MetricError, RecordError, SearchError
from bnas.search.evaluation import Evaluation
from bnas.search.evaluation_log import EvaluationLog
from bnas.search.objective import Objective
from bnas.search.result import SearchResult
from bnas.search.searcher import Searcher

__all__ = [
    "Evaluation",
    "EvaluationLog",
    "MetricError",
    "Objective",
    "RecordError",
    "SearchError",
    "SearchResult",
    "Searcher",
]
