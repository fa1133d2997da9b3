"""A search of a super-network: its costs are known, names are checked before anything runs, its log is its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bnas.data.digits import DigitNet
from bnas.passes import Subnet
from bnas.runtime import Evaluator, SuperNetwork
from bnas.search import (
    NSGA2,
    EvaluationLog,
    Objective,
    RandomSearch,
    RecordError,
    Searcher,
    SearchError,
    SearchSettings,
)
from bnas.search.source import Source

ACCURACY, MACS = Objective("accuracy", "max"), Objective("macs", "min")


@pytest.fixture(scope="module")
def supernet() -> SuperNetwork:
    torch.manual_seed(0)
    return SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))


@pytest.fixture(scope="module")
def evaluator(supernet: SuperNetwork) -> Evaluator:
    batches = [(torch.randn(20, 1, 8, 8), torch.randint(10, (20,)))]
    return Evaluator(supernet, batches, batches)


def test_evaluator_and_costs_agree_with_one_by_one(supernet: SuperNetwork, evaluator: Evaluator) -> None:
    result = Searcher(
        supernet,
        evaluator,
        (ACCURACY, MACS),
        SearchSettings(algorithm=NSGA2(population=4), constraints=["parameters <= 60 %"], num_evals=12),
    ).run()
    full = supernet.costs(supernet.space.maximal())["parameters"]
    assert all(one.values["parameters"] <= 0.6 * full for one in result.pareto())
    for one in result.evaluations[:3]:
        assert dict(one.values) == evaluator.evaluate(one.subnet)


@pytest.mark.parametrize("algorithm", [NSGA2(population=6), NSGA2(population=6, predictor=True), RandomSearch()])
@pytest.mark.parametrize("bound", ["macs <= 30 %", "parameters >= 90 %"])
def test_no_evaluation_is_spent_on_what_misses_a_bound_that_is_known_before(
    supernet: SuperNetwork, algorithm: Any, bound: str
) -> None:
    asked: list[Subnet] = []

    def accuracy(subnet: Subnet) -> dict[str, float]:
        asked.append(subnet)
        return {"accuracy": float(len(str(subnet.widths)) % 7)}

    settings = SearchSettings(algorithm=algorithm, num_evals=24, constraints=[bound, "accuracy <= 5"])
    result = Searcher(supernet, accuracy, (ACCURACY, MACS), settings).run()
    assert len(asked) == 24
    assert asked[0] == supernet.space.maximal()
    kept = result.constraints[0]
    missed = sum(kept.violation(supernet.costs(one)) > 0 for one in asked[1:])
    assert missed == 0


def test_a_value_that_an_objective_measures_itself_is_not_known_before(supernet: SuperNetwork) -> None:
    macs = Objective("macs", "min", measure=lambda subnet: supernet.costs(subnet)["macs"] / 1e6)
    full = supernet.costs(supernet.space.maximal())["macs"] / 1e6
    bound = f"macs <= {full / 2}"
    settings = SearchSettings(algorithm=NSGA2(population=6), num_evals=24, constraints=[bound])
    result = Searcher(
        supernet, lambda subnet: {"accuracy": float(len(subnet.skipped))}, (ACCURACY, macs), settings
    ).run()
    assert 6 < len(result.feasible) < 24
    assert all(one.values["macs"] <= full / 2 for one in result.feasible)


def test_without_an_evaluator_costs_and_measures_are_searched(supernet: SuperNetwork) -> None:
    kept = Objective("blocks", "max", measure=lambda subnet: len(supernet.space.blocks) - len(subnet.skipped))
    result = Searcher(
        supernet, objectives=(MACS, kept), settings=SearchSettings(algorithm=NSGA2(population=4), num_evals=8)
    ).run()
    for one in result.evaluations:
        assert one.values["blocks"] == len(supernet.space.blocks) - len(one.subnet.skipped)
        assert one.values["macs"] == supernet.costs(one.subnet)["macs"]


def test_function_gets_the_costs_added(supernet: SuperNetwork) -> None:
    def accuracy(subnet: Subnet) -> dict[str, float]:
        return {"accuracy": 1.0 / (1 + len(subnet.skipped))}

    result = Searcher(
        supernet, accuracy, (ACCURACY, MACS), SearchSettings(algorithm=NSGA2(population=4), num_evals=4)
    ).run()
    assert set(result.evaluations[0].values) == {"accuracy", *supernet.costs(supernet.space.maximal())}


def test_name_that_nobody_gives_is_refused_before_anything_runs(supernet: SuperNetwork, evaluator: Evaluator) -> None:
    with pytest.raises(SearchError, match=r"'acuracy' is not a value of an evaluation; .*did you mean 'accuracy'"):
        Searcher(supernet, evaluator, (Objective("acuracy", "max"), MACS))
    with pytest.raises(SearchError, match=r"'parameter' is not a value.*did you mean 'parameters'"):
        Searcher(supernet, evaluator, (ACCURACY, MACS), SearchSettings(constraints=["parameter <= 60 %"]))
    with pytest.raises(SearchError, match="'accuracy' is not a value of an evaluation; known are 'macs', 'parameters'"):
        Searcher(supernet, objectives=(ACCURACY, MACS))


class Model:
    """Stands for a latency model: milliseconds as a function of MACs."""

    def __init__(self, supernet: SuperNetwork) -> None:
        self.supernet = supernet

    def __call__(self, subnet: Subnet) -> float:
        return self.supernet.costs(subnet)["macs"] / 1e4


COSTS = ("macs", "parameters", "activations", "peak_memory", "latency")


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("unit", ["%", ""])
def test_every_cost_is_an_objective_and_may_be_bounded(
    supernet: SuperNetwork, evaluator: Evaluator, name: str, unit: str
) -> None:
    model = Model(supernet)
    full, least = (
        {**supernet.costs(one), "latency": model(one)} for one in (supernet.space.maximal(), supernet.space.minimal())
    )
    bound = (full[name] + least[name]) / 2
    text = f"{name} <= {100 * bound / full[name] if unit else bound:.6f} {unit}"
    settings = SearchSettings(algorithm=NSGA2(population=4), num_evals=8, constraints=(text,), latency=model)
    result = Searcher(supernet, evaluator, (ACCURACY, Objective(name, "min")), settings).run()
    expected = [{**supernet.costs(one.subnet), "latency": model(one.subnet)}[name] for one in result.evaluations]
    assert [one.values[name] for one in result.evaluations] == pytest.approx(expected, rel=1e-12)
    feasible = [value for value in expected if value <= bound * (1 + 1e-6)]
    assert 0 < len(result.feasible) == len(feasible) < len(expected)


def test_a_latency_model_is_asked_for_all_at_once(supernet: SuperNetwork) -> None:
    subnets, asked = [supernet.space.maximal(), supernet.space.minimal()], list[int]()

    class Many:
        def __call__(self, subnet: Subnet) -> float:
            raise AssertionError("was asked for one")

        def many(self, ones: Sequence[Subnet]) -> list[float]:
            asked.append(len(ones))
            return [float(len(one.skipped)) for one in ones]

    found = Source.of(supernet, latency=Many()).costs(subnets)
    assert [one["latency"] for one in found] == [float(len(one.skipped)) for one in subnets]
    assert asked == [2]
    plain = Source.of(supernet, latency=lambda one: float(len(one.skipped))).costs(subnets)
    assert plain == found


def test_latency_without_a_model_says_where_it_comes_from(supernet: SuperNetwork, evaluator: Evaluator) -> None:
    with pytest.raises(SearchError, match=r"'latency' is not a value.*SearchSettings\(latency=model\)"):
        Searcher(supernet, evaluator, (ACCURACY, MACS), SearchSettings(constraints=["latency <= 5"]))
    with pytest.raises(SearchError, match="did you mean 'peak_memory'"):
        Searcher(supernet, evaluator, (ACCURACY, Objective("peak_memry", "min")))


def test_evaluations_of_another_supernetwork_are_refused(supernet: SuperNetwork, tmp_path: Path) -> None:
    log, settings = tmp_path / "log.jsonl", SearchSettings(num_evals=4)
    Searcher(supernet, None, (MACS,), settings, log=log).run()
    assert len(EvaluationLog(log, supernet.fingerprint())) == 4
    weight = supernet.model.head.weight
    with torch.no_grad():
        weight[0, 0] += 1.0
        with pytest.raises(RecordError, match="evaluations of another super-network"):
            Searcher(supernet, None, (MACS,), settings, log=log)
        weight[0, 0] -= 1.0


def test_part_of_the_space_is_searched(supernet: SuperNetwork) -> None:
    part = supernet.space.restrict(depth=False, width_indicator=2)
    result = Searcher(
        supernet, objectives=(MACS,), settings=SearchSettings(algorithm=NSGA2(population=8), space=part, num_evals=40)
    ).run()
    for one in result.evaluations:
        part.check(one.subnet)
        assert not one.subnet.skipped


def test_what_is_no_supernetwork_is_refused() -> None:
    with pytest.raises(SearchError, match="DigitNet is neither a SuperNetwork nor a SearchSpace"):
        Searcher(DigitNet(), objectives=(MACS,))


def test_evaluator_of_another_supernetwork_is_refused(supernet: SuperNetwork, evaluator: Evaluator) -> None:
    copied = SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))
    with pytest.raises(SearchError, match="the evaluator belongs to another super-network"):
        Searcher(copied, evaluator, (ACCURACY, MACS))
    copied.load_state_dict(supernet.state_dict())  # the same network in another object is no other one
    Searcher(copied, evaluator, (ACCURACY, MACS))
