"""Sub-networks for a search, each at most once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from bnas.passes import SearchSpace, Subnet, Variable


# Canonical genes, computed for many vectors at once. Two candidates are the same if their canonical genes are equal.

Genes = tuple[int, ...]
"""The index of the chosen value, for each variable of a space."""


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
        """Return the canonical form of each row of `genes`. The genes must be within their bounds."""
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
        """Return two 0/1 matrices: blocks x uses (does the block contain it?) and uses x variables (whose is it?)."""
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


RANDOM_TRIES = 64
"""Number of random draws before unclaimed sub-networks are enumerated. Only a nearly exhausted space needs that."""


@dataclass(frozen=True)
class Candidate:
    """A sub-network in canonical form, given by its genes."""

    genes: Genes
    space: SearchSpace

    @property
    def subnet(self) -> Subnet:
        """The sub-network."""
        return self.space.decode(self.genes)


class Candidates:
    """Hands out the sub-networks of a space, each at most once. Equal canonical genes are the same sub-network.

    Args:
        space: The search space.
        generator: The source of random candidates.
        misses: Function that returns how far each sub-network is above the bounds on values that are known without an
            evaluation, such as MACs; 0 within the bounds. Random candidates then meet these bounds, or nearly meet
            them, so that no evaluation is spent on the others.
        known: Sub-networks to start with, besides the usual first ones.
    """

    def __init__(
        self,
        space: SearchSpace,
        generator: np.random.Generator,
        misses: Callable[[Sequence[Subnet]], list[float]] | None = None,
        known: Sequence[Subnet] = (),
    ) -> None:
        self.encoding = Encoding(space)
        self.last_genes: Genes = tuple(self.encoding.last.tolist())
        self._space = space
        self._generator = generator
        self._misses = misses
        for subnet in known:
            space.check(subnet)
        self._known = known
        self._claimed: dict[Genes, None] = {}

    def canonical(self, genes: Sequence[Sequence[int]]) -> list[Genes]:
        """Return the canonical form of each vector, whether it was claimed or not."""
        return [tuple(row) for row in self.encoding.canonical(genes).tolist()]

    def claim(self, genes: Sequence[int]) -> Candidate | None:
        """Return the candidate with these genes, or None if it was claimed before."""
        return self.claim_canonical(self.canonical([genes])[0])

    def claim_canonical(self, genes: Genes) -> Candidate | None:
        """Return the candidate with these canonical genes, or None if it was claimed before."""
        if genes in self._claimed:
            return None
        self._claimed[genes] = None
        return Candidate(genes, self._space)

    def missed(self, forms: Sequence[Genes]) -> list[float]:
        """Return how far each candidate is above the bounds that can be checked without an evaluation."""
        if self._misses is None or not forms:
            return [0.0] * len(forms)
        return self._misses([self._space.decode(genes) for genes in forms])

    def claim_random(self) -> Candidate | None:
        """Return a random unclaimed candidate, or None if every sub-network of the space was claimed."""
        if self._misses is not None and (within := self._claim_within()):
            return within
        for _ in range(RANDOM_TRIES):
            drawn = self._space.sample(self._generator)
            if candidate := self.claim(self._space.encode(drawn)):
                return candidate
        return self._claim_neighbour()

    def claim_first(self, count: int) -> list[Candidate]:
        """Return up to ``count`` candidates to start from; fewer only if the space has no more.

        The order is: the maximal and the minimal sub-network, the `known` ones, evenly scaled ones (a quarter of
        ``count``), and random ones. All except the maximal one meet the bounds that can be checked in advance.
        """
        variables = self._space.variables()
        between = range(count // 4, 0, -1)
        maximal, minimal = (scaled_genes(variables, fraction) for fraction in (1.0, 0.0))
        known = [self._space.encode(subnet) for subnet in self._known]
        scaled = [scaled_genes(variables, step / (count // 4 + 1)) for step in between]
        first_form, *others = self.canonical([maximal, minimal, *known, *scaled][:count])
        within = [form for form, miss in zip(others, self.missed(others), strict=True) if not miss]
        claimed = [self.claim_canonical(form) for form in (first_form, *within)]
        first = [candidate for candidate in claimed if candidate is not None]
        while len(first) < count and (candidate := self.claim_random()):
            first.append(candidate)
        return first

    def _claim_within(self) -> Candidate | None:
        """Return an unclaimed candidate that meets the known bounds, or the closest one that was drawn.

        Uniform draws come first. If none of them meets the bounds, candidates are drawn that are small, or large, in
        all their variables.
        """
        fresh: list[Genes] = []
        for draw in (self._uniform, self._lean):
            fresh = [form for form in dict.fromkeys(self.canonical(draw())) if form not in self._claimed]
            missed = dict(zip(fresh, self.missed(fresh), strict=True))
            if 0.0 in missed.values():
                break
        return self.claim_canonical(min(missed, key=missed.__getitem__)) if fresh else None

    def _uniform(self) -> list[Genes]:
        return [tuple(self._space.encode(self._space.sample(self._generator))) for _ in range(RANDOM_TRIES)]

    def _lean(self) -> list[Genes]:
        """Return binomially distributed genes. All genes of one vector have the same probability."""
        lean = self._generator.random((RANDOM_TRIES, 1))
        return [tuple(row) for row in self._generator.binomial(self.encoding.last, lean).tolist()]

    def _claim_neighbour(self) -> Candidate | None:
        """Return an unclaimed candidate that differs in one gene from a claimed one, or None if there is none.

        None means that the whole space is claimed. Reason: starting from the maximal sub-network, skip the blocks of
        a canonical form one by one, then lower its other genes one by one. Each step of this path is itself a
        canonical form, and the first unclaimed step is a neighbour of a claimed one.
        """
        known = list(self._claimed)
        for place in self._generator.permutation(len(known)):
            for genes in self._neighbours(known[place]):
                if candidate := self.claim(genes):
                    return candidate
        if not known:
            return self.claim(self.last_genes)
        return None

    def _neighbours(self, genes: Genes) -> Iterator[Genes]:
        last = self.last_genes
        for place in self._generator.permutation(len(genes)):
            for gene in range(last[place] + 1):
                yield (*genes[:place], gene, *genes[place + 1 :])


def scaled_genes(variables: Sequence[Variable], fraction: float) -> Genes:
    """Return genes that put every variable at about the same fraction of its range (0 minimal, 1 maximal).

    A block can only be kept or skipped, so this fraction of the blocks is kept, evenly spread over the network.
    """
    genes, debt = [], 0.0
    for variable in variables:
        exact = fraction * (len(variable.choices) - 1)
        if variable.kind != "depth":
            genes.append(int(exact + 0.5))
            continue
        # The rounding error of one block is carried to the next one; otherwise all would be kept or all skipped.
        genes.append(min(int(exact + debt + 0.5), len(variable.choices) - 1))
        debt += exact - genes[-1]
    return tuple(genes)
