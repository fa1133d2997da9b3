"""Random search: the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnas.search.candidates import Candidate, Candidates
    from bnas.search.fitness import Individual


@dataclass
class RandomDraws:
    """A running random search: the maximal sub-network, then uniformly random ones."""

    candidates: Candidates
    population: int
    """How many are evaluated together."""

    def ask(self, count: int) -> list[Candidate]:
        """Return up to ``count`` unclaimed candidates."""
        first = self.candidates.claim(self.candidates.last_genes)
        chosen = [] if first is None else [first]
        while len(chosen) < min(count, self.population) and (candidate := self.candidates.claim_random()):
            chosen.append(candidate)
        return chosen

    def tell(self, scored: Sequence[Individual]) -> None:
        """Learn nothing."""
