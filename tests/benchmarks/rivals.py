"""Searches that are compared on the same evaluations: bnas, random search, and pymoo set up as BootstrapNAS does it.

An evaluation is deterministic, so each sub-network is evaluated once for all searches and seeds. A search runs from its
beginning until it asks for what nobody knows yet; what all of them ask for is evaluated together, which shares much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bnas.passes import SearchSpace, Subnet
from bnas.runtime import Evaluator
from bnas.search import (
    NSGA2,
    Evaluation,
    EvaluationLog,
    Objective,
    RandomSearch,
    Searcher,
    SearchResult,
    SearchSettings,
)

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))
POPULATION = 50


class UnknownError(BaseException):
    """A search asked for sub-networks that were not evaluated yet; no error to those who catch errors."""

    def __init__(self, subnets: Sequence[Subnet]) -> None:
        super().__init__(f"{len(subnets)} sub-networks")
        self.subnets = subnets


class Memory:
    """What was evaluated, in a file that a run which was stopped goes on with."""

    def __init__(self, evaluator: Evaluator, path: Path | None = None) -> None:
        self.evaluator, self.supernet = evaluator, evaluator.supernet
        samples = [sum(len(targets) for _, targets in data) for data in (evaluator.calibration, evaluator.validation)]
        self.log = EvaluationLog(path, f"{self.supernet.fingerprint()}-{samples[0]}-{samples[1]}")

    def evaluate_many(self, subnets: Sequence[Subnet]) -> list[dict[str, float]]:
        """Known values.

        Raises:
            UnknownError: some are not known.
        """
        new = [one for one in dict.fromkeys(subnets) if self.log.get(one) is None]
        if new:
            raise UnknownError(new)
        return [dict(self.log.get(one).values) for one in subnets]  # type: ignore[union-attr]

    def learn(self, subnets: Iterable[Subnet]) -> None:
        """Evaluate what is not known; in the order of the genes, for the sake of equal beginnings."""
        new = sorted((one for one in dict.fromkeys(subnets) if self.log.get(one) is None), key=self._beginning)
        for start in range(0, len(new), self.evaluator.group):
            group = new[start : start + self.evaluator.group]
            for subnet, values in zip(group, self.evaluator.evaluate_many(group), strict=True):
                if isinstance(values, Exception):
                    raise values
                self.log.record(subnet, values, 0.0)
            print(f"{len(self.log)} evaluations known, {len(new) - start - len(group)} to go", flush=True)

    def _beginning(self, subnet: Subnet) -> Any:
        """Genes in the order of the network: the stream, then block after block."""
        genes = dict(zip(self.supernet.space.variables(), self.supernet.space.encode(subnet), strict=True))
        return [gene for _, gene in sorted(genes.items(), key=lambda pair: (pair[0].name.count("."), pair[0].name))]


class Learning:
    """A memory that evaluates what it is asked for and does not know."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.supernet = memory, memory.supernet

    def evaluate_many(self, subnets: Sequence[Subnet]) -> list[dict[str, float]]:
        self.memory.learn(subnets)
        return self.memory.evaluate_many(subnets)


Search = Callable[[], SearchResult]


def together(memory: Memory, searches: Sequence[Search]) -> list[SearchResult]:
    """The results of searches that evaluate with `memory`."""
    while True:
        results, asked = list[SearchResult](), list[Subnet]()
        for search in searches:
            try:
                results.append(search())
            except UnknownError as unknown:
                asked += unknown.subnets
        if not asked:
            return results
        memory.learn(asked)


def ours(
    memory: Memory | Learning, count: int, seed: int, kind: type[NSGA2 | RandomSearch] = NSGA2, **settings: Any
) -> SearchResult:
    """A search of bnas with its own defaults."""
    algorithm = kind(population=min(POPULATION, count), **settings)
    search = SearchSettings(algorithm=algorithm, num_evals=count, seed=seed)
    return Searcher(memory.supernet, memory, OBJECTIVES, search).run()


class PeerEncoding:
    """BootstrapNAS's: a gene for each width, and one for depth, the index in a list of all sets of skipped blocks."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        blocks = space.blocks
        self.skipped = [set(one) for count in range(len(blocks) + 1) for one in combinations(blocks, count)]
        self.choices = [v for v in space.variables() if v.kind != "depth"]
        self.last = [*(len(v.choices) - 1 for v in self.choices), len(self.skipped) - 1]

    def decode(self, row: Sequence[int]) -> Subnet:
        skipped = self.skipped[int(row[-1])]
        genes = iter(row[:-1])
        all_genes = [
            int(v.name not in skipped) if v.kind == "depth" else int(next(genes)) for v in self.space.variables()
        ]
        return self.space.canonical(self.space.repair(self.space.decode(all_genes)))


def theirs(memory: Memory, encoding: PeerEncoding, count: int, seed: int) -> SearchResult:
    """Pymoo's NSGA-II on uniformly random integers to start with, with the settings of BootstrapNAS."""
    from pymoo.algorithms.moo.nsga2 import NSGA2 as Peer
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    seen = list[Evaluation]()

    class Peers(Problem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(n_var=len(encoding.last), n_obj=2, xl=0, xu=np.array(encoding.last), vtype=int)

        def _evaluate(self, x: Any, out: Any, *_: Any, **__: Any) -> None:
            subnets = [encoding.decode(row) for row in x]
            values = memory.evaluate_many(subnets)
            pairs = zip(subnets, values, strict=True)
            seen.extend([Evaluation(i, s, v, 0.0) for i, (s, v) in enumerate(pairs, len(seen))])
            out["F"] = np.array([[v["macs"] / 1e6, -v["accuracy"]] for v in values])

    population = min(POPULATION, count)
    peer = Peer(
        pop_size=population,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=10.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=0.02, eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    minimize(Peers(), peer, ("n_gen", count // population), seed=seed)
    return SearchResult(OBJECTIVES, tuple(seen[:count]))


def head(result: SearchResult, count: int) -> SearchResult:
    """What it had found after so many evaluations."""
    return SearchResult(result.objectives, result.evaluations[:count])


def volume(result: SearchResult, memory: Memory) -> float:
    """Hypervolume up to an accuracy of 0 and the MACs of the maximal sub-network, which count as 1."""
    full = memory.supernet.costs(memory.supernet.space.maximal())["macs"]
    return result.hypervolume({"accuracy": 0.0, "macs": full}) / full
