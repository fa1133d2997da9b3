"""One run of a search: generation after generation, each evaluation on disk before it is used."""

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


# Which accuracy a candidate has to reach, by what is known of those that are as cheap.


@dataclass(frozen=True)
class Racing:
    """Drops a candidate, after a part of the validation samples, that is dominated with confidence.

    The bar of a candidate is the best accuracy among the feasible sub-networks of earlier generations that were
    measured to the end and are at least as good in all other objectives. Those are known before a candidate is
    evaluated; so a dropped one is dominated by the one that set its bar, unless its other samples were to contradict
    the first ones, which has the probability ``error`` at each of three looks.
    """

    metric: Objective
    known: tuple[Objective, ...]
    """Objectives that are known without an evaluation."""
    error: float

    @classmethod
    def of(cls, objectives: Sequence[Objective], known: Sequence[str], evaluate: Any, error: float) -> Racing:
        """Racing for these objectives.

        Raises:
            SearchError: says what it needs.
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
        """The bar of each of `subnets`, of known `costs`, that has one."""
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
"""Evaluates sub-networks: yields each place and its outcome, in any order."""


@dataclass(frozen=True)
class Plan:
    """The settings that decide what a search finds."""

    source: Source
    objectives: tuple[Objective, ...]
    settings: SearchSettings
    racing: Racing | None = None

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The bounds, relative ones among them."""
        return tuple(Constraint.of(one) for one in self.settings.constraints)

    @property
    def planned(self) -> int:
        """Number of evaluations that the search will have at most."""
        return min(self.settings.num_evals, self.source.space.size)

    @property
    def names(self) -> tuple[str, ...]:
        """The values that an evaluation must give."""
        return tuple(dict.fromkeys([*(o.name for o in self.objectives), *(c.name for c in self.constraints)]))


class Run:
    """What is known in the course of a search."""

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
        """Search until as many sub-networks are evaluated as planned, or all of the space."""
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
        """By how much sub-networks miss the bounds on what is known without an evaluation; None without such bounds."""
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
        """The evaluation of each candidate, in order, told as soon as those before it are there."""
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
        """How far the search has come."""
        now, evaluations = self._progress, tuple(self._evaluations)
        result = SearchResult(self._plan.objectives, evaluations, now.constraints)
        at = (self._generation, evaluations[-1], self._plan.planned)
        return SearchRecord(*at, now.metric, now.best, now.hypervolume, result)

    def _raced(
        self, subnets: Sequence[Subnet], costs: Sequence[Mapping[str, float]], before: Sequence[Evaluation]
    ) -> Measures:
        """The measures, with bars for a generation by those `before` it: whoever evaluates, they are the same."""
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
            raise SearchError(f"all {len(self._evaluations)} evaluations failed; the first one: {first.failure}")

    def _resolved(self) -> tuple[Constraint, ...]:
        """The constraints with absolute bounds; the first evaluation is that of the maximal sub-network."""
        maximal = self._evaluations[0]
        values = {**self._plan.source.costs([maximal.subnet])[0], **maximal.values}
        for one in self._plan.constraints:
            if one.relative and one.name not in values:
                raise SearchError(f"{one}: the maximal sub-network has no {one.name}: {maximal.failure}")
        return tuple(one.resolved(values) for one in self._plan.constraints)
