"""Search of a super-network: NSGA-II over its sub-networks, objectives, the log of evaluations and the result."""

if __name__ != "bnas.search":
    raise ImportError(f"import 'bnas.search', not {__name__!r}: a second copy would not know the first one's classes")

from typing import TYPE_CHECKING

from bnas.passes.lazy import attach

if TYPE_CHECKING:
    from .algorithms.settings import NSGA2, RNSGA2, RandomSearch
    from .algorithms.surrogate import Regressor
    from .beginning import pruned_sizes
    from .callbacks import Callback, Search, SearchRecord
    from .errors import InfeasibleError, MetricError, RecordError, SearchError, WorkerError
    from .evaluation import Evaluation, Measures, Outcome
    from .executors import ExecutorSettings
    from .log import EvaluationLog
    from .objectives import Constraint, Objective
    from .progress import SearchProgress
    from .pruning import Pruned, prune
    from .result import SearchResult
    from .searcher import Searcher
    from .settings import SearchSettings
    from .workers import Remote, Workers

__getattr__, __dir__ = attach(
    __name__,
    {
        "bnas.search.algorithms.settings": (
            "NSGA2",
            "RNSGA2",
            "RandomSearch",
        ),
        "bnas.search.algorithms.surrogate": ("Regressor",),
        "bnas.search.callbacks": (
            "Callback",
            "Search",
            "SearchRecord",
        ),
        "bnas.search.errors": (
            "InfeasibleError",
            "MetricError",
            "RecordError",
            "SearchError",
            "WorkerError",
        ),
        "bnas.search.evaluation": (
            "Evaluation",
            "Measures",
            "Outcome",
        ),
        "bnas.search.executors": ("ExecutorSettings",),
        "bnas.search.log": ("EvaluationLog",),
        "bnas.search.objectives": (
            "Constraint",
            "Objective",
        ),
        "bnas.search.progress": ("SearchProgress",),
        "bnas.search.beginning": ("pruned_sizes",),
        "bnas.search.pruning": ("Pruned", "prune"),
        "bnas.search.result": ("SearchResult",),
        "bnas.search.searcher": ("Searcher",),
        "bnas.search.settings": ("SearchSettings",),
        "bnas.search.workers": (
            "Remote",
            "Workers",
        ),
    },
)

__all__ = [
    "NSGA2",
    "RNSGA2",
    "Callback",
    "Constraint",
    "Evaluation",
    "EvaluationLog",
    "ExecutorSettings",
    "InfeasibleError",
    "Measures",
    "MetricError",
    "Objective",
    "Outcome",
    "Pruned",
    "RandomSearch",
    "RecordError",
    "Regressor",
    "Remote",
    "Search",
    "SearchError",
    "SearchProgress",
    "SearchRecord",
    "SearchResult",
    "SearchSettings",
    "Searcher",
    "WorkerError",
    "Workers",
    "prune",
    "pruned_sizes",
]
