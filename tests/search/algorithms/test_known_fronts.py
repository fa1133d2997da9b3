"""The operators find the fronts of ZDT1 to 3 and DTLZ2, on integer genes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from bnas.passes import SearchSpace, Subnet
from bnas.search import NSGA2, RNSGA2, Evaluation, Objective, RandomSearch, Searcher, SearchResult, SearchSettings

STEPS = 21
Problem = Callable[[Sequence[float]], Sequence[float]]


def zdt(shape: Callable[[float, float], float]) -> Problem:
    """Zitzler, Deb, Thiele (2000): f1 = x0, f2 = g h(f1, g); the front has all other variables at 0."""

    def evaluate(x: Sequence[float]) -> Sequence[float]:
        g = 1 + 9 * sum(x[1:]) / (len(x) - 1)
        return x[0], g * shape(x[0], g)

    return evaluate


def dtlz2(x: Sequence[float]) -> Sequence[float]:
    """Deb, Thiele, Laumanns, Zitzler (2002), three objectives: the front is an eighth of the unit sphere."""
    g = 1 + sum((one - 0.5) ** 2 for one in x[2:])
    a, b = (one * math.pi / 2 for one in x[:2])
    return g * math.cos(a) * math.cos(b), g * math.cos(a) * math.sin(b), g * math.sin(a)


PROBLEMS: dict[str, tuple[Problem, int, int]] = {
    "zdt1": (zdt(lambda f, g: 1 - (f / g) ** 0.5), 2, 10),
    "zdt2": (zdt(lambda f, g: 1 - (f / g) ** 2), 2, 10),
    "zdt3": (zdt(lambda f, g: 1 - (f / g) ** 0.5 - f / g * math.sin(10 * math.pi * f)), 2, 10),
    "dtlz2": (dtlz2, 3, 7),
}
CORNERS = {2: 11.0, 3: 2.5}


def space_of(variables: int) -> SearchSpace:
    return SearchSpace({f"w{i}": tuple(range(1, STEPS + 1)) for i in range(variables)}, ())


def shifted(problem: Problem, count: int, space: SearchSpace) -> Callable[[Subnet], dict[str, float]]:
    """Values of a sub-network; genes are moved around a ring, so that no uniform scaling lies on the front."""

    def evaluate(subnet: Subnet) -> dict[str, float]:
        genes = [(gene + 3 + 4 * i) % STEPS for i, gene in enumerate(space.encode(subnet))]
        return dict(zip("abc", problem([gene / (STEPS - 1) for gene in genes][: len(genes)]), strict=False))

    return evaluate


def ideal(problem: Problem, count: int, variables: int, objectives: Sequence[Objective]) -> float:
    """Hypervolume of the whole front on the grid."""
    rest = [0.0] * (variables - 1) if count == 2 else [0.5] * (variables - 2)
    grid = [i / (STEPS - 1) for i in range(STEPS)]
    heads = [[x] for x in grid] if count == 2 else [[x, y] for x in grid for y in grid]
    rows = [dict(zip("abc", problem([*first, *rest]), strict=False)) for first in heads]
    found = tuple(Evaluation(i, Subnet({"w": i}), row, 0.0) for i, row in enumerate(rows))
    return SearchResult(tuple(objectives), found).hypervolume(dict.fromkeys("abc", CORNERS[count]))


@pytest.mark.parametrize("name", PROBLEMS)
def test_front_is_found_where_random_search_does_not(name: str) -> None:
    problem, count, variables = PROBLEMS[name]
    space, objectives = space_of(variables), [Objective(value, "min") for value in "abc"[:count]]
    evaluate = shifted(problem, count, space)
    corner = dict.fromkeys("abc", CORNERS[count])
    best = ideal(problem, count, variables, objectives)

    def missing(algorithm: Any) -> float:
        settings = SearchSettings(algorithm=algorithm, num_evals=2000)
        found = Searcher(space, evaluate, objectives, settings).run().hypervolume(corner)
        assert found <= best + 1e-9
        return 1 - found / best

    lost = missing(NSGA2(population=40, mutation_prob=2 / variables))
    assert lost < 0.02
    assert missing(RandomSearch(population=40)) > 3 * lost


def test_reference_points_draw_the_population() -> None:
    """R-NSGA-II evaluates more near the point than NSGA-II does, and finds what is nearest to it."""
    problem, count, variables = PROBLEMS["zdt1"]
    space, objectives = space_of(variables), [Objective(value, "min") for value in "ab"]
    evaluate, point = shifted(problem, count, space), np.array([0.25, 0.4])

    def near(algorithm: Any) -> int:
        settings = SearchSettings(algorithm=algorithm, num_evals=1200)
        result = Searcher(space, evaluate, objectives, settings).run()
        rows = np.array([[one.values["a"], one.values["b"]] for one in result.evaluations])
        return int((np.abs(rows - point).max(1) < 0.35).sum())

    aspiring = RNSGA2(population=20, mutation_prob=0.2, aspiration_points=[point.tolist()], epsilon=0.01)
    assert near(aspiring) > 1.5 * near(NSGA2(population=20, mutation_prob=0.2))
