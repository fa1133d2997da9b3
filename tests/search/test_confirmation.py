"""The front of a search on rough values is measured exactly, all of it, and nothing twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bnas.data.digits import DigitNet
from bnas.passes import Subnet
from bnas.runtime import Evaluator, SuperNetwork
from bnas.search import NSGA2, EvaluationLog, Objective, RecordError, Searcher, SearchSettings

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))
SETTINGS = SearchSettings(algorithm=NSGA2(population=8), num_evals=60)


def test_all_of_the_front_is_exact(make_space: Any, zdt1: Any, tmp_path: Path) -> None:
    space = make_space((9,) * 4)
    exact = zdt1(space)

    def rough(subnet: Subnet) -> dict[str, float]:
        return {name: round(value, 1) for name, value in zdt1(space)(subnet).items()}

    def run() -> Any:
        return Searcher(space, rough, OBJECTIVES, replace(SETTINGS, confirm=exact), log=tmp_path / "log.jsonl").run()

    result = run()
    assert all(dict(one.values) == dict(zdt1(space)(one.subnet)) for one in result.pareto())
    assert any(dict(one.values) != dict(zdt1(space)(one.subnet)) for one in result.evaluations)  # not all of them
    assert len(exact.asked) == len(set(exact.asked)) < 60
    asked = len(exact.asked)
    assert run() == result
    assert len(exact.asked) == asked
    assert len(EvaluationLog(tmp_path / "log.jsonl.confirmed")) == asked


def test_what_cannot_be_confirmed_leaves_the_front(make_space: Any, zdt1: Any) -> None:
    space = make_space((9,) * 4)

    def fails(subnet: Subnet) -> dict[str, float]:
        if subnet == space.minimal():
            raise RuntimeError("no memory")
        return dict(zdt1(space)(subnet))

    result = Searcher(space, zdt1(space), OBJECTIVES, replace(SETTINGS, confirm=fails)).run()
    assert [one.subnet for one in result.failed] == [space.minimal()]
    assert space.minimal() not in [one.subnet for one in result.pareto()]


def test_rough_evaluator_ranks_and_the_exact_one_confirms(tmp_path: Path) -> None:
    supernet = SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))
    batches = [(torch.randn(20, 1, 8, 8), torch.randint(10, (20,)))]

    def spread(module: torch.nn.Module, given: Any) -> float:
        with torch.inference_mode():
            return float(sum(module(inputs).float().std() for inputs, _ in given))

    exact = Evaluator(supernet, batches, batches, spread)
    rough = Evaluator(supernet, batches, batches, spread, autocast=torch.bfloat16)
    subnet = supernet.space.maximal()
    assert rough.evaluate(subnet)["accuracy"] != exact.evaluate(subnet)["accuracy"]
    assert rough.evaluate(subnet)["accuracy"] == pytest.approx(exact.evaluate(subnet)["accuracy"], rel=0.05)
    assert rough.evaluate_many([subnet]) == [rough.evaluate(subnet)]
    log = tmp_path / "log.jsonl"
    result = Searcher(
        supernet, rough, OBJECTIVES, SearchSettings(algorithm=NSGA2(population=4), confirm=exact, num_evals=8), log=log
    ).run()
    assert all(dict(one.values) == exact.evaluate(one.subnet) for one in result.pareto())
    with pytest.raises(RecordError, match="-bfloat16, not"):
        Searcher(supernet, exact, OBJECTIVES, log=log)
