"""The loop of a search: generation by generation. Each evaluation is on disk before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bnas.runtime.evaluate.together import Bar
from bnas.runtime.train.callbacks import Callbacks

from .algorithms.candidates import Candidates
from .algorithms.contract import Fitness, Individual, RandomDraws
from .algorithms.nsga2 import Evolution, GlobalRandom
from .algorithms.settings import RandomSearch
from .algorithms.surrogate import Surrogate
from .callbacks import Callback, SearchRecord
from .errors import SearchError
from .evaluation import check_names, in_this_process
from .objectives import Constraint, violation
from .progress import SearchProgress
from .result import SearchResult

if TYPE_CHECKING:
    from bnas.passes import Subnet

    from .algorithms.candidates import Candidate, Genes
    from .algorithms.contract import Algorithm
    from .evaluation import Evaluation, Measures, Outcome
    from .log import EvaluationLog
    from .objectives import Objective
    from .settings import SearchSettings
    from .source import Source


# Racing: the accuracy that a candidate must be able to reach, given the accuracy of equally cheap sub-networks.


@dataclass(frozen=True)
class Racing:
    """Stops the evaluation of a candidate that is almost certainly dominated, after a part of the validation samples.

    The bar of a candidate is an accuracy: the best one among the feasible sub-networks of earlier generations that were
    measured completely and are at least as good in all other objectives (these are known in advance). A candidate that
    cannot reach its bar is dominated by the sub-network that set it. The decision is wrong with probability ``error``
    at each of three looks, namely if the remaining samples contradict the first ones.
    """

    metric: Objective
    known: tuple[Objective, ...]
    """Objectives that are known without an evaluation."""
    error: float

    @classmethod
    def of(cls, objectives: Sequence[Objective], known: Sequence[str], evaluate: Any, error: float) -> Racing:
        """Racing for these objectives.

        Raises:
            SearchError: Racing is impossible with these objectives or this evaluation; the message says why.
        """
        measured = [one for one in objectives if one.name not in known]
        if len(measured) != 1 or measured[0].direction != "max" or measured[0].measure is not None:
            found = ", ".join(f"{one.name} ({one.direction})" for one in measured) or "none"
            raise SearchError(
                "racing needs exactly one objective that an evaluation measures and that is maximised; those known "
                f"without an evaluation ({', '.join(known) or 'none'}) do not count. Got {found}"
            )
        if not hasattr(evaluate, "evaluate_many"):
            raise SearchError(
                "racing measures the data part by part, so it needs a bnas.Evaluator, or a Remote that makes one"
            )
        return cls(measured[0], tuple(one for one in objectives if one.name in known), error)

    def bars(
        self, subnets: Sequence[Subnet], costs: Sequence[Mapping[str, float]], feasible: Sequence[Evaluation]
    ) -> dict[Subnet, Bar]:
        """Return the bar of each sub-network that has one; `costs` are their values that need no evaluation."""
        whole = [one.values for one in feasible if one.values.get("part", 1.0) == 1.0]
        rivals = np.array([self._costs(values) for values in whole]).reshape(len(whole), len(self.known))
        quality = np.array([values[self.metric.name] for values in whole])
        as_good = {
            subnet: (rivals <= self._costs(cost)).all(axis=1) for subnet, cost in zip(subnets, costs, strict=True)
        }
        return {one: Bar(float(quality[rows].max()), self.error) for one, rows in as_good.items() if rows.any()}

    def _costs(self, values: Mapping[str, float]) -> list[float]:
        """Less is better."""
        return [one.sign * values[one.name] for one in self.known]


Evaluations = Callable[["Measures", "Sequence[Subnet]"], "Iterator[tuple[int, Outcome]]"]
"""Evaluates sub-networks; yields the position and outcome of each, in any order."""


@dataclass(frozen=True)
class Plan:
    """The settings that determine the result of a search."""

    source: Source
    objectives: tuple[Objective, ...]
    settings: SearchSettings
    racing: Racing | None = None

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints, as given: bounds may be relative."""
        return tuple(Constraint.of(one) for one in self.settings.constraints)

    @property
    def planned(self) -> int:
        """Largest number of evaluations of the search."""
        return min(self.settings.num_evals, self.source.space.size)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values that an evaluation must return."""
        return tuple(dict.fromkeys([*(o.name for o in self.objectives), *(c.name for c in self.constraints)]))


class Run:
    """The state of a search while it runs."""

    def __init__(
        self,
        plan: Plan,
        measures: Measures,
        log: EvaluationLog,
        evaluate: Evaluations = in_this_process,
        callbacks: Callbacks[Callback] | None = None,
    ) -> None:
        self._plan, self._measures, self._log = plan, measures, log
        self._evaluate, self._callbacks = evaluate, callbacks or Callbacks(())
        self._progress = SearchProgress(plan.objectives, plan.constraints)
        self._known = {plan.source.space.canonical(one.subnet): one for one in log}
        self._evaluations: list[Evaluation] = []
        self._bounds: tuple[Constraint, ...] = ()
        """The constraints, absolute: known after the first generation."""
        self._generation = 0

    def result(self) -> SearchResult:
        """Search until the planned number of sub-networks, or the whole space, is evaluated; return the result."""
        plan, algorithm = self._plan, self._algorithm()
        while (left := plan.settings.num_evals - len(self._evaluations)) and (asked := algorithm.ask(left)):
            found = list(self._evaluated(asked))
            self._check_alive()
            self._bounds = self._bounds or self._resolved()
            pairs = zip(asked, found, strict=True)
            algorithm.tell([self._scored(c.genes, e.values) for c, e in pairs if e.failure is None])
            if self._callbacks:
                self._callbacks.tell(Callback.on_generation_end, self._record())
            self._generation += 1
        return SearchResult(plan.objectives, tuple(self._evaluations), self._bounds)

    def _algorithm(self) -> Algorithm:
        plan = self._plan
        settings, algorithm = plan.settings, plan.settings.algorithm
        generator = np.random.default_rng(settings.seed)
        candidates = Candidates(plan.source.space, generator, self._misses(), settings.begin_with)
        if isinstance(algorithm, RandomSearch):
            return RandomDraws(candidates, settings.population)
        select, stream = algorithm._selection(plan.objectives), GlobalRandom(settings.seed)
        evolution = Evolution(candidates, stream, settings.population, algorithm, select)
        regressor = algorithm.regressor()
        if regressor is None:
            return evolution
        return Surrogate(evolution, regressor, plan.names, plan.source.costs, self._scored)

    def _misses(self) -> Callable[[Sequence[Subnet]], list[float]] | None:
        """Return how far sub-networks violate bounds on values that need no evaluation; None without such bounds."""
        source, own = self._plan.source, {one.name for one in self._measures.own}
        known = [one for one in self._plan.constraints if one.name in source.cost_names and one.name not in own]
        if not known:
            return None
        maximal = source.costs([source.space.maximal()])[0]
        bounds = tuple(one.resolved(maximal) for one in known)
        return lambda subnets: [violation(bounds, costs) for costs in source.costs(subnets)]

    def _scored(self, genes: Genes, values: Mapping[str, float]) -> Individual:
        objectives = self._plan.objectives
        fitness = Fitness(
            [o.weight for o in objectives], [values[o.name] for o in objectives], violation(self._bounds, values)
        )
        return Individual(genes, fitness, values)

    def _evaluated(self, asked: Sequence[Candidate]) -> Iterator[Evaluation]:
        """Evaluate the candidates; yield each evaluation, in order, as soon as all earlier ones are finished."""
        subnets = [candidate.subnet for candidate in asked]
        found = {i: self._known[s] for i, s in enumerate(subnets) if s in self._known}
        for one in found.values():
            if one.failure is None:
                check_names(one.subnet, one.values, self._plan.names)
        told, before = 0, len(self._evaluations)

        def tell() -> Iterator[Evaluation]:
            nonlocal told
            while told in found:
                evaluation = replace(found[told], index=len(self._evaluations), subnet=subnets[told])
                self._evaluations.append(evaluation)
                if self._callbacks:
                    self._progress.add(evaluation)
                    self._callbacks.tell(Callback.on_evaluation_end, self._record())
                told += 1
                yield evaluation

        yield from tell()
        wanted = [i for i in range(len(asked)) if i not in found]
        new = [subnets[i] for i in wanted]
        costs = self._plan.source.costs(new)
        measures = self._raced(new, costs, self._evaluations[:before])
        for place, outcome in self._evaluate(measures, new):
            found[wanted[place]] = self._recorded(new[place], outcome, costs[place])
            yield from tell()

    def _record(self) -> SearchRecord:
        """Return the current progress."""
        now, evaluations = self._progress, tuple(self._evaluations)
        result = SearchResult(self._plan.objectives, evaluations, now.constraints)
        at = (self._generation, evaluations[-1], self._plan.planned)
        return SearchRecord(*at, now.metric, now.best, now.hypervolume, result)

    def _raced(
        self, subnets: Sequence[Subnet], costs: Sequence[Mapping[str, float]], before: Sequence[Evaluation]
    ) -> Measures:
        """Return the measures with the bars of a generation, which depend only on the evaluations `before` it."""
        if self._plan.racing is None:
            return self._measures
        feasible = [one for one in before if one.failure is None and not violation(self._bounds, one.values)]
        return replace(self._measures, bars=self._plan.racing.bars(subnets, costs, feasible))

    def _recorded(self, subnet: Subnet, outcome: Outcome, costs: dict[str, float]) -> Evaluation:
        if outcome.failure is not None:
            return self._log.record_failure(subnet, outcome.failure, outcome.seconds)
        values = {**outcome.values, **{name: cost for name, cost in costs.items() if name not in outcome.values}}
        check_names(subnet, values, self._plan.names)
        return self._log.record(subnet, values, outcome.seconds)

    def _check_alive(self) -> None:
        if all(one.failure is not None for one in self._evaluations):
            first = self._evaluations[0]
            raise SearchError(
                f"all {len(self._evaluations)} evaluations failed; the first one: {first.failure}; "
                "correct the cause, and search again without the log of this search"
            )

    def _resolved(self) -> tuple[Constraint, ...]:
        """The constraints with absolute bounds; the first evaluation is that of the maximal sub-network."""
        maximal = self._evaluations[0]
        values = {**self._plan.source.costs([maximal.subnet])[0], **maximal.values}
        for one in self._plan.constraints:
            if one.relative and one.name not in values:
                raise SearchError(
                    f"{one}: the maximal sub-network has no {one.name}: {maximal.failure}; give an absolute bound"
                )
        return tuple(one.resolved(values) for one in self._plan.constraints)
