"""The search itself: which sub-networks are looked for, and how."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from numbers import Integral
from typing import Any

from bnas.passes import SearchSpace, Subnet
from bnas.search.algorithm import NAMES, Name
from bnas.search.confirmation import confirmed
from bnas.search.constraint import Constraint
from bnas.search.errors import InfeasibleError, SearchError
from bnas.search.evaluation import Evaluation
from bnas.search.evaluation_log import EvaluationLog
from bnas.search.fitness import Select, crowded
from bnas.search.objective import Objective, nearest
from bnas.search.outcome import Measures, in_this_process
from bnas.search.racing import Racing
from bnas.search.result import SearchResult
from bnas.search.rnsga2 import Preference
from bnas.search.run import Evaluations, Plan, Run
from bnas.search.source import Source
from bnas.search.surrogate import GaussianProcess, Regressor
from bnas.search.variation import Variation
from bnas.search.workers import Workers


class Searcher:
    """Looks for the best trade-offs among the sub-networks of a super-network.

    Everything is decided by the seed and by the values: the same seed and values give the same result, whoever
    evaluates and in whichever order. No sub-network is evaluated twice, and none that is in the log: a log that was
    read back lets an interrupted search go on to the result that it would have had. Python's and numpy's global
    random states are left as they were.
    """

    def __init__(
        self,
        supernet: Any,
        evaluate: Any = None,
        objectives: Sequence[Objective] = (),
        *,
        space: SearchSpace | None = None,
        constraints: Sequence[Constraint | str] = (),
        algorithm: Name = "NSGA2",
        population: int = 50,
        num_evals: int = 3000,
        seed: int = 0,
        crossover_prob: float = 0.9,
        crossover_eta: float = 10.0,
        mutation_prob: float | None = None,
        mutation_eta: float = 3.0,
        aspiration_points: Sequence[Sequence[float]] | None = None,
        epsilon: float = 0.001,
        weights: Sequence[float] | None = None,
        extreme_points_as_ref_points: bool = False,
        predictor: Regressor | bool = False,
        latency: Callable[[Subnet], float] | None = None,
        confirm: Any = None,
        racing: float | None = None,
        executor: Executor | Callable[[], Executor] | None = None,
        chunk: int = 1,
        log: EvaluationLog | str | os.PathLike[str] | None = None,
        on_evaluation: Callable[[Evaluation], None] | None = None,
    ) -> None:
        """Set up a search; nothing is evaluated yet.

        Args:
            supernet: Where the sub-networks come from: a `bnas.SuperNetwork`, or a `SearchSpace`.
            evaluate: Gives the values of a sub-network: a `bnas.Evaluator`, or a function from a `Subnet` to numbers by
                name. With None there are the costs of the super-network and what objectives measure by themselves.
            objectives: Which of the values to optimise, and how.
            space: The part of the super-network's space to search, such as what its last stage trained; None is all.
            constraints: Bounds that hold before any objective counts, as `Constraint` or as ``"parameters <= 60 %"``.
            algorithm: "NSGA2", "RNSGA2" (near aspiration points) or "random".
            population: Size of a generation, 4 at least.
            num_evals: Number of sub-networks to look at, those from the log included. Fewer if the space has no more.
            seed: Fixes every random choice.
            crossover_prob: Probability that a pair of parents is crossed.
            crossover_eta: The larger, the more alike are children and parents.
            mutation_prob: Probability that a gene is mutated; None is one gene of a child on average.
            mutation_eta: The larger, the smaller is a mutation's step.
            aspiration_points: For RNSGA2: points that the front should be near, each a value for each objective.
            epsilon: For RNSGA2: of sub-networks that are nearer to each other than this, one counts.
            weights: For RNSGA2: how much each objective counts in distances; None is all alike.
            extreme_points_as_ref_points: For RNSGA2: also look near the best in each objective.
            predictor: For NSGA2 and RNSGA2: predicts values of sub-networks from those evaluated, so that only
                promising ones are. True is a Gaussian process (needs scikit-learn), or a regressor like its ones.
            latency: Gives the value "latency" of a sub-network, such as a `bnas.LatencyModel`, which predicts
                CPU milliseconds. Save the model where there is a log: evaluations in a log keep the latency they had.
            confirm: An exact evaluation, given as `evaluate` is: measures the front again where `evaluate` is a rough
                one. Its log stands beside the other, with ".confirmed" behind the name.
            racing: The probability of being wrong, such as 0.001, at which a candidate that seems dominated after a
                part of the validation samples is measured no further; see `bnas.search.racing.Racing`. Needs a metric
                that is a mean over samples of values from 0 to 1, as accuracy is. The value "part" says how many
                were measured.
            executor: Evaluates, as `bnas.search.Workers` says; None evaluates here.
            chunk: So many sub-networks are handed to the executor together.
            log: Known evaluations, used instead of evaluating again; new ones are recorded in it. A path is opened
                with the fingerprint of the super-network.
            on_evaluation: Called after each evaluation in the order of the result, also for those from the log.

        Raises:
            SearchError: A setting is out of its bounds, or an objective is not known.
            RecordError: The log's file is malformed or of another super-network.
        """
        _check_sizes(population, num_evals, seed)
        source, asked = Source.of(supernet, space, latency), _checked_objectives(objectives)
        bounds = tuple(map(Constraint.of, constraints))
        preferring = (aspiration_points, epsilon, weights, extreme_points_as_ref_points)
        self._plan = Plan(
            source,
            asked,
            bounds,
            population,
            num_evals,
            seed,
            Variation(crossover_prob, crossover_eta, mutation_prob, mutation_eta),
            _selection(algorithm, asked, *preferring),
            _regressor(algorithm, predictor),
            None if racing is None else Racing.of(asked, source.cost_names, evaluate, racing),
        )
        self._measures = Measures(evaluate, tuple(one for one in asked if one.measure is not None))
        source.check_names(self._measures, self._plan.names)
        source.check_evaluator(evaluate)
        self._log = log if isinstance(log, EvaluationLog) else _opened(log, source, evaluate, racing)
        self._confirm = None if confirm is None else Measures(confirm)
        beside = None if self._log.path is None else f"{self._log.path}.confirmed"
        self._confirmed_log = EvaluationLog() if confirm is None else EvaluationLog(beside, self._log.fingerprint)
        self._executor, self._chunk, self._on_evaluation = executor, chunk, on_evaluation

    def run(self) -> SearchResult:
        """Search and return every evaluation; a second call finds all of them in the log.

        Raises:
            MetricError: The evaluation gives no value for an objective or a constraint, or no mapping of names.
            SearchError: Every evaluation failed; says why.
            InfeasibleError: Constraints let nothing through; says what is closest, and has the result.
        """
        if self._executor is None:
            return self._result(in_this_process)
        workers = Workers(self._executor, self._chunk)
        try:
            return self._result(workers)
        finally:
            workers.close()

    def _result(self, evaluate: Evaluations) -> SearchResult:
        result = Run(self._plan, self._measures, self._log, evaluate, self._on_evaluation).result()
        if self._confirm is not None:
            result = confirmed(result, self._confirm, self._confirmed_log, evaluate)
        if message := result.infeasible():
            raise InfeasibleError(message, result)
        return result


def _check_sizes(population: int, num_evals: int, seed: int) -> None:
    for name, value in (("population", population), ("num_evals", num_evals), ("seed", seed)):
        if not isinstance(value, Integral):
            raise SearchError(f"{name} {value!r}: allowed is a whole number")
    if population < 4:
        raise SearchError(f"population {population}: a tournament needs 4 at least")
    if population > num_evals:
        raise SearchError(f"population {population} is larger than num_evals {num_evals}: allowed is 4 to num_evals")
    if seed < 0:
        raise SearchError(f"seed {seed}: allowed is any integer from 0")


def _opened(path: str | os.PathLike[str] | None, source: Source, evaluate: Any, racing: float | None) -> EvaluationLog:
    """The log of evaluations of this super-network in this precision."""
    if path is None:
        return EvaluationLog()
    raced = "" if racing is None else f"-racing-{racing}"
    return EvaluationLog(path, source.fingerprint + getattr(evaluate, "precision", "") + raced)


def _checked_objectives(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    if odd := [one for one in objectives if not isinstance(one, Objective)]:
        raise SearchError(f"objective {odd[0]!r}: needs to be a bnas.Objective, such as Objective('macs', 'min')")
    names = [objective.name for objective in objectives]
    if not names:
        raise SearchError("a search needs an objective at least")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise SearchError(f"objective {repeated[0]!r} is given {names.count(repeated[0])} times")
    return tuple(objectives)


def _selection(algorithm: str, objectives: Sequence[Objective], points: Any, *settings: Any) -> Select | None:
    """How survivors are chosen; None for random search, which has none."""
    if algorithm not in NAMES:
        raise SearchError(f"algorithm {algorithm!r}: {nearest(algorithm, NAMES)}")
    if (algorithm == "RNSGA2") != (points is not None):
        raise SearchError("aspiration_points belong to the algorithm 'RNSGA2', which needs them")
    if algorithm == "RNSGA2":
        return Preference.of(objectives, points, *settings)
    return crowded if algorithm == "NSGA2" else None


def _regressor(algorithm: str, predictor: Regressor | bool) -> Regressor | None:
    if predictor is False:
        return None
    if algorithm == "random":
        raise SearchError("a predictor is of no use to the algorithm 'random': allowed are NSGA2 and RNSGA2")
    return GaussianProcess() if predictor is True else predictor
