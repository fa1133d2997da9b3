"""The interface of search algorithms, the fitness that selection reads, and random search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from deap import base, tools

if TYPE_CHECKING:
    from .candidates import Candidate, Candidates, Genes


# The attributes of a candidate that DEAP's selection reads. Feasible candidates come before infeasible ones.


class Fitness(base.Fitness):  # type: ignore[misc]  # DEAP carries no types
    """DEAP's fitness with the weights of one search. `deap.creator` would make them global to the process."""

    def __init__(self, weights: Sequence[float], values: Sequence[float], violation: float = 0.0) -> None:
        self.weights = tuple(weights)
        self.violation = violation
        """By how much the constraints are missed; 0 is feasible."""
        self.crowding_dist = 0.0
        super().__init__(tuple(values))

    def dominates(self, other: Fitness, obj: slice = slice(None)) -> bool:
        """Whether this is better: feasible before infeasible, then the smaller violation, then all objectives.

        Deb, Pratap, Agarwal, Meyarivan: A fast and elitist multiobjective genetic algorithm (2002), section VI.
        """
        if self.violation != other.violation:
            return self.violation < other.violation
        return self.violation == 0 and bool(super().dominates(other, obj))


@dataclass(frozen=True, eq=False)
class Individual:
    """The genes of an evaluated candidate, and the fitness that DEAP's selection reads."""

    genes: Genes
    fitness: Fitness
    values: Mapping[str, float] = field(default_factory=dict)
    """All values of the evaluation."""


Select = Callable[[Sequence[Individual], int], list[Individual]]
"""Chooses the given number of survivors among feasible individuals, best first; sets ``fitness.crowding_dist``."""


def survivors(individuals: Sequence[Individual], count: int, select: Select | None = None) -> list[Individual]:
    """Return the ``count`` best individuals: feasible ones chosen by `select`, then those with the least violation."""
    feasible = [one for one in individuals if one.fitness.violation == 0]
    chosen = (select or crowded)(feasible, min(count, len(feasible)))
    missing = sorted((one for one in individuals if one.fitness.violation > 0), key=lambda one: one.fitness.violation)
    for one in missing:
        one.fitness.crowding_dist = 0.0
    return [*chosen, *missing[: count - len(chosen)]]


def crowded(individuals: Sequence[Individual], count: int) -> list[Individual]:
    """NSGA-II's choice: by front, then by crowding distance."""
    return list(tools.selNSGA2(list(individuals), count, nd=sorting(individuals))) if individuals else []


def sorting(individuals: Sequence[Individual]) -> str:
    """Return the name of DEAP's sorting method: "log" is faster, but fails on a single objective."""
    return "log" if len(individuals[0].fitness.wvalues) > 1 else "standard"


# The interface of a running search algorithm.


class Algorithm(Protocol):
    """Decides which candidates are evaluated next. The decision depends only on the seed and on earlier `tell` calls.

    Each `ask` is followed by one `tell` with the candidates whose evaluation succeeded, in the same order. The very
    first candidate is the maximal sub-network, because relative constraints refer to its values.
    """

    def ask(self, count: int) -> list[Candidate]:
        """Return up to ``count`` new candidates; an empty list if the space has no more."""

    def tell(self, scored: Sequence[Individual]) -> None:
        """Take the fitness of candidates."""


# Random search: the baseline.


@dataclass
class RandomDraws:
    """A running random search: the maximal sub-network, then uniformly random ones."""

    candidates: Candidates
    population: int
    """Number of candidates that are evaluated together."""

    def ask(self, count: int) -> list[Candidate]:
        """Return up to ``count`` unclaimed candidates."""
        first = self.candidates.claim(self.candidates.last_genes)
        chosen = [] if first is None else [first]
        while len(chosen) < min(count, self.population) and (candidate := self.candidates.claim_random()):
            chosen.append(candidate)
        return chosen

    def tell(self, scored: Sequence[Individual]) -> None:
        """Learn nothing."""
