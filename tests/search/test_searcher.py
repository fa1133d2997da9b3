"""A search finds known fronts, is fixed by its seed, evaluates nothing twice and goes on where it was stopped."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnas.passes import BnasError, Subnet
from bnas.search import (
    NSGA2,
    RNSGA2,
    Evaluation,
    EvaluationLog,
    MetricError,
    Objective,
    RecordError,
    Searcher,
    SearchError,
    SearchResult,
    SearchSettings,
)

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))
CORNER = {"accuracy": -11.0, "macs": 1.1}


def random_search(space: Any, evaluate: Any, budget: int, seed: int) -> SearchResult:
    generator = np.random.default_rng(seed)
    seen: dict[Subnet, Mapping[str, float]] = {space.maximal(): evaluate(space.maximal())}
    while len(seen) < budget:
        subnet = space.canonical(space.sample(generator))
        seen.setdefault(subnet, evaluate(subnet))
    return SearchResult(OBJECTIVES, tuple(Evaluation(i, s, v, 0.0) for i, (s, v) in enumerate(seen.items())))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_front_is_better_than_that_of_random_search_with_the_same_budget(make_space: Any, zdt1: Any, seed: int) -> None:
    space = make_space((21,) * 12)
    found = Searcher(
        space, zdt1(space), OBJECTIVES, SearchSettings(algorithm=NSGA2(population=20), num_evals=600, seed=seed)
    ).run()
    by_chance = random_search(space, zdt1(space), 600, seed)
    ideal = SearchResult(
        OBJECTIVES,
        tuple(Evaluation(i, s, zdt1(space)(s), 0.0) for i in range(21) for s in [space.decode([i] + [0] * 11)]),
    )
    best = ideal.hypervolume(CORNER)
    assert len(found.evaluations) == len(by_chance.evaluations) == 600
    # The minimal sub-network is in the first population and on the front, so compare what is left to find.
    assert best - found.hypervolume(CORNER) < 0.02 * best
    assert best - by_chance.hypervolume(CORNER) > 0.05 * best


def test_variation_finds_a_front_that_no_first_population_holds(make_space: Any) -> None:
    """The front has its genes at 7 and 2 by turns: no uniform scaling is near it, nor is a random draw."""
    space = make_space((11,) * 10)

    def evaluate(subnet: Subnet) -> dict[str, float]:
        genes = space.encode(subnet)
        off = sum(abs(gene - (7 if i % 2 else 2)) for i, gene in enumerate(genes[1:]))
        return {"macs": genes[0] + off, "accuracy": genes[0] - off}

    found = Searcher(space, evaluate, OBJECTIVES, SearchSettings(algorithm=NSGA2(population=20), num_evals=1500)).run()
    by_chance = random_search(space, evaluate, 1500, 0)
    corner = {"accuracy": -60.0, "macs": 60.0}
    # The front has the points (g, g) for g from 0 to 10.
    ideal = sum(60 + g for g in range(10)) + (60 - 10) * (60 + 10)
    assert by_chance.hypervolume(corner) < 0.9 * ideal
    assert 0.97 * ideal < found.hypervolume(corner) <= ideal


@pytest.mark.parametrize("objectives", [OBJECTIVES[:1], OBJECTIVES, (*OBJECTIVES, Objective("third", "min"))])
@pytest.mark.parametrize("population", [4, 5, 6, 7, 13])
def test_any_population_and_number_of_objectives(
    make_space: Any, objectives: tuple[Objective, ...], population: int
) -> None:
    space = make_space((5, 5, 5), blocks=2)

    def evaluate(subnet: Subnet) -> dict[str, float]:
        genes = space.encode(subnet)
        return {"accuracy": float(sum(genes)), "macs": float(genes[0]), "third": float(genes[1] > 2)}

    result = Searcher(
        space, evaluate, objectives, SearchSettings(algorithm=NSGA2(population=population), num_evals=40)
    ).run()
    assert [one.index for one in result.evaluations] == list(range(40))


def test_seed_fixes_the_search_and_another_seed_gives_another(make_space: Any, zdt1: Any) -> None:
    space = make_space((9,) * 6, blocks=3)

    def run(seed: int) -> SearchResult:
        random.seed()  # what the rest of the process draws must not matter
        np.random.seed(None)
        return Searcher(
            space, zdt1(space), OBJECTIVES, SearchSettings(algorithm=NSGA2(population=8), num_evals=60, seed=seed)
        ).run()

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_global_random_states_are_as_they_were_and_evaluate_draws_from_them(make_space: Any, zdt1: Any) -> None:
    space = make_space((9,) * 6)
    inner, drawn = zdt1(space), []

    def evaluate(subnet: Subnet) -> Mapping[str, float]:
        drawn.append((random.random(), np.random.random()))
        return inner(subnet)

    random.seed(3)
    np.random.seed(3)
    expected = [(random.random(), np.random.random()) for _ in range(60)]
    after = random.getstate()
    random.seed(3)
    np.random.seed(3)
    Searcher(space, evaluate, OBJECTIVES, SearchSettings(algorithm=NSGA2(population=8), num_evals=60)).run()
    assert drawn == expected
    assert random.getstate() == after


def test_nothing_is_evaluated_twice_and_all_is_canonical(make_space: Any, zdt1: Any) -> None:
    space = make_space((3, 3, 3), blocks=3)
    evaluate = zdt1(space)
    result = Searcher(
        space, evaluate, OBJECTIVES, SearchSettings(algorithm=NSGA2(population=8, mutation_prob=0.0), num_evals=50)
    ).run()
    assert len(evaluate.asked) == len(set(evaluate.asked)) == 50
    assert [one.subnet for one in result.evaluations] == evaluate.asked
    assert all(subnet == space.canonical(subnet) for subnet in evaluate.asked)


@pytest.mark.parametrize("population", [4, 200])
def test_search_ends_when_the_space_is_used_up(make_space: Any, zdt1: Any, enumerated: Any, population: int) -> None:
    space = make_space((3, 3, 3), blocks=2)
    result = Searcher(
        space, zdt1(space), OBJECTIVES, SearchSettings(algorithm=NSGA2(population=population), num_evals=1000)
    ).run()
    assert {one.subnet for one in result.evaluations} == enumerated(space)
    assert len(result.evaluations) == len(enumerated(space)) < 100


def test_space_without_a_choice_is_one_evaluation(make_space: Any) -> None:
    space = make_space((1, 1))
    result = Searcher(
        space,
        lambda _: {"accuracy": 1, "macs": 1},
        OBJECTIVES,
        SearchSettings(algorithm=NSGA2(population=4), num_evals=9),
    ).run()
    assert [one.subnet for one in result.evaluations] == [space.maximal()]


class Killed(BaseException):
    """What stops a search in the middle."""


@pytest.mark.parametrize("stop", [0, 3, 8, 29, 59])
def test_interrupted_search_goes_on_from_its_file_to_the_same_result(
    make_space: Any, zdt1: Any, tmp_path: Path, stop: int
) -> None:
    space = make_space((9,) * 6, blocks=3)
    settings = SearchSettings(algorithm=NSGA2(population=8), num_evals=60, seed=4)
    whole = Searcher(space, zdt1(space), OBJECTIVES, settings).run()
    path, first = tmp_path / "log.jsonl", zdt1(space)

    def killed(subnet: Subnet) -> Mapping[str, float]:
        if len(first.asked) == stop:
            raise Killed
        return first(subnet)

    with pytest.raises(Killed):
        Searcher(space, killed, OBJECTIVES, settings, log=path).run()
    again, second = EvaluationLog(path), zdt1(space)
    result = Searcher(space, second, OBJECTIVES, settings, log=again).run()
    assert result == whole
    assert len(second.asked) == 60 - stop
    assert not set(first.asked) & set(second.asked)
    assert list(again) == list(whole.evaluations)


def test_resuming_from_a_log_with_another_value_gives_another_result(make_space: Any, zdt1: Any) -> None:
    """The twin of the test above: the values of the log do count."""
    space = make_space((9,) * 6, blocks=3)
    settings = SearchSettings(algorithm=NSGA2(population=8), num_evals=60, seed=4)
    whole = Searcher(space, zdt1(space), OBJECTIVES, settings).run()
    log = EvaluationLog()
    for one in whole.evaluations[:20]:
        log.record(one.subnet, {name: -value for name, value in one.values.items()}, one.seconds)
    assert Searcher(space, zdt1(space), OBJECTIVES, settings, log=log).run() != whole


def test_log_of_another_search_is_used_where_the_two_meet(make_space: Any, zdt1: Any) -> None:
    space = make_space((3, 3, 3))
    log, evaluate = EvaluationLog(), zdt1(space)
    Searcher(
        space, evaluate, OBJECTIVES, SearchSettings(algorithm=NSGA2(population=4), num_evals=15, seed=0), log=log
    ).run()
    result = Searcher(
        space, evaluate, OBJECTIVES, SearchSettings(algorithm=NSGA2(population=4), num_evals=27, seed=1), log=log
    ).run()
    assert len(evaluate.asked) == len(set(evaluate.asked)) == 27 == len(log)
    assert [one.index for one in result.evaluations] == list(range(27))


def test_hook_sees_every_evaluation_also_those_from_the_log(make_space: Any, zdt1: Any) -> None:
    space, log = make_space((9,) * 3), EvaluationLog()
    for asked in (20, 0):
        seen: list[Evaluation] = []
        evaluate = zdt1(space)
        searcher = Searcher(
            space,
            evaluate,
            OBJECTIVES,
            SearchSettings(algorithm=NSGA2(population=4), num_evals=20),
            log=log,
            on_evaluation=seen.append,
        )
        assert searcher.run().evaluations == tuple(seen)
        assert len(evaluate.asked) == asked


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda: NSGA2(population=3), "population is 3: must be greater than or equal to 4", id="few"),
        pytest.param(
            lambda: SearchSettings(algorithm=NSGA2(population=50), num_evals=49),
            "num_evals is 49: smaller than the population of 50",
            id="large-population",
        ),
        pytest.param(lambda: SearchSettings(seed=-1), "seed is -1", id="seed"),
        pytest.param(lambda: NSGA2(crossover_prob=2.0), "crossover_prob is 2.0", id="probability"),
        pytest.param(lambda: NSGA2(population="50"), "population is '50': must be a number", id="text"),
        pytest.param(lambda: SearchSettings(num_evals=99.5), "num_evals is 99.5: must be a valid integer", id="part"),
        pytest.param(lambda: SearchSettings(algorithm="NSGA3"), "algorithm is 'NSGA3': must be .*'NSGA2'", id="name"),
        pytest.param(lambda: RNSGA2(), "aspiration_points is missing; Points near which", id="no-point"),  # type: ignore[call-arg]
        pytest.param(
            lambda: SearchSettings(constraints=("macs less",)), r"constraints\[0\] is 'macs less'", id="bound"
        ),
    ],
)
def test_wrong_setting_is_refused_where_it_is_made(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(SearchError, match=reason) as caught:
        make()
    assert isinstance(caught.value, BnasError)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param({"objectives": ()}, "needs at least one objective", id="no-objective"),
        pytest.param({"objectives": ("macs",)}, "'macs': must be a bnas.Objective", id="objective-as-text"),
        pytest.param({"objectives": OBJECTIVES * 2}, "'accuracy' is given 2 times", id="objective-twice"),
        pytest.param({"settings": {"num_evals": 40}}, "must be a bnas.SearchSettings", id="mapping"),
        pytest.param(
            {"settings": SearchSettings(algorithm=RNSGA2(aspiration_points=[[1.0]]))},
            r"aspiration_points: \(1.0,\) must have 2 values, \[accuracy, macs\]",
            id="point",
        ),
        pytest.param(
            {"settings": SearchSettings(algorithm=RNSGA2(aspiration_points=[[1.0, 2.0]], weights=(1.0,)))},
            "must be 2 numbers, one for each of accuracy, macs",
            id="weights",
        ),
    ],
)
def test_wrong_search_is_refused_before_anything_runs(
    make_space: Any, zdt1: Any, settings: dict[str, Any], reason: str
) -> None:
    space = make_space()
    with pytest.raises(SearchError, match=reason) as caught:
        Searcher(space, zdt1(space), **{"objectives": OBJECTIVES, **settings})
    assert isinstance(caught.value, BnasError)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        pytest.param({"acuracy": 1.0, "macs": 1}, "no value for 'accuracy'.*mean 'acuracy'", id="missing"),
        pytest.param(0.5, "returned float, not a mapping", id="no-mapping"),
    ],
)
def test_evaluation_that_can_never_succeed_stops_the_search(make_space: Any, values: Any, reason: str) -> None:
    log = EvaluationLog()
    with pytest.raises(MetricError, match=rf"w0.*{reason}"):
        Searcher(make_space(), lambda _: values, OBJECTIVES, log=log).run()
    assert len(log) == 0


def test_log_without_an_objective_is_refused(make_space: Any, zdt1: Any) -> None:
    space, log = make_space(), EvaluationLog()
    log.record(space.maximal(), {"accuracy": 1.0}, 0.0)
    with pytest.raises(RecordError, match=r"have no value 'macs', which this search needs; .*or another file"):
        Searcher(space, zdt1(space), OBJECTIVES, log=log)  # before anything is evaluated
    with pytest.raises(RecordError, match=r"have no value 'macs', and that of .* has one"):
        Searcher(space, zdt1(space), OBJECTIVES[:1], log=log).run()
