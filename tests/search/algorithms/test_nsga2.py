"""DEAP's operators keep within the genes' ranges, reach all of them, and survivors are chosen front by front."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.search import SearchError
from bnas.search.algorithms.candidates import Candidates
from bnas.search.algorithms.contract import Fitness, Individual, survivors
from bnas.search.algorithms.nsga2 import GlobalRandom, Variation, offspring, parents


def individuals(rows: Sequence[Sequence[float]]) -> list[Individual]:
    return [Individual((i,), Fitness([-1.0] * len(row), row)) for i, row in enumerate(rows)]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def fronts(rows: Sequence[Sequence[float]]) -> list[set[tuple[float, ...]]]:
    """Sort by the definition: take away what nothing dominates, and again."""
    rest, found = {tuple(row) for row in rows}, []
    while rest:
        found.append({p for p in rest if not any(dominates(q, p) for q in rest)})
        rest -= found[-1]
    return found


ROWS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.tuples(*[st.integers(0, 4)] * width), min_size=1, max_size=20)
)


@given(rows=ROWS, share=st.floats(0.1, 1.0))
def test_survivors_come_front_by_front_for_any_number_of_objectives(rows: list[tuple[int, ...]], share: float) -> None:
    count = max(1, int(share * len(rows)))
    chosen = survivors(individuals(rows), count)
    assert len({one.genes for one in chosen}) == len(chosen) == count
    rank = {point: i for i, front in enumerate(fronts(rows)) for point in front}
    ranks = [rank[one.fitness.values] for one in chosen]
    assert ranks == sorted(ranks)
    assert ranks == sorted(rank[tuple(row)] for row in rows)[:count]


def test_crowded_ones_go_first() -> None:
    rows = [(0, 10), (10, 0), (5, 5), (5.1, 4.9), (4.9, 5.1)]
    chosen = {one.genes[0] for one in survivors(individuals(rows), 4)}
    assert {0, 1} < chosen
    assert 2 not in chosen


def test_no_survivors_of_nobody() -> None:
    assert survivors([], 4) == []


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 50])
def test_any_population_gives_enough_pairs(count: int) -> None:
    population = survivors(individuals([(i, -i) for i in range(count)]), count)
    pairs = list(parents(population))
    assert 2 * len(pairs) >= count
    assert all(one in population for pair in pairs for one in pair)


def test_the_dominated_win_fewer_tournaments() -> None:
    population = survivors(individuals([(i, i) for i in range(40)]), 40)
    winners = [one.genes[0] for pair in parents(population) for one in pair]
    assert np.mean(winners) < 0.8 * np.mean(range(40))


@given(
    last=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    eta=st.sampled_from([0.0, 3.0, 10.0, 100.0]),
    data=st.data(),
)
def test_children_are_integers_within_range(last: list[int], eta: float, data: st.DataObject) -> None:
    one, two = (data.draw(st.tuples(*(st.integers(0, most) for most in last))) for _ in range(2))
    variation = Variation(crossover_eta=eta, mutation_eta=eta, mutation_prob=1.0)
    for child in (*variation.cross(one, two, last), variation.mutate(one, last)):
        assert all(type(gene) is int and 0 <= gene <= most for gene, most in zip(child, last, strict=True))


def test_mutation_reaches_every_choice_and_a_yes_or_no_gene_flips() -> None:
    variation = Variation(mutation_prob=1.0)
    seen = {tuple(variation.mutate((0, 2, 0), (1, 4, 0))) for _ in range(2000)}
    assert {genes[0] for genes in seen} == {0, 1}
    assert {genes[1] for genes in seen} == {0, 1, 2, 3, 4}
    assert {genes[2] for genes in seen} == {0}
    flips = sum(variation.mutate((0,), (1,)) == [1] for _ in range(2000))
    assert flips > 200  # within [0, 1] instead of [-0.5, 1.5] it would be about 60


def test_mutation_changes_about_one_gene_unless_told_otherwise() -> None:
    last = [100] * 10 + [0] * 90  # genes with one choice do not count
    genes = [50] * 10 + [0] * 90
    changed = [np.count_nonzero(np.subtract(Variation().mutate(genes, last), genes)) for _ in range(500)]
    assert 0.7 < np.mean(changed) < 1.2
    assert Variation(mutation_prob=0.0).mutate([50] * 10, [100] * 10) == [50] * 10


def test_crossover_of_equals_is_the_same_and_of_others_stays_near() -> None:
    assert Variation().cross((3, 4), (3, 4), (9, 9)) == ([3, 4], [3, 4])
    children = [Variation(crossover_eta=1000.0).cross((0, 9), (9, 0), (9, 9)) for _ in range(50)]
    assert {gene for pair in children for child in pair for gene in child} == {0, 9}


def test_offspring_are_new_and_leave_the_global_state(make_space: Any) -> None:
    source = Candidates(make_space((4, 4, 4)), np.random.default_rng(0))
    first = source.claim_first(12)
    rows = [sum(one.genes) for one in first]
    scored = [Individual(c.genes, Fitness([-1.0, 1.0], [r, r])) for c, r in zip(first, rows, strict=True)]
    population = survivors(scored, 12)
    before = random.getstate()
    children = offspring(population, 10, Variation(), source, GlobalRandom(0))
    assert len({one.subnet for one in [*first, *children]}) == 22
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param(
            {"crossover_prob": 1.5}, "crossover_prob is 1.5: must be less than or equal to 1", id="crossover-prob"
        ),
        pytest.param(
            {"mutation_prob": -0.1}, "mutation_prob is -0.1: must be greater than or equal to 0", id="mutation-prob"
        ),
        pytest.param({"mutation_prob": float("nan")}, "mutation_prob is nan: must be a finite number", id="nan"),
        pytest.param(
            {"crossover_eta": -1.0}, "crossover_eta is -1.0: must be greater than or equal to 0", id="crossover-eta"
        ),
        pytest.param({"mutation_eta": float("inf")}, "mutation_eta is inf: must be a finite number", id="mutation-eta"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, float], reason: str) -> None:
    with pytest.raises(SearchError, match=reason):
        Variation(**settings)
