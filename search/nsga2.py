"""NSGA-II on integer genes, with DEAP's operators, and nothing that is left behind in DEAP or in `random`."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING

from deap import tools

from bnas.search.fitness import Individual, Select, crowded, survivors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bnas.search.candidates import Candidate, Candidates
    from bnas.search.global_random import GlobalRandom
    from bnas.search.variation import Variation

MUTATION_TRIES = 8
"""How often a child that was seen before is mutated again before a random sub-network takes its place."""


@dataclass
class Evolution:
    """A running NSGA-II (Deb and others, 2002); with another `select` also its kin, such as R-NSGA-II."""

    candidates: Candidates
    stream: GlobalRandom
    population: int
    """Size of a generation, and most survivors of one."""
    variation: Variation
    select: Select = crowded
    individuals: list[Individual] = field(default_factory=list)
    """The survivors, best first."""

    def ask(self, count: int) -> list[Candidate]:
        """Return up to ``count`` unclaimed candidates: to start from at first, then children of the survivors."""
        if not self.individuals:
            return self.candidates.claim_first(min(count, self.population))
        return offspring(self.individuals, min(count, self.population), self.variation, self.candidates, self.stream)

    def tell(self, scored: Sequence[Individual]) -> None:
        """Take what was evaluated; the best of it and of the survivors survive."""
        self.individuals = survivors([*self.individuals, *scored], self.population, self.select)


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
    with stream.lent():
        children = list(islice(children_of(population, variation, candidates.last_genes), count))
        claimed = _claim_near(children, variation, candidates)
    return [candidate for candidate in claimed if candidate is not None]


def children_of(population: Sequence[Individual], variation: Variation, last: Sequence[int]) -> Iterator[list[int]]:
    """Return children of tournament winners. Draws from the global ``random``."""
    for mother, father in parents(population):
        pair = list(mother.genes), list(father.genes)
        if random.random() < variation.crossover_prob:
            pair = variation.cross(mother.genes, father.genes, last)
        yield from (variation.mutate(genes, last) for genes in pair)


def _claim_near(
    children: Sequence[Sequence[int]], variation: Variation, candidates: Candidates
) -> list[Candidate | None]:
    """Return a candidate with or near each child's genes, else a random one, or None if the space is used up."""
    claimed: dict[int, Candidate] = {}
    waiting = dict(enumerate(children))
    for _ in range(1 + MUTATION_TRIES):
        forms = candidates.canonical(list(waiting.values()))
        found = {i: one for i, form in zip(waiting, forms, strict=True) if (one := candidates.claim_canonical(form))}
        claimed.update(found)
        last = candidates.last_genes
        waiting = {i: variation.mutate(genes, last) for i, genes in waiting.items() if i not in found}
        if not waiting:
            break
    return [claimed.get(i) or candidates.claim_random() for i in range(len(children))]
