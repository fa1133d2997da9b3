"""Racing in a search: bars against brute force, the same front for fewer measurements, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.passes import SearchSpace, Subnet
from bnas.runtime.evaluate.together import Bar
from bnas.search import NSGA2, Evaluation, Objective, Searcher, SearchError, SearchSettings
from bnas.search.log import EvaluationLog
from bnas.search.run import Racing

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"), Objective("speed", "max"))
ROW = st.tuples(*[st.integers(0, 4)] * 3)


@given(known=st.lists(ROW, max_size=8), asked=st.lists(ROW, max_size=4), part=st.data())
def test_a_bar_is_the_best_accuracy_among_the_as_cheap(known: list[Any], asked: list[Any], part: st.DataObject) -> None:
    parts = [part.draw(st.sampled_from([0.5, 1.0])) for _ in known]
    rows = [{"accuracy": a / 4, "macs": m, "speed": s, "part": p} for (a, m, s), p in zip(known, parts, strict=True)]
    feasible = [Evaluation(i, Subnet({"w": i}), row, 0.0) for i, row in enumerate(rows)]
    subnets = [Subnet({"w": 100 + i}) for i in range(len(asked))]
    costs = [{"macs": float(m), "speed": float(s)} for _, m, s in asked]
    bars = Racing.of(OBJECTIVES, ["macs", "speed"], Mean(None), 0.01).bars(subnets, costs, feasible)
    for subnet, cost in zip(subnets, costs, strict=True):
        as_cheap = [
            row["accuracy"]
            for row in rows
            if row["part"] == 1 and row["macs"] <= cost["macs"] and row["speed"] >= cost["speed"]
        ]
        assert bars.get(subnet) == (Bar(max(as_cheap), 0.01) if as_cheap else None)


class Mean:
    """An evaluation whose accuracy is the mean of 1,000 samples, of which it looks at 250 first."""

    def __init__(self, space: SearchSpace | None) -> None:
        self.space, self.samples, self.bars = space, 0, 0

    def accuracy(self, subnet: Subnet) -> np.ndarray[Any, Any]:
        assert self.space is not None
        genes = self.space.encode(subnet)
        good = 0.4 + 0.5 * genes[0] / 15 - 0.03 * sum(genes[1:])
        generator = np.random.default_rng(abs(hash(genes)) % 2**32)
        return generator.permutation(np.arange(1000) < 1000 * max(good, 0.0))

    def evaluate_many(self, subnets: Sequence[Subnet], bars: Mapping[Subnet, Bar] | None = None) -> list[Any]:
        return [self._one(subnet, bars) for subnet in subnets]

    def _one(self, subnet: Subnet, bars: Mapping[Subnet, Bar] | None) -> dict[str, float]:
        right = self.accuracy(subnet)
        bar = (bars or {}).get(subnet)
        stop = bar is not None and bar.is_out_of_reach(float(right[:250].mean()), 250)
        self.samples += 250 if stop else 1000
        values = {"accuracy": float(right[:250].mean() if stop else right.mean())}
        return values if bars is None else {**values, "part": 0.25 if stop else 1.0}


class Costly:
    """Stands for a super-network of which the costs are known."""

    def __init__(self, space: SearchSpace) -> None:
        self.space, self.cost_model = space, self
        self.expressions = {"macs": None}

    def fingerprint(self) -> str:
        return "costly"

    def many(self, subnets: Sequence[Subnet]) -> dict[str, Any]:
        return {"macs": np.array([sum(subnet.widths.values()) for subnet in subnets], dtype=float)}


def search(space: SearchSpace, evaluate: Any, log: Any = None, racing: float | None = None) -> Searcher:
    objectives = OBJECTIVES[:2]
    settings = SearchSettings(algorithm=NSGA2(population=12), num_evals=120, racing=racing)
    return Searcher(Costly(space), evaluate, objectives, settings, log=log)


def test_the_front_is_the_same_for_less(make_space: Callable[..., SearchSpace], tmp_path: Path) -> None:
    space = make_space((16, 4, 4, 4))
    plain, raced = Mean(space), Mean(space)
    expected = search(space, plain).run()
    path = tmp_path / "log.jsonl"
    found = search(space, raced, path, racing=0.001).run()
    assert all(one.values["part"] == 1 for one in found.pareto())
    assert raced.samples < 0.9 * plain.samples
    front = [(one.subnet, one.values["accuracy"]) for one in found.pareto()]
    assert all(plain.accuracy(subnet).mean() == accuracy for subnet, accuracy in front)
    corner = {"accuracy": 0.0, "macs": 40.0}
    assert found.hypervolume(corner) == pytest.approx(expected.hypervolume(corner), rel=0.05)
    again = Mean(space)
    assert search(space, again, path, racing=0.001).run() == found
    assert again.samples == 0
    with pytest.raises(Exception, match="another super-network"):
        search(space, again, path)


def test_a_killed_search_goes_on_with_the_same_bars(make_space: Callable[..., SearchSpace], tmp_path: Path) -> None:
    space, path = make_space((16, 4, 4, 4)), tmp_path / "log.jsonl"
    expected = search(space, Mean(space), racing=0.001).run()
    search(space, Mean(space), path, racing=0.001).run()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:50]) + lines[50][:20])
    assert search(space, Mean(space), path, racing=0.001).run() == expected
    assert len(EvaluationLog(path)) == 120


@pytest.mark.parametrize("error", [0.0, 1.0, -1.0])
def test_an_impossible_probability_is_refused(error: float, make_space: Callable[..., SearchSpace]) -> None:
    space = make_space()
    with pytest.raises(SearchError, match=r"must be (greater than 0|less than 1)"):
        search(space, Mean(space), racing=error)


def test_what_racing_needs_is_said(make_space: Callable[..., SearchSpace]) -> None:
    space = make_space()
    with pytest.raises(
        SearchError, match=r"those known without .* \(macs\) do not count. Got accuracy \(max\), speed \(max\)"
    ):
        Searcher(Costly(space), Mean(space), OBJECTIVES, SearchSettings(racing=0.001))
    with pytest.raises(SearchError, match=r"Got loss \(min\)"):
        Searcher(Costly(space), Mean(space), [Objective("loss", "min")], SearchSettings(racing=0.001))
    with pytest.raises(SearchError, match=r"needs a bnas\.Evaluator"):
        search(space, lambda subnet: {"accuracy": 1.0}, racing=0.001)
