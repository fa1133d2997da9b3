"""A search space that needs no model: what the search asks of one, with skippable blocks that hide their widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import pytest

from bnas.passes import Subnet, Variable
from bnas.search import Evaluation


@dataclass(frozen=True)
class GridSpace:
    """Independent widths, and blocks of one width each that are there or not.

    A block's width says nothing once the block is skipped, so its canonical form has the maximal width.
    """

    steps: tuple[int, ...] = (8, 8, 8)
    """Number of choices of each width."""
    blocks: int = 0
    """The first so many widths are inside a skippable block of the same number."""

    def variables(self) -> tuple[Variable, ...]:
        widths = [Variable(f"w{i}", "width", tuple(range(1, n + 1))) for i, n in enumerate(self.steps)]
        return (*widths, *(Variable(f"b{i}", "depth", (0, 1)) for i in range(self.blocks)))

    def decode(self, vector: Sequence[int]) -> Subnet:
        assert len(vector) == len(self.variables())
        assert all(0 <= gene < len(v.choices) for gene, v in zip(vector, self.variables(), strict=True))
        count = len(self.steps)
        skipped = frozenset(f"b{i}" for i, gene in enumerate(vector[count:]) if gene == 0)
        return Subnet({f"w{i}": int(gene) + 1 for i, gene in enumerate(vector[:count])}, skipped)

    def encode(self, subnet: Subnet) -> tuple[int, ...]:
        widths = (subnet.widths[f"w{i}"] - 1 for i in range(len(self.steps)))
        return (*widths, *(int(f"b{i}" not in subnet.skipped) for i in range(self.blocks)))

    def canonical(self, subnet: Subnet) -> Subnet:
        hidden = {f"w{i}": self.steps[i] for i in range(self.blocks) if f"b{i}" in subnet.skipped}
        return Subnet({**subnet.widths, **hidden}, subnet.skipped)

    def sample(self, generator: np.random.Generator) -> Subnet:
        return self.decode([int(generator.integers(len(v.choices))) for v in self.variables()])

    def maximal(self) -> Subnet:
        return self.decode([len(v.choices) - 1 for v in self.variables()])

    def all(self) -> set[Subnet]:
        """Return every canonical sub-network, by enumeration."""
        ranges = [range(len(v.choices)) for v in self.variables()]
        assert prod(map(len, ranges)) < 10_000
        return {self.canonical(self.decode(genes)) for genes in product(*ranges)}


class Zdt1:
    """ZDT1 on integer genes, and the sub-networks that it was asked for.

    The first variable trades ``f`` for ``g``; every other one but at 0 only makes both worse.
    """

    def __init__(self, space: GridSpace) -> None:
        self.space = space
        self.asked: list[Subnet] = []

    def __call__(self, subnet: Subnet) -> Mapping[str, float]:
        self.asked.append(subnet)
        genes = self.space.encode(subnet)
        x = [gene / (len(v.choices) - 1) for gene, v in zip(genes, self.space.variables(), strict=True)]
        g = 1 + 9 * sum(x[1:]) / max(len(x) - 1, 1)
        return {"macs": x[0], "accuracy": -g * (1 - (x[0] / g) ** 0.5)}


@pytest.fixture(scope="session")
def make_space() -> type[GridSpace]:
    return GridSpace


@pytest.fixture(scope="session")
def zdt1() -> type[Zdt1]:
    return Zdt1


@pytest.fixture(scope="session")
def evaluations_of() -> Callable[..., tuple[Evaluation, ...]]:
    """Return a function that makes evaluations of these rows of values, on sub-networks that differ."""

    def make(rows: Sequence[Sequence[float]], names: Sequence[str]) -> tuple[Evaluation, ...]:
        return tuple(
            Evaluation(i, Subnet({"w": i}), dict(zip(names, row, strict=True)), 0.5) for i, row in enumerate(rows)
        )

    return make
