"""No sub-network is given twice, and all are given before the space counts as used up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.passes import SearchSpace, Variable
from bnas.search.algorithms.candidates import Candidates, scaled_genes


def candidates(space: Any, seed: int = 0) -> Candidates:
    return Candidates(space, np.random.default_rng(seed))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 50])
def test_first_are_maximal_then_minimal_then_scaled_and_all_differ(make_space: Any, count: int) -> None:
    space = make_space((9, 9, 9), blocks=2)
    first = candidates(space).claim_first(count)
    assert len({one.subnet for one in first}) == len(first) == count
    assert first[0].subnet == space.maximal()
    if count > 1:
        assert first[1].subnet == space.canonical(space.decode([0, 0, 0, 0, 0]))
    for one in first:
        assert one.subnet == space.canonical(one.subnet)
        assert one.genes == space.encode(one.subnet)


@given(
    steps=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    blocks=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_all_are_given_once_before_the_space_is_used_up(
    make_space: Any, enumerated: Any, steps: list[int], blocks: int, seed: int
) -> None:
    space = make_space(tuple(steps), blocks=min(blocks, len(steps)))
    source = candidates(space, seed)
    given_out = []
    while candidate := source.claim_random():
        given_out.append(candidate.subnet)
    assert len(given_out) == len(set(given_out))
    assert set(given_out) == enumerated(space)


def test_the_last_ones_are_found_where_random_draws_do_not_find_them(
    make_space: Any, enumerated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SearchSpace, "sample", lambda self, _: self.maximal())
    space = make_space((3, 3, 2), blocks=1)
    assert {one.subnet for one in candidates(space).claim_first(1000)} == enumerated(space)


def test_claiming_hidden_genes_again_gives_nothing(make_space: Any) -> None:
    source = candidates(make_space((4, 4), blocks=1))
    first = source.claim((0, 0, 2))
    assert first is not None
    assert first.genes == (0, 3, 2)
    assert source.claim((0, 2, 2)) is None
    assert source.claim((1, 2, 2)) is not None


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.25, 0.5, 0.8, 1.0])
def test_scaled_genes_are_all_near_the_fraction(fraction: float) -> None:
    widths = [Variable(f"w{i}", "width", tuple(range(11))) for i in range(3)]
    blocks = [Variable(f"b{i}", "depth", (0, 1)) for i in range(20)]
    genes = scaled_genes([*widths, *blocks], fraction)
    assert all(abs(gene / 10 - fraction) <= 0.05 + 1e-9 for gene in genes[:3])
    assert abs(sum(genes[3:]) - 20 * fraction) <= 0.5 + 1e-9
    half = sum(genes[3:13])
    assert abs(half - 10 * fraction) <= 1


# Bounds that are known without an evaluation.


def bounded(space: Any, most: int, seed: int = 0) -> Candidates:
    """Candidates of a space in which the sum of the genes must not be larger."""
    return Candidates(
        space, np.random.default_rng(seed), lambda some: [float(max(0, sum(space.encode(s)) - most)) for s in some]
    )


@pytest.mark.parametrize("most", [8, 25])
def test_random_ones_keep_a_bound_that_few_of_all_keep(make_space: Any, most: int) -> None:
    space = make_space((9,) * 8)  # the sum is 32 on average; 8 or less have 13,000 of 43 million
    source = bounded(space, most)
    first = source.claim_first(12)
    assert first[0].subnet == space.maximal()
    assert first[1].subnet == space.minimal()
    found = [*first[1:], *(source.claim_random() for _ in range(20))]
    assert all(one is not None and sum(one.genes) <= most for one in found)
    assert len({one.genes for one in found if one is not None}) == 31


def test_random_ones_come_close_to_a_bound_that_none_keeps(make_space: Any) -> None:
    space = make_space((9,) * 8)
    source = bounded(space, -1)
    found = [source.claim_random() for _ in range(5)]
    assert all(one is not None and sum(one.genes) < 16 for one in found)


def test_all_are_given_once_under_a_bound_too_those_that_keep_it_first(make_space: Any, enumerated: Any) -> None:
    space = make_space((3, 3, 2), blocks=1)
    source = bounded(space, 2)
    given_out = []
    while candidate := source.claim_random():
        given_out.append(candidate)
    assert {one.subnet for one in given_out} == enumerated(space)
    kept = [sum(one.genes) <= 2 for one in given_out]
    assert kept == sorted(kept, reverse=True)
    assert 0 < sum(kept) < len(kept)
