"""Children of parents on integer genes: DEAP's simulated binary crossover and polynomial mutation, with rounding."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from deap import tools
from pydantic import Field

from bnas.passes.settings import NotNegative, Probability, settings
from bnas.search.errors import SearchError

if TYPE_CHECKING:
    from collections.abc import Sequence


@settings(SearchError, kw_only=True)
class Variation:
    """How children are made of parents: simulated binary crossover, polynomial mutation, rounding."""

    # Described here, and not below: subclasses take the descriptions over.
    crossover_prob: Probability = Field(default=0.9, description="Probability that a pair of parents is crossed.")
    crossover_eta: NotNegative = Field(default=10.0, description="The larger, the more alike are children and parents.")
    mutation_prob: Probability | None = Field(
        default=None,
        description="Probability that a choice is mutated; by default one choice of each child is on average.",
    )
    mutation_eta: NotNegative = Field(default=3.0, description="The larger, the smaller is a mutation's step.")

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
    """Return the range of each gene, half a step wider on both sides, and how many genes have a choice.

    So each choice is the rounding of a range of the same size: within [0, 1] a yes-or-no gene would nearly never
    flip. And a gene with one choice has a range that is not empty: DEAP divides by it. The upper end is just below
    the half, which would be rounded to a choice too many.
    """
    return [-0.5] * len(last), [gene + 0.5 - 1e-9 for gene in last], sum(gene > 0 for gene in last)


def _rounded(genes: Sequence[float]) -> list[int]:
    return [int(gene + 0.5) for gene in genes]
