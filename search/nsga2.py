"""NSGA-II on integer genes: DEAP's operators, with rounding, and nothing that is left behind in DEAP or in `random`."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

from deap import base, tools

from bnas.search.errors import SearchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bnas.search.candidates import Candidate, Candidates
    from bnas.search.global_random import GlobalRandom

MUTATION_TRIES = 8
"""How often a child that was seen before is mutated again before a random sub-network takes its place."""


class Fitness(base.Fitness):  # type: ignore[misc]  # DEAP carries no types
    """DEAP's fitness with the weights of one search. `deap.creator` would make them global to the process."""

    def __init__(self, weights: Sequence[float], values: Sequence[float]) -> None:
        self.weights = tuple(weights)
        super().__init__(tuple(values))


@dataclass(frozen=True, eq=False)
class Individual:
    """The genes of an evaluated candidate, and the fitness that DEAP's selection reads."""

    genes: tuple[int, ...]
    fitness: Fitness


@dataclass(frozen=True)
class Variation:
    """How children are made of parents: simulated binary crossover, polynomial mutation, rounding."""

    crossover_prob: float = 0.9
    """Probability that a pair of parents is crossed."""
    crossover_eta: float = 10.0
    """The larger, the more alike are children and parents."""
    mutation_prob: float | None = None
    """Probability that a gene is mutated; None is one gene of a child on average."""
    mutation_eta: float = 3.0
    """The larger, the smaller is a mutation's step."""

    def __post_init__(self) -> None:
        for name in ("crossover_prob", "mutation_prob"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SearchError(f"{name} {value!r} is not a probability: allowed is 0 to 1")
        for name in ("crossover_eta", "mutation_eta"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise SearchError(f"{name} {value!r}: allowed is any finite number from 0")

    def cross(self, mother: Sequence[int], father: Sequence[int], last: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return two children of one pair. Draws from the global ``random``."""
        one, two = [float(gene) for gene in mother], [float(gene) for gene in father]
        tools.cxSimulatedBinaryBounded(one, two, self.crossover_eta, *_bounds(last))
        return _rounded(one, last), _rounded(two, last)

    def mutate(self, genes: Sequence[int], last: Sequence[int]) -> list[int]:
        """Return mutated genes. Draws from the global ``random``."""
        mutated = [float(gene) for gene in genes]
        free = sum(gene > 0 for gene in last)
        probability = 1 / max(free, 1) if self.mutation_prob is None else self.mutation_prob
        tools.mutPolynomialBounded(mutated, self.mutation_eta, *_bounds(last), probability)
        return _rounded(mutated, last)


def _bounds(last: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return the range of each gene, half a step wider on both sides.

    So each choice is the rounding of a range of the same size: within [0, 1] a yes-or-no gene would nearly never
    flip. And a gene with one choice has a range that is not empty: DEAP divides by it.
    """
    return [-0.5] * len(last), [gene + 0.5 for gene in last]


def _rounded(genes: Sequence[float], last: Sequence[int]) -> list[int]:
    return [min(max(math.floor(gene + 0.5), 0), most) for gene, most in zip(genes, last, strict=True)]


def survivors(individuals: Sequence[Individual], count: int) -> list[Individual]:
    """Return the ``count`` best by front and then by crowding distance, which it assigns."""
    if not individuals:
        return []
    # DEAP's "log" sorting is the faster one, and fails on a single objective.
    sorting = "log" if len(individuals[0].fitness.wvalues) > 1 else "standard"
    return list(tools.selNSGA2(list(individuals), count, nd=sorting))


def parents(population: Sequence[Individual]) -> Iterator[tuple[Individual, Individual]]:
    """Return pairs that won tournaments, at least one for every two individuals. Draws from the global ``random``."""
    # DEAP draws in fours: the population is filled up with its first, which `survivors` puts best first.
    padded = list(islice(cycle(population), -(-len(population) // 4) * 4))
    winners = tools.selTournamentDCD(padded, len(padded))
    return zip(winners[::2], winners[1::2], strict=True)


def offspring(
    population: Sequence[Individual], count: int, variation: Variation, candidates: Candidates, stream: GlobalRandom
) -> list[Candidate]:
    """Return up to ``count`` unclaimed candidates, but no more than the population has individuals.

    Fewer only if the space has no more.
    """
    last = candidates.last_genes
    with stream.lent():
        children = list(islice(_children(population, variation, last), count))
        claimed = [_claim(genes, variation, candidates) for genes in children]
    return [candidate for candidate in claimed if candidate is not None]


def _children(population: Sequence[Individual], variation: Variation, last: Sequence[int]) -> Iterator[list[int]]:
    for mother, father in parents(population):
        pair = list(mother.genes), list(father.genes)
        if random.random() < variation.crossover_prob:
            pair = variation.cross(mother.genes, father.genes, last)
        yield from (variation.mutate(genes, last) for genes in pair)


def _claim(genes: Sequence[int], variation: Variation, candidates: Candidates) -> Candidate | None:
    """Return a candidate near these genes, else a random one, or None if the space is used up."""
    for _ in range(MUTATION_TRIES):
        if candidate := candidates.claim(genes):
            return candidate
        genes = variation.mutate(genes, candidates.last_genes)
    return candidates.claim_random()
