"""The search itself: which sub-networks are evaluated, one after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bnas.search.candidates import Candidate, Candidates
from bnas.search.errors import SearchError
from bnas.search.evaluation import Evaluation, checked_values, shown
from bnas.search.evaluation_log import EvaluationLog
from bnas.search.global_random import GlobalRandom
from bnas.search.nsga2 import Fitness, Individual, Variation, offspring, survivors
from bnas.search.objective import Objective
from bnas.search.result import SearchResult

if TYPE_CHECKING:
    from bnas.passes import SearchSpace, Subnet

Evaluate = Callable[["Subnet"], Mapping[str, float]]
"""Gives the values of a sub-network: a number for each objective at least."""


class Searcher:
    """Looks for the best trade-offs of a search space by NSGA-II.

    Everything is decided by the seed and by the values: the same seed and values give the same result. No sub-network
    is evaluated twice, and none that is in the log: a log that was read back lets an interrupted search go on to the
    result that it would have had. Python's and numpy's global random states are left as they were.
    """

    def __init__(
        self,
        space: SearchSpace,
        evaluate: Evaluate,
        objectives: Sequence[Objective],
        *,
        population: int = 50,
        num_evals: int = 3000,
        seed: int = 0,
        crossover_prob: float = 0.9,
        crossover_eta: float = 10.0,
        mutation_prob: float | None = None,
        mutation_eta: float = 3.0,
        log: EvaluationLog | None = None,
        on_evaluation: Callable[[Evaluation], None] | None = None,
    ) -> None:
        """Set up a search; nothing is evaluated yet.

        Args:
            space: The sub-networks to choose from.
            evaluate: Gives the values of a sub-network.
            objectives: Which of the values to optimise, and how.
            population: Size of a generation, 4 at least.
            num_evals: Number of sub-networks to look at, those from the log included. Fewer if the space has no more.
            seed: Fixes every random choice.
            crossover_prob: Probability that a pair of parents is crossed.
            crossover_eta: The larger, the more alike are children and parents.
            mutation_prob: Probability that a gene is mutated; None is one gene of a child on average.
            mutation_eta: The larger, the smaller is a mutation's step.
            log: Known evaluations, used instead of evaluating again; new ones are recorded in it.
            on_evaluation: Called after each evaluation, also for those from the log: to save the log, say.

        Raises:
            SearchError: A setting is out of its bounds.
        """
        _check_sizes(population, num_evals, seed)
        self._objectives = _checked_objectives(objectives)
        self._space, self._evaluate, self._on_evaluation = space, evaluate, on_evaluation
        self._population, self._num_evals, self._seed = population, num_evals, seed
        self._variation = Variation(crossover_prob, crossover_eta, mutation_prob, mutation_eta)
        self._log = EvaluationLog() if log is None else log  # an empty log is false too

    def run(self) -> SearchResult:
        """Search and return every evaluation; a second call finds all of them in the log."""
        candidates = Candidates(self._space, np.random.default_rng(self._seed))
        stream = GlobalRandom(self._seed)
        known = {self._space.canonical(one.subnet): one for one in self._log}
        evaluations: list[Evaluation] = []
        population: list[Individual] = []
        children = candidates.claim_first(self._population)
        while children:
            scored = [self._score(child, known, evaluations) for child in children]
            population = survivors([*population, *scored], self._population)
            wanted = min(self._population, self._num_evals - len(evaluations))
            children = offspring(population, wanted, self._variation, candidates, stream)
        return SearchResult(self._objectives, tuple(evaluations))

    def _score(
        self, candidate: Candidate, known: Mapping[Subnet, Evaluation], evaluations: list[Evaluation]
    ) -> Individual:
        found = known.get(candidate.subnet) or self._evaluated(candidate.subnet)
        values = checked_values(found.subnet, found.values, self._objectives)
        evaluations.append(replace(found, index=len(evaluations), subnet=candidate.subnet))
        if self._on_evaluation is not None:
            self._on_evaluation(evaluations[-1])
        scores = [values[objective.name] for objective in self._objectives]
        return Individual(candidate.genes, Fitness([o.weight for o in self._objectives], scores))

    def _evaluated(self, subnet: Subnet) -> Evaluation:
        start = time.perf_counter()
        try:
            values = self._evaluate(subnet)
        except Exception as error:
            if sys.version_info >= (3, 11):
                error.add_note(f"while evaluating sub-network {shown(subnet)}")
            raise
        seconds = time.perf_counter() - start
        return self._log.record(subnet, checked_values(subnet, values, self._objectives), seconds)


def _check_sizes(population: int, num_evals: int, seed: int) -> None:
    if population < 4:
        raise SearchError(f"population {population}: a tournament needs 4 at least")
    if population > num_evals:
        raise SearchError(f"population {population} is larger than num_evals {num_evals}: allowed is 4 to num_evals")
    if seed < 0:
        raise SearchError(f"seed {seed}: allowed is any integer from 0")


def _checked_objectives(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    names = [objective.name for objective in objectives]
    if not names:
        raise SearchError("a search needs an objective at least")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise SearchError(f"objective {repeated[0]!r} is given {names.count(repeated[0])} times")
    return tuple(objectives)
