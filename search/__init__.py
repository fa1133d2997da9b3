"""Search of a super-network: NSGA-II over its sub-networks, objectives, the log of evaluations and the result."""

if __name__ != "bnas.search":
    raise ImportError(f"import 'bnas.search', not {__name__!r}: a second copy would not know the first one's classes")

from typing import TYPE_CHECKING

from bnas.passes.lazy import attach

if TYPE_CHECKING:
    from bnas.search.algorithms import NSGA2, RNSGA2, RandomSearch
    from bnas.search.constraint import Constraint
    from bnas.search.errors import InfeasibleError, MetricError, RecordError, SearchError
    from bnas.search.evaluation import Evaluation
    from bnas.search.evaluation_log import EvaluationLog
    from bnas.search.objective import Objective
    from bnas.search.outcome import Measures, Outcome
    from bnas.search.result import SearchResult
    from bnas.search.scalars import SearchScalars
    from bnas.search.search_progress import SearchProgress
    from bnas.search.searcher import Searcher
    from bnas.search.settings import SearchSettings
    from bnas.search.surrogate import Regressor
    from bnas.search.workers import Remote, Workers

__getattr__, __dir__ = attach(
    __name__,
    {
        "bnas.search.algorithms": (
            "NSGA2",
            "RNSGA2",
            "RandomSearch",
        ),
        "bnas.search.constraint": ("Constraint",),
        "bnas.search.errors": (
            "InfeasibleError",
            "MetricError",
            "RecordError",
            "SearchError",
        ),
        "bnas.search.evaluation": ("Evaluation",),
        "bnas.search.evaluation_log": ("EvaluationLog",),
        "bnas.search.objective": ("Objective",),
        "bnas.search.outcome": (
            "Measures",
            "Outcome",
        ),
        "bnas.search.result": ("SearchResult",),
        "bnas.search.scalars": ("SearchScalars",),
        "bnas.search.search_progress": ("SearchProgress",),
        "bnas.search.searcher": ("Searcher",),
        "bnas.search.surrogate": ("Regressor",),
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
    "Constraint",
    "Evaluation",
    "EvaluationLog",
    "InfeasibleError",
    "Measures",
    "MetricError",
    "Objective",
    "Outcome",
    "RandomSearch",
    "RecordError",
    "Regressor",
    "Remote",
    "SearchError",
    "SearchProgress",
    "SearchResult",
    "SearchScalars",
    "SearchSettings",
    "Searcher",
    "Workers",
]
