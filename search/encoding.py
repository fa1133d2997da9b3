"""Vectors of genes in canonical form, many at once: what tells candidates apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bnas.passes import SearchSpace

Genes = tuple[int, ...]
"""For each variable of a space the index of its choice."""


class Encoding:
    """Canonical genes of a space: vectors that give the same network become the same vector.

    Where too many blocks of a chain are skipped, the first of them are kept, as `SearchSpace.repair` does; genes that
    only skipped blocks use are maximal, as in `SearchSpace.canonical`.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.last: NDArray[np.int64] = np.array([len(v.choices) - 1 for v in space.variables()], dtype=np.int64)
        place = {name: i for i, name in enumerate(space.blocks)}
        limited = [(chain, limit) for chain, limit in space.limits() if limit < len(chain)]
        self._chains = [(np.array([place[name] for name in chain]), limit) for chain, limit in limited]
        self._around, self._uses = self._tables(place)

    def canonical(self, genes: Any) -> NDArray[np.int64]:
        """The canonical form of each row of `genes`, which are within their bounds."""
        rows = np.array(genes, dtype=np.int64).reshape(len(genes), len(self.last))
        for chain, limit in self._chains:
            skipped = rows[:, chain] == 0
            excess = np.maximum(skipped.sum(1, keepdims=True) - limit, 0)
            rows[:, chain] |= skipped & (skipped.cumsum(1) <= excess)
        skips = (rows[:, : len(self.space.blocks)] == 0).astype(np.float32)
        gone = (skips @ self._around > 0).astype(np.float32)
        used, inside = gone @ self._uses < self._uses.sum(0), self._uses.any(0)
        return np.where(used | ~inside, rows, self.last)

    def _tables(self, place: dict[str, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Which blocks are around each use, and which uses each variable has."""
        insides = {"width": self.space.inside, "kernel": self.space.kernels_inside}
        uses = [
            (gene, around)
            for gene, variable in enumerate(self.space.variables())
            for around in insides.get(variable.kind, {}).get(variable.name, ())
        ]
        blocks = np.zeros((len(place), len(uses)), dtype=np.float32)
        variables = np.zeros((len(uses), len(self.last)), dtype=np.float32)
        for column, (gene, around) in enumerate(uses):
            blocks[[place[name] for name in around if name in place], column] = 1
            variables[column, gene] = 1
        return blocks, variables
