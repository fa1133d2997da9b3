"""The contract of running search algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnas.search.candidates import Candidate
    from bnas.search.fitness import Individual


class Algorithm(Protocol):
    """Decides which candidates are evaluated next, from the seed and from what was told alone.

    `tell` follows each `ask`, with those of its candidates whose evaluation did not fail, in the same order. The
    first candidate that is ever asked for is the maximal sub-network: relative constraints are about its values.
    """

    def ask(self, count: int) -> list[Candidate]:
        """Return up to ``count`` candidates that were never asked for; none where the space has no more."""

    def tell(self, scored: Sequence[Individual]) -> None:
        """Take the fitness of candidates."""
