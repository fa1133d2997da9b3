"""Search of a super-network: NSGA-II over its sub-networks, objectives, the log of evaluations and the result."""

if __name__ != "bnas.search":
    raise ImportError(f"import 'bnas.search', not {__name__!r}: a second copy would not know the first one's classes")

from bnas.search.constraint import Constraint
from bnas.search.errors import InfeasibleError, MetricError, RecordError, SearchError
from bnas.search.evaluation import Evaluation
from bnas.search.evaluation_log import EvaluationLog
from bnas.search.objective import Objective
from bnas.search.result import SearchResult
from bnas.search.searcher import Searcher
from bnas.search.workers import Remote, Workers

__all__ = [
    "Constraint",
    "Evaluation",
    "EvaluationLog",
    "InfeasibleError",
    "MetricError",
    "Objective",
    "RecordError",
    "Remote",
    "SearchError",
    "SearchResult",
    "Searcher",
    "Workers",
]
