"""Genes in canonical form, many at once, are those of the space's own repair and canonical form, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.passes import SearchSpace
from bnas.search.algorithms.candidates import Encoding


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Spaces with chains, a limit, and sizes that are used in several blocks or around several of them."""
    blocks = tuple(f"b{i}" for i in range(draw(st.integers(0, 5))))
    cut = draw(st.integers(0, len(blocks)))
    some = (
        st.lists(st.frozensets(st.sampled_from(blocks), min_size=1), max_size=3).map(tuple) if blocks else st.just(())
    )
    sizes = [
        {f"{kind}{i}": tuple(range(1, 1 + draw(st.integers(1, 4)))) for i in range(draw(st.integers(0, 3)))}
        for kind in "wk"
    ]
    inside = [{name: draw(some) for name in one} for one in sizes]
    chains = tuple(chain for chain in (blocks[:cut], blocks[cut : cut + 2]) if chain)
    limit = draw(st.none() | st.integers(0, 3))
    return SearchSpace(sizes[0], blocks, inside[0], sizes[1], inside[1], chains, limit)


def vectors(space: SearchSpace, count: int = 12) -> list[tuple[int, ...]]:
    generator = np.random.default_rng(0)
    return [tuple(int(generator.integers(len(v.choices))) for v in space.variables()) for _ in range(count)]


def one_by_one(space: SearchSpace, genes: tuple[int, ...]) -> tuple[int, ...]:
    return space.encode(space.canonical(space.repair(space.decode(genes))))


@given(space=spaces(), depth=st.booleans())
def test_rows_are_what_the_space_makes_of_each(space: SearchSpace, depth: bool) -> None:
    space = space.restrict(depth=depth)
    rows = vectors(space)
    found = Encoding(space).canonical(rows)
    assert [tuple(row) for row in found.tolist()] == [one_by_one(space, row) for row in rows]
    assert (Encoding(space).canonical(found) == found).all()


@pytest.mark.parametrize("change", ["inside", "depth_limit"])
def test_encoding_of_a_space_without_one_of_its_rules_is_noticed(change: str) -> None:
    """The twin: equivalence of hidden genes and the limit of depth both count."""
    whole = SearchSpace({"w": (1, 2)}, ("a", "b"), {"w": (frozenset({"a"}),)}, {}, {}, (("a", "b"),), 1)
    lame = {"inside": SearchSpace({"w": (1, 2)}, ("a", "b"), {}, {}, {}, (("a", "b"),), 1)}
    lame["depth_limit"] = SearchSpace({"w": (1, 2)}, ("a", "b"), {"w": (frozenset({"a"}),)}, {}, {}, (("a", "b"),))
    rows = [(0, 0, 0), (0, 1, 0), (1, 0, 0)]
    right = [one_by_one(whole, row) for row in rows]
    assert (
        [tuple(row) for row in Encoding(whole).canonical(rows).tolist()] == right == [(1, 0, 0), (0, 1, 1), (1, 0, 0)]
    )
    assert [tuple(row) for row in Encoding(lame[change]).canonical(rows).tolist()] != right


def test_many_rows_leave_the_given_ones_as_they_were() -> None:
    space = SearchSpace({"w": (1, 2)}, ("a",), {"w": (frozenset({"a"}),)})
    rows = np.array([[0, 0]])
    assert Encoding(space).canonical(rows).tolist() == [[0, 1]]
    assert rows.tolist() == [[0, 0]]
