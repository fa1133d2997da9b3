"""What every algorithm keeps to, whatever it looks for: the same suite for all of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnas.passes import Subnet
from bnas.search import (
    NSGA2,
    RNSGA2,
    Constraint,
    EvaluationLog,
    InfeasibleError,
    Objective,
    RandomSearch,
    Searcher,
    SearchError,
    SearchResult,
    SearchSettings,
)


class Plane:
    """Predicts by least squares: quick, and wrong where values are not linear in the genes."""

    def fit(self, x: Any, y: Any) -> None:
        self.slopes = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]

    def predict(self, x: Any) -> Any:
        return np.c_[x, np.ones(len(x))] @ self.slopes


OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))
ALGORITHMS: dict[str, Any] = {
    "NSGA2": NSGA2(population=8),
    "RNSGA2": RNSGA2(population=8, aspiration_points=[[-1.0, 0.5]]),
    "RNSGA2-extremes": RNSGA2(
        population=8,
        aspiration_points=[[0.0, 0.0], [-3.0, 0.2]],
        epsilon=0.05,
        weights=(0.3, 0.7),
        extreme_points_as_ref_points=True,
    ),
    "random": RandomSearch(population=8),
    "surrogate": NSGA2(population=8, predictor=Plane()),
}


@pytest.fixture(params=ALGORITHMS.values(), ids=ALGORITHMS)
def settings(request: pytest.FixtureRequest) -> SearchSettings:
    return SearchSettings(algorithm=request.param, num_evals=40, seed=4)


@pytest.fixture
def space(make_space: Any) -> Any:
    return make_space((9,) * 5, blocks=2)


def test_same_seed_same_result_and_another_seed_another(space: Any, zdt1: Any, settings: SearchSettings) -> None:
    def run(seed: int) -> SearchResult:
        random.seed()  # what the rest of the process draws must not matter
        np.random.seed(None)
        return Searcher(space, zdt1(space), OBJECTIVES, replace(settings, seed=seed)).run()

    one = run(5)
    assert run(5) == one
    assert run(6) != one


def test_global_random_states_are_as_they_were(space: Any, zdt1: Any, settings: SearchSettings) -> None:
    random.seed(3)
    before, numbers = random.getstate(), np.random.get_state()[1].tolist()
    Searcher(space, zdt1(space), OBJECTIVES, settings).run()
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == numbers


def test_bounds_are_kept_and_nothing_is_evaluated_twice(space: Any, zdt1: Any, settings: SearchSettings) -> None:
    evaluate = zdt1(space)
    result = Searcher(space, evaluate, OBJECTIVES, settings).run()
    assert len(evaluate.asked) == len(set(evaluate.asked)) == 40
    assert [one.subnet for one in result.evaluations] == evaluate.asked
    for subnet in evaluate.asked:
        space.check(subnet)
        assert subnet == space.canonical(subnet)
    assert evaluate.asked[0] == space.maximal()


def test_limit_of_depth_is_kept(zdt1: Any, make_space: Any, settings: SearchSettings) -> None:
    space = make_space((3,) * 5, blocks=5).restrict(depth_indicator=0)
    evaluate = zdt1(space)
    Searcher(space, evaluate, OBJECTIVES, settings).run()
    assert not any(subnet.skipped for subnet in evaluate.asked)


def test_space_that_is_used_up_ends_the_search(
    make_space: Any, zdt1: Any, enumerated: Any, settings: SearchSettings
) -> None:
    space = make_space((3, 2, 2), blocks=1)
    result = Searcher(space, zdt1(space), OBJECTIVES, replace(settings, num_evals=100)).run()
    assert {one.subnet for one in result.evaluations} == enumerated(space)
    assert len(result.evaluations) == len(enumerated(space))


class Killed(BaseException):
    """What stops a search in the middle."""


@pytest.mark.parametrize("stop", [0, 7, 20, 39])
def test_interrupted_search_goes_on_to_the_same_result(
    space: Any, zdt1: Any, tmp_path: Path, settings: SearchSettings, stop: int
) -> None:
    whole = Searcher(space, zdt1(space), OBJECTIVES, settings).run()
    first, second, path = zdt1(space), zdt1(space), tmp_path / "log.jsonl"

    def killed(subnet: Subnet) -> Mapping[str, float]:
        if len(first.asked) == stop:
            raise Killed
        return first(subnet)

    with pytest.raises(Killed):
        Searcher(space, killed, OBJECTIVES, settings, log=path).run()
    assert Searcher(space, second, OBJECTIVES, settings, log=path).run() == whole
    assert len(second.asked) == 40 - stop


def test_what_fails_is_recorded_and_the_search_goes_on(
    space: Any, zdt1: Any, tmp_path: Path, settings: SearchSettings
) -> None:
    inner, path = zdt1(space), tmp_path / "log.jsonl"

    def evaluate(subnet: Subnet) -> Mapping[str, float]:
        values = inner(subnet)
        if len(inner.asked) % 5 == 2:
            raise RuntimeError("no memory")
        return {**values, "macs": float("nan")} if len(inner.asked) % 5 == 3 else values

    result = Searcher(space, evaluate, OBJECTIVES, settings, log=path).run()
    reasons = [one.failure for one in result.failed]
    assert len(result.evaluations) == 40
    assert len(reasons) == 16
    assert reasons[0] == "RuntimeError: no memory"
    assert "'macs' is nan" in str(reasons[1])
    assert not set(result.pareto()) & set(result.failed)
    again = Searcher(space, lambda _: pytest.fail("evaluated twice"), OBJECTIVES, settings, log=path).run()
    assert again == result


def test_all_that_fail_stop_the_search(space: Any, settings: SearchSettings) -> None:
    log = EvaluationLog()

    def fail(_: Subnet) -> Mapping[str, float]:
        raise KeyError("batch")

    with pytest.raises(SearchError, match="all 8 evaluations failed; the first one: KeyError: 'batch'"):
        Searcher(space, fail, OBJECTIVES, settings, log=log).run()
    assert len(log) == 8


def test_constraints_are_kept_by_the_front(space: Any, zdt1: Any, settings: SearchSettings) -> None:
    bounds = ("accuracy >= -6", Constraint("macs", "<=", 0.8))
    result = Searcher(space, zdt1(space), OBJECTIVES, replace(settings, constraints=bounds, num_evals=200)).run()
    assert result.pareto()
    assert all(one.values["accuracy"] >= -6 and one.values["macs"] <= 0.8 for one in result.pareto())


def test_what_no_subnetwork_keeps_names_the_closest(space: Any, zdt1: Any, settings: SearchSettings) -> None:
    with pytest.raises(InfeasibleError, match=r"none of 40 .* misses accuracy >= 1, it has") as caught:
        Searcher(space, zdt1(space), OBJECTIVES, replace(settings, constraints=["accuracy >= 1"])).run()
    best = max(caught.value.result.evaluations, key=lambda one: one.values["accuracy"])
    assert caught.value.result.closest() == best
    assert caught.value.result.pareto() == ()


@pytest.mark.parametrize("directions", [("min",), ("max", "min", "min")])
def test_any_number_of_objectives(make_space: Any, settings: SearchSettings, directions: tuple[str, ...]) -> None:
    space = make_space((5, 5, 5), blocks=2)
    objectives = [Objective(f"v{i}", d) for i, d in enumerate(directions)]  # type: ignore[arg-type]
    if isinstance(settings.algorithm, RNSGA2):
        aspiring = replace(settings.algorithm, aspiration_points=[[0.5] * len(objectives)], weights=None)
        settings = replace(settings, algorithm=aspiring)

    def evaluate(subnet: Subnet) -> dict[str, float]:
        genes = space.encode(subnet)
        return {"v0": float(sum(genes)), "v1": float(genes[0]), "v2": float(genes[1] > 2)}

    result = Searcher(space, evaluate, objectives, settings).run()
    assert [one.index for one in result.evaluations] == list(range(40))
