"""Sub-networks for a search, each at most once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from bnas.passes import SearchSpace, Subnet, Variable


# Vectors of genes in canonical form, many at once: what tells candidates apart.

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


RANDOM_TRIES = 64
"""Random draws before the unseen are looked for one by one: only a space that is nearly used up comes to that."""


@dataclass(frozen=True)
class Candidate:
    """A sub-network in canonical form, by its genes: for each variable the index of its choice."""

    genes: Genes
    space: SearchSpace

    @property
    def subnet(self) -> Subnet:
        """The sub-network."""
        return self.space.decode(self.genes)


class Candidates:
    """The sub-networks of a space, told apart by canonical form: what was claimed once is never given again.

    Args:
        space: the space.
        generator: of random candidates.
        misses: by how much sub-networks miss bounds on what is known of them without an evaluation. Random candidates
            then keep these bounds, or miss them by little: no evaluation is spent on others.
        known: a search begins with these beside its own first ones.
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
        """The canonical form of each vector, whether it was claimed or not."""
        return [tuple(row) for row in self.encoding.canonical(genes).tolist()]

    def claim(self, genes: Sequence[int]) -> Candidate | None:
        """Return the candidate with these genes, or None if it was claimed before."""
        return self.claim_canonical(self.canonical([genes])[0])

    def claim_canonical(self, genes: Genes) -> Candidate | None:
        """The same for genes that `canonical` gave."""
        if genes in self._claimed:
            return None
        self._claimed[genes] = None
        return Candidate(genes, self._space)

    def missed(self, forms: Sequence[Genes]) -> list[float]:
        """By how much the bounds are missed, as far as that is known without an evaluation."""
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

        The maximal and the minimal sub-network, those that were known before, then as a quarter of all sub-networks
        scaled evenly in between, then random ones; but for the maximal one, only such as keep the known bounds.
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
        """Return an unclaimed candidate that keeps the known bounds, or the closest of those that were drawn.

        Where none of the uniformly random ones keeps them, ones that are small or large as a whole are drawn.
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
        """Each gene is a binomial number; the probability is one for all genes of a vector."""
        lean = self._generator.random((RANDOM_TRIES, 1))
        return [tuple(row) for row in self._generator.binomial(self.encoding.last, lean).tolist()]

    def _claim_neighbour(self) -> Candidate | None:
        """Return an unclaimed candidate that is one gene from a claimed one, or None if there is none.

        None means that the space is used up. Any canonical form is reached from the maximal sub-network by skipping
        its skipped blocks and then lowering its other genes, one after the other, through canonical forms alone; the
        first unclaimed one on that way is a neighbour of a claimed one.
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

    A block is there or not: of the depth variables, that fraction is kept, spread evenly.
    """
    genes, debt = [], 0.0
    for variable in variables:
        exact = fraction * (len(variable.choices) - 1)
        if variable.kind != "depth":
            genes.append(int(exact + 0.5))
            continue
        # What rounding took from one block is given to the next, else all would be kept or all skipped.
        genes.append(min(int(exact + debt + 0.5), len(variable.choices) - 1))
        debt += exact - genes[-1]
    return tuple(genes)
