"""NSGA-II on integer genes with DEAP's operators. The global states of DEAP and of `random` stay unchanged."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import cycle, islice
from typing import TYPE_CHECKING

from deap import tools
from pydantic import Field

from bnas.passes.settings import NotNegative, Probability, settings
from bnas.search.errors import SearchError

from .contract import Individual, Select, crowded, survivors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .candidates import Candidate, Candidates


# Python's global random generator: DEAP draws from it, so bnas sets its state before and restores it afterwards.


class GlobalRandom:
    """A private stream of random numbers for code that draws from the global functions of ``random``.

    Draws inside `lent` depend only on the seed and on earlier draws inside `lent`. Afterwards the caller's global state
    is restored. Do not use it from several threads: there is only one global state.
    """

    def __init__(self, seed: int) -> None:
        self._state = random.Random(seed).getstate()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the global functions of ``random`` draw from this stream inside the context."""
        outer = random.getstate()
        random.setstate(self._state)
        try:
            yield
        finally:
            self._state = random.getstate()
            random.setstate(outer)


# Children of parents on integer genes: DEAP's simulated binary crossover and polynomial mutation, with rounding.


@settings(SearchError, kw_only=True)
class Variation:
    """Makes children from parents: simulated binary crossover, polynomial mutation, rounding."""

    # Described here, and not below: subclasses take the descriptions over.
    crossover_prob: Probability = Field(default=0.9, description="Probability that a pair of parents is crossed.")
    crossover_eta: NotNegative = Field(
        default=10.0, description="Larger values make children more similar to their parents."
    )
    mutation_prob: Probability | None = Field(
        default=None,
        description="Probability that a choice is mutated; by default one choice of each child on average.",
    )
    mutation_eta: NotNegative = Field(default=3.0, description="Larger values make the steps of mutations smaller.")

    def cross(self, mother: Sequence[int], father: Sequence[int], last: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return two children of one pair. Draws from the global ``random``."""
        one, two, (low, up, _) = list(mother), list(father), _bounds(tuple(last))
        tools.cxSimulatedBinaryBounded(one, two, self.crossover_eta, low, up)
        return _rounded(one), _rounded(two)

    def mutate(self, genes: Sequence[int], last: Sequence[int]) -> list[int]:
        """Return mutated genes. Draws from the global ``random``."""
        mutated, (low, up, free) = list(genes), _bounds(tuple(last))
        probability = 1 / max(free, 1) if self.mutation_prob is None else self.mutation_prob
        tools.mutPolynomialBounded(mutated, self.mutation_eta, low, up, probability)
        return _rounded(mutated)


@lru_cache(maxsize=8)
def _bounds(last: tuple[int, ...]) -> tuple[list[float], list[float], int]:
    """Return the range of each gene, half a step wider on both sides, and how many genes have more than one choice.

    The wider range gives each choice a rounding interval of the same size: within [0, 1], a yes-or-no gene would
    hardly ever flip. It also keeps the range of a gene with one choice from being empty, since DEAP divides by it. The
    upper end is slightly less than half a step away, because exactly half would be rounded to an invalid choice.
    """
    return [-0.5] * len(last), [gene + 0.5 - 1e-9 for gene in last], sum(gene > 0 for gene in last)


def _rounded(genes: Sequence[float]) -> list[int]:
    return [int(gene + 0.5) for gene in genes]


MUTATION_TRIES = 8
"""How often a child that was evaluated before is mutated again, before a random sub-network replaces it."""


@dataclass
class Evolution:
    """A running NSGA-II (Deb et al., 2002); with another `select`, a variant such as R-NSGA-II."""

    candidates: Candidates
    stream: GlobalRandom
    population: int
    """Size of a generation, and largest number of survivors."""
    variation: Variation
    select: Select = crowded
    individuals: list[Individual] = field(default_factory=list)
    """The survivors, best first."""

    def ask(self, count: int) -> list[Candidate]:
        """Return up to ``count`` unclaimed candidates: at first a start population, later children of the survivors."""
        if not self.individuals:
            return self.candidates.claim_first(min(count, self.population))
        return offspring(self.individuals, min(count, self.population), self.variation, self.candidates, self.stream)

    def tell(self, scored: Sequence[Individual]) -> None:
        """Choose the new survivors from the evaluated candidates and the previous survivors."""
        self.individuals = survivors([*self.individuals, *scored], self.population, self.select)


def parents(population: Sequence[Individual]) -> Iterator[tuple[Individual, Individual]]:
    """Return pairs that won tournaments, at least one for every two individuals. Draws from the global ``random``."""
    # DEAP's tournament needs a multiple of four, so the best individuals (the first ones) are repeated.
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
        allowed = min(one.fitness.violation for one in population)
        claimed = _claim_near(children, variation, candidates, allowed)
    return [candidate for candidate in claimed if candidate is not None]


def children_of(population: Sequence[Individual], variation: Variation, last: Sequence[int]) -> Iterator[list[int]]:
    """Return children of tournament winners. Draws from the global ``random``."""
    for mother, father in parents(population):
        pair = list(mother.genes), list(father.genes)
        if random.random() < variation.crossover_prob:
            pair = variation.cross(mother.genes, father.genes, last)
        yield from (variation.mutate(genes, last) for genes in pair)


def _claim_near(
    children: Sequence[Sequence[int]], variation: Variation, candidates: Candidates, allowed: float
) -> list[Candidate | None]:
    """Return a candidate with the genes of each child or near them, else a random one; None if the space is used up.

    No candidate near a child is further above the known bounds than `allowed`.
    """
    claimed: dict[int, Candidate] = {}
    waiting = dict(enumerate(children))
    for _ in range(1 + MUTATION_TRIES):
        forms = candidates.canonical(list(waiting.values()))
        near = [form if miss <= allowed else None for form, miss in zip(forms, candidates.missed(forms), strict=True)]
        tried = {i: form and candidates.claim_canonical(form) for i, form in zip(waiting, near, strict=True)}
        found = {i: one for i, one in tried.items() if one}
        claimed.update(found)
        last = candidates.last_genes
        waiting = {i: variation.mutate(genes, last) for i, genes in waiting.items() if i not in found}
        if not waiting:
            break
    return [claimed.get(i) or candidates.claim_random() for i in range(len(children))]
