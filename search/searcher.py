"""`Searcher`, which searches a super-network for the sub-networks with the best trade-offs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bnas.runtime.train.callbacks import Callbacks, checked_callbacks

from .callbacks import Callback, Evaluated, Search
from .errors import InfeasibleError, SearchError
from .evaluation import Evaluation, Measures, in_this_process
from .log import EvaluationLog
from .objectives import Objective
from .result import SearchResult
from .run import Evaluations, Plan, Racing, Run
from .settings import SearchSettings
from .source import Source

if TYPE_CHECKING:
    from bnas.passes import Subnet

    from .evaluation import Outcome


# Exact evaluation of the front, if the search used approximate values.


def confirmed(
    result: SearchResult,
    measures: Measures,
    log: EvaluationLog,
    evaluate: Callable[[Measures, Sequence[Subnet]], Iterator[tuple[int, Outcome]]],
) -> SearchResult:
    """Evaluate the front exactly, repeatedly, until every sub-network on the front has exact values.

    Exact values replace approximate ones, which may bring other sub-networks onto the front; these are evaluated too.
    Values that the exact evaluation does not return stay approximate. A sub-network that fails leaves the front. Each
    exact evaluation is in `log` before it is used, and none is made twice.
    """
    exact: dict[int, Evaluation] = {}
    while waiting := [one for one in result.pareto() if one.index not in exact]:
        new = [one for one in waiting if log.get(one.subnet) is None]
        for place, outcome in evaluate(measures, [one.subnet for one in new]):
            subnet = new[place].subnet
            if outcome.failure is None:
                log.record(subnet, outcome.values, outcome.seconds)
            else:
                log.record_failure(subnet, outcome.failure, outcome.seconds)
        for one in waiting:
            found = log.get(one.subnet)
            assert found is not None
            values = {**one.values, **found.values} if found.failure is None else {}
            exact[one.index] = replace(one, values=values, failure=found.failure)
        result = replace(result, evaluations=tuple(exact.get(one.index, one) for one in result.evaluations))
    return result


class Searcher:
    """Search a super-network for the sub-networks with the best trade-offs.

    The result depends only on the seed and on the evaluated values, not on who evaluates or in which order. No
    sub-network is evaluated twice, and none that is already in the log. An interrupted search that reads its log
    back therefore ends with the result of an uninterrupted one. The global random states of Python and NumPy are
    not changed.
    """

    def __init__(
        self,
        supernet: Any,
        evaluate: Any = None,
        objectives: Sequence[Objective] = (),
        settings: SearchSettings | None = None,
        *,
        log: EvaluationLog | str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] = (),
        on_evaluation: Callable[[Evaluation], None] | None = None,
    ) -> None:
        """Set up a search; nothing is evaluated yet.

        Args:
            supernet: The `bnas.SuperNetwork` or `SearchSpace` to search.
            evaluate: Returns the values of a sub-network: a `bnas.Evaluator`, or a function from a `Subnet` to numbers
                by name. With None, the values are the costs of the super-network and those that objectives measure
                themselves.
            objectives: The values to optimise.
            settings: How to search: algorithm, number of evaluations, seed, constraints and more.
            log: Known evaluations, used instead of evaluating again; new ones are recorded in it. A path is opened
                with the fingerprint of the super-network.
            callbacks: Callbacks that follow the search, such as a logger of `bnas.loggers`.
            on_evaluation: A callback of which only ``on_evaluation_end`` is needed, as a function of the evaluation.

        Raises:
            SearchError: A setting does not fit the objectives, or an objective is not known.
            RecordError: The log's file is malformed or of another super-network, or its evaluations lack a value.
        """
        settings = _checked_settings(settings)
        source, asked = Source.of(supernet, settings.space, settings.latency), _checked_objectives(objectives)
        settings.algorithm._selection(asked)  # raises for invalid settings now, not in the middle of the search
        settings.algorithm.regressor()
        racing = None
        if settings.racing is not None:
            racing = Racing.of(asked, source.cost_names, evaluate, settings.racing)
        self._plan = Plan(source, asked, settings, racing)
        self._measures = Measures(evaluate, tuple(one for one in asked if one.measure is not None))
        source.check_names(self._measures, self._plan.names)
        source.check_evaluator(evaluate)
        self._log = log if isinstance(log, EvaluationLog) else _opened(log, source, evaluate, settings.racing)
        self._log.check_names(self._plan.names)
        self._confirm = None if settings.confirm is None else Measures(settings.confirm)
        beside = None if self._log.path is None else f"{self._log.path}.confirmed"
        self._confirmed_log = EvaluationLog(beside, self._log.fingerprint) if self._confirm else EvaluationLog()
        functions = [] if on_evaluation is None else [Evaluated(on_evaluation)]
        self._callbacks = Callbacks((*checked_callbacks(callbacks, Callback, SearchError), *functions))

    def run(self) -> SearchResult:
        """Run the search and return its result. A second call finds all evaluations in the log.

        Raises:
            MetricError: The evaluation returns no value for an objective or constraint, or no mapping of names.
            SearchError: Every evaluation failed; the message has the reason.
            InfeasibleError: No sub-network meets the constraints; the error names the closest one and has the result.
            Exception: Any error of a callback; the evaluations are in the log, and the search can go on from it.
        """
        plan = self._plan
        start = Search(plan.source.space, plan.objectives, plan.settings, plan.planned)
        with self._callbacks.hear_of_errors():
            self._callbacks.tell(Callback.on_search_start, start)
            result = self._searched()
            self._callbacks.tell(Callback.on_search_end, result)
        if message := result.infeasible():
            raise InfeasibleError(message, result)
        return result

    def _searched(self) -> SearchResult:
        settings = self._plan.settings
        workers = settings.workers if settings.executor is None else settings.executor.workers()
        if workers is None:
            return self._result(in_this_process)
        try:
            return self._result(workers)
        finally:
            workers.close()

    def _result(self, evaluate: Evaluations) -> SearchResult:
        result = Run(self._plan, self._measures, self._log, evaluate, self._callbacks).result()
        if self._confirm is not None:
            result = confirmed(result, self._confirm, self._confirmed_log, evaluate)
        return result


def _checked_settings(settings: Any) -> SearchSettings:
    if settings is not None and not isinstance(settings, SearchSettings):
        told = "such as bnas.SearchSettings(num_evals=150)"
        raise SearchError(f"settings {settings!r}: must be a bnas.SearchSettings, {told}")
    return settings or SearchSettings()


def _opened(path: str | os.PathLike[str] | None, source: Source, evaluate: Any, racing: float | None) -> EvaluationLog:
    """The log of evaluations of this super-network in this precision."""
    if path is None:
        return EvaluationLog()
    raced = "" if racing is None else f"-racing-{racing}"
    return EvaluationLog(path, source.fingerprint + getattr(evaluate, "precision", "") + raced)


def _checked_objectives(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    if odd := [one for one in objectives if not isinstance(one, Objective)]:
        raise SearchError(f"objective {odd[0]!r}: must be a bnas.Objective, such as Objective('macs', 'min')")
    names = [objective.name for objective in objectives]
    if not names:
        raise SearchError("a search needs at least one objective")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise SearchError(f"objective {repeated[0]!r} is given {names.count(repeated[0])} times")
    return tuple(objectives)
