"""Chains of blocks, and how many of each are skipped."""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain as joined
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from region_cases import Row, rows
from torch import Tensor, nn

from bnas.passes import SearchSpace, Subnet, SubnetError, analyse, choose, find_blocks, skippable_blocks, trace
from bnas.passes.space.choices import find_chains
from bnas.passes.space.elasticity import Elasticity
from bnas.runtime import Stage, TrainingError
from bnas.search.algorithms.candidates import Candidates


@st.composite
def spaces(draw: st.DrawFn, limit: st.SearchStrategy[int | None] = st.integers(0, 5)) -> SearchSpace:  # noqa: B008
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    chains = tuple(tuple(f"{c}.{n}" for n in range(length)) for c, length in enumerate(lengths))
    blocks = (*joined(*chains), *(["alone"] if draw(st.booleans()) else []))
    return SearchSpace({"w": (1, 2)}, blocks, {}, {}, {}, chains, draw(limit))


def allowed(space: SearchSpace) -> set[frozenset[str]]:
    """By enumeration, which the space itself never does."""
    limit = len(space.blocks) if space.depth_limit is None else space.depth_limit
    groups = [*space.chains, *((b,) for b in space.blocks if b == "alone")]
    subsets = [frozenset(b for b, gone in zip(space.blocks, c, strict=True) if gone) for c in _bits(space)]
    return {subset for subset in subsets if all(len(subset & set(group)) <= limit for group in groups)}


def _bits(space: SearchSpace) -> list[tuple[int, ...]]:
    return list(product((0, 1), repeat=len(space.blocks)))


@given(space=spaces(st.none() | st.integers(0, 5)), seed=st.integers(0, 1000))
def test_a_limit_holds_everywhere(space: SearchSpace, seed: int) -> None:
    subsets, generator = allowed(space), np.random.default_rng(seed)
    assert space.size == 2 * len(subsets)
    for subnet in (space.minimal(), space.maximal(), space.sample(generator), space.sample(generator, 0.5)):
        assert subnet.skipped in subsets
        space.check(subnet)
        assert space.decode(space.encode(subnet)) == subnet
        assert space.repair(subnet) is subnet
    for bits in _bits(space):
        subnet = space.decode([*bits, 0])
        repaired = space.repair(subnet)
        assert repaired.skipped in subsets
        assert repaired.skipped <= subnet.skipped
        assert (repaired == subnet) == (subnet.skipped in subsets)
        if subnet.skipped not in subsets:
            with pytest.raises(SubnetError, match=r"blocks of a chain are skipped \(.*\); allowed are \d"):
                space.check(subnet)


@given(space=spaces(), limit=st.integers(0, 9))
def test_a_stage_only_ever_lowers_the_limit(space: SearchSpace, limit: int) -> None:
    part = space.restrict(depth_indicator=limit)
    assert part.depth_limit == min(limit, space.depth_limit if space.depth_limit is not None else limit)
    assert allowed(part) <= allowed(space)
    assert space.restrict().depth_limit == space.depth_limit
    assert space.restrict(depth=False, depth_indicator=limit).minimal().skipped == frozenset()


def test_all_allowed_subsets_are_sampled_alike() -> None:
    space = SearchSpace({}, tuple("abcd"), {}, {}, {}, (tuple("abc"), ("d",)), 2)
    generator = np.random.default_rng(0)
    counts = Counter(space.sample(generator).skipped for _ in range(2800))
    assert counts.keys() == allowed(space)
    assert len(counts) == 14
    assert all(140 < count < 260 for count in counts.values())


def test_a_coin_for_each_block_would_not_be_alike() -> None:
    space = SearchSpace({}, tuple("abcd"), {}, {}, {}, (tuple("abc"), ("d",)), 2)
    generator = np.random.default_rng(0)
    drawn = (space.repair(space.decode([int(generator.integers(2)) for _ in range(4)])) for _ in range(2800))
    assert not all(140 < count < 260 for count in Counter(subnet.skipped for subnet in drawn).values())


def test_the_last_blocks_of_a_chain_go_first() -> None:
    space = SearchSpace({}, tuple("abcde"), {}, {}, {}, (tuple("abc"), tuple("de")), 2)
    assert space.minimal().skipped == frozenset("bcde")
    assert space.repair(Subnet({}, frozenset("abd"))).skipped == frozenset("abd")


def test_a_long_chain_needs_no_enumeration() -> None:
    blocks = tuple(f"b{n}" for n in range(150))
    space = SearchSpace({}, blocks, {}, {}, {}, (blocks,), 75)
    assert space.size == sum(math.comb(150, n) for n in range(76))
    assert len(space.sample(np.random.default_rng(0)).skipped) <= 75


@given(space=spaces().filter(lambda space: space.size <= 40), seed=st.integers(0, 100))
def test_a_search_gives_every_allowed_subnet_once_and_no_other(space: SearchSpace, seed: int) -> None:
    candidates = Candidates(space, np.random.default_rng(seed))
    found = candidates.claim_first(space.size + 5)
    assert len({candidate.subnet for candidate in found}) == len(found) == space.size
    assert {candidate.subnet.skipped for candidate in found} == allowed(space)
    assert candidates.claim_random() is None
    for candidate in found:
        assert space.decode(candidate.genes) == candidate.subnet


# which blocks follow one another


class Residuals(nn.Module):
    def __init__(self, activation: bool, between: bool) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.one, self.two, self.middle = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.activation, self.between = activation, between

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.one(x)
        x = x.relu() if self.activation else x
        x = self.middle(x) if self.between else x
        return self.last(x + self.two(x))


@pytest.mark.parametrize(
    ("activation", "between", "lengths"),
    [(False, False, [2]), (True, False, [2]), (False, True, [1, 1]), (True, True, [1, 1])],
)
def test_a_block_follows_another_also_behind_its_activation(
    activation: bool, between: bool, lengths: list[int]
) -> None:
    types = analyse(trace(Residuals(activation, between).eval(), torch.randn(2, 3, 4, 4)))
    chains = find_chains(types.ir, find_blocks(types).found)
    assert [len(chain) for chain in chains] == lengths


@given(row=rows())
def test_every_block_is_in_one_chain(row: Row) -> None:
    types = analyse(trace(row.module, row.inputs))
    space = choose(types, skippable_blocks(types, Elasticity()), Elasticity()).space
    assert sorted(joined(*space.chains)) == sorted(space.blocks)


@pytest.mark.parametrize("indicator", [1, 2, 3, 6])
def test_a_stage_limits_the_depth(indicator: int) -> None:
    blocks = tuple("abcdef")
    space = SearchSpace({}, blocks, {}, {}, {}, (blocks,))
    part = Stage(depth_indicator=indicator).space(space)
    generator = np.random.default_rng(0)
    numbers = {len(part.sample(generator).skipped) for _ in range(300)}
    assert max(numbers) == indicator
    assert min(numbers) <= 1


def test_a_stage_refuses_a_depth_of_nothing() -> None:
    with pytest.raises(TrainingError, match="depth_indicator is 0: must be greater than or equal to 1"):
        Stage(depth_indicator=0)
