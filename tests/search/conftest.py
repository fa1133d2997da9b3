"""Search spaces that need no model, and a problem on them whose front is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import pytest

from bnas.passes import SearchSpace, Subnet
from bnas.search import Evaluation


def space_of(steps: Sequence[int] = (8, 8, 8), blocks: int = 0) -> SearchSpace:
    """Return a space with these numbers of widths; the first ``blocks`` widths are each inside a skippable block."""
    widths = {f"w{i}": tuple(range(1, count + 1)) for i, count in enumerate(steps)}
    names = tuple(f"b{i}" for i in range(blocks))
    return SearchSpace(widths, names, {f"w{i}": (frozenset({name}),) for i, name in enumerate(names)})


def all_of(space: SearchSpace) -> set[Subnet]:
    """Return every canonical sub-network, by enumeration."""
    assert space.size < 10_000
    ranges = [range(len(v.choices)) for v in space.variables()]
    return {space.canonical(space.decode(genes)) for genes in product(*ranges)}


class Zdt1:
    """ZDT1 on integer genes, and the sub-networks that it was asked for.

    The first variable trades ``f`` for ``g``; every other one but at 0 only makes both worse.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.asked: list[Subnet] = []

    def __call__(self, subnet: Subnet) -> Mapping[str, float]:
        self.asked.append(subnet)
        genes = self.space.encode(subnet)
        x = [gene / (len(v.choices) - 1) for gene, v in zip(genes, self.space.variables(), strict=True)]
        g = 1 + 9 * sum(x[1:]) / max(len(x) - 1, 1)
        return {"macs": x[0], "accuracy": -g * (1 - (x[0] / g) ** 0.5)}


@pytest.fixture(scope="session")
def make_space() -> Callable[..., SearchSpace]:
    return space_of


@pytest.fixture(scope="session")
def enumerated() -> Callable[[SearchSpace], set[Subnet]]:
    return all_of


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
