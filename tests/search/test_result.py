"""The front is the one by definition, the best is the smallest that is good enough, and the file gives it back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.passes import Subnet
from bnas.search import Constraint, Evaluation, MetricError, Objective, RecordError, SearchError, SearchResult

MACS, ACCURACY, LATENCY = Objective("macs", "min"), Objective("accuracy", "max"), Objective("latency", "min")
OBJECTIVES = (ACCURACY, MACS, LATENCY)
ROWS = st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 3), max_size=25)
Make = Callable[[Sequence[Sequence[float]], Sequence[str]], tuple[Evaluation, ...]]


def result_of(make: Make, rows: Sequence[Sequence[float]], *objectives: Objective) -> SearchResult:
    return SearchResult(objectives, make(rows, [objective.name for objective in objectives]))


def dominates(one: Evaluation, other: Evaluation, objectives: Sequence[Objective]) -> bool:
    pairs = [(one.values[o.name], other.values[o.name]) for o in objectives]
    better = [a < b if o.direction == "min" else a > b for o, (a, b) in zip(objectives, pairs, strict=True)]
    return any(better) and all(up or a == b for up, (a, b) in zip(better, pairs, strict=True))


def is_front(front: Sequence[Evaluation], result: SearchResult) -> bool:
    """Say whether this is the front, by comparing each evaluation with each other one."""
    expected = [
        e for e in result.evaluations if not any(dominates(o, e, result.objectives) for o in result.evaluations)
    ]
    return sorted(e.index for e in front) == [e.index for e in expected]


@given(rows=ROWS, count=st.integers(1, 3))
def test_front_is_what_nothing_dominates(evaluations_of: Make, rows: list[tuple[float, ...]], count: int) -> None:
    result = result_of(evaluations_of, [row[:count] for row in rows], *OBJECTIVES[:count])
    assert is_front(result.pareto(), result)


@given(rows=ROWS.filter(bool))
def test_front_with_one_too_few_is_rejected(evaluations_of: Make, rows: list[tuple[float, ...]]) -> None:
    result = result_of(evaluations_of, rows, *OBJECTIVES)
    assert not is_front(result.pareto()[1:], result)


@given(rows=ROWS)
def test_front_with_a_dominated_one_is_rejected(evaluations_of: Make, rows: list[tuple[float, ...]]) -> None:
    result = result_of(evaluations_of, [*rows, (-1.0, 9.0, 9.0), (0.0, 9.0, 9.0)], *OBJECTIVES)
    assert not is_front([*result.pareto(), result.evaluations[-2]], result)


def test_front_of_the_other_direction_is_rejected(evaluations_of: Make) -> None:
    result = result_of(evaluations_of, [(0.5, 1.0), (0.6, 1.0)], ACCURACY, MACS)
    flipped = SearchResult((Objective("accuracy", "min"), MACS), result.evaluations)
    assert not is_front(flipped.pareto(), result)


@given(rows=ROWS)
def test_front_is_in_the_order_of_the_first_minimised_objective(
    evaluations_of: Make, rows: list[tuple[float, ...]]
) -> None:
    result = result_of(evaluations_of, rows, *OBJECTIVES)
    front = result.pareto()
    assert [e.values["macs"] for e in front] == sorted(e.values["macs"] for e in front)
    assert SearchResult(result.objectives, result.evaluations[::-1]).pareto() == front


def test_the_cheapest_is_the_smallest_within_delta(evaluations_of: Make) -> None:
    result = result_of(evaluations_of, [(10, 0.90), (5, 0.89), (4, 0.85), (5, 0.95), (1, 0.2)], MACS, ACCURACY)
    chosen = {delta: result.cheapest(delta, reference=0.9) for delta in (-1.0, 0.0, 0.01, 0.05, 1.0)}
    assert {delta: one and one.index for delta, one in chosen.items()} == {-1.0: None, 0.0: 3, 0.01: 3, 0.05: 2, 1.0: 4}


@pytest.mark.parametrize(("accuracy", "found"), [(0.89, True), (0.8899, False)])
def test_delta_is_meant_in_decimal(evaluations_of: Make, accuracy: float, found: bool) -> None:
    assert 0.9 - 0.89 > 0.01  # in floating point: what must not decide
    result = result_of(evaluations_of, [(10, accuracy)], MACS, ACCURACY)
    assert (result.cheapest(0.01, reference=0.9) is not None) is found


def test_without_a_reference_it_is_the_maximal_subnetwork(evaluations_of: Make) -> None:
    result = result_of(evaluations_of, [(10, 0.90), (5, 0.89), (4, 0.85)], MACS, ACCURACY)
    assert (
        result.cheapest(acc_delta=0.02, minimize="macs")
        == result.cheapest(0.02, reference=0.9)
        == result.evaluations[1]
    )
    assert result.cheapest(0.06) == result.evaluations[2]
    failed = SearchResult(result.objectives, (Evaluation(0, Subnet({"w": 9}), {}, 0.0, "no memory"),))
    with pytest.raises(SearchError, match=r"has no value accuracy to compare with \(no memory\); give a reference"):
        failed.cheapest(0.02)
    assert failed.cheapest(0.02, reference=0.9) is None


def test_cheapest_by_another_metric_and_value(evaluations_of: Make) -> None:
    result = result_of(evaluations_of, [(0.5, 10.0, 3.0), (0.9, 11.0, 2.0), (0.7, 30.0, 1.0)], *OBJECTIVES)
    best = result.cheapest(2.0, "latency", reference=10.0, metric="macs")
    assert best is not None
    assert best.index == 1


def test_cheapest_says_what_there_is(evaluations_of: Make) -> None:
    result = result_of(evaluations_of, [(10, 0.90)], MACS, ACCURACY)
    with pytest.raises(SearchError, match=r"'acuracy' is not an objective; .*did you mean 'accuracy'"):
        result.cheapest(0.1, metric="acuracy")
    with pytest.raises(SearchError, match=r"no value 'mac' to minimise; .*did you mean 'macs'"):
        result.cheapest(0.1, minimize="mac")


def test_hypervolume_by_hand(evaluations_of: Make) -> None:
    result = result_of(evaluations_of, [(1, 0.5), (2, 0.75), (2, 0.6), (9, 1.0), (1, 0.0)], MACS, ACCURACY)
    # (1, 0.5) spans 3 x 0.5 up to the corner (4, 0); (2, 0.75) adds 2 x 0.25; (9, 1.0) lies beyond the corner.
    assert result.hypervolume({"macs": 4, "accuracy": 0.0}) == pytest.approx(2.0)
    assert result.hypervolume({"macs": 10, "accuracy": 0.0}) == pytest.approx(4.5 + 2.0 + 0.25)
    assert result.hypervolume({"macs": 1, "accuracy": 0.0}) == 0.0
    with pytest.raises(SearchError, match="no value for 'accuracy'"):
        result.hypervolume({"macs": 1})


def cells(rows: Sequence[Sequence[float]], corner: Sequence[int]) -> int:
    """How many cells of a grid of whole numbers, up to the corner, some row is no worse than."""
    grid = np.indices(corner).reshape(len(corner), -1)
    return int(np.any([(grid >= np.reshape(row, (-1, 1))).all(axis=0) for row in rows], axis=0).sum())


@given(rows=ROWS.filter(bool), count=st.integers(1, 3))
def test_hypervolume_counts_what_is_dominated(evaluations_of: Make, rows: list[Sequence[float]], count: int) -> None:
    objectives = [Objective(name, "min") for name in "abc"[:count]]
    result = result_of(evaluations_of, [row[:count] for row in rows], *objectives)
    expected = cells([row[:count] for row in rows], [6] * count)
    assert result.hypervolume(dict.fromkeys("abc", 6)) == pytest.approx(expected)
    assert result.hypervolume(dict.fromkeys("abc", 7)) > expected


def test_nothing_evaluated_gives_nothing() -> None:
    empty = SearchResult((MACS, ACCURACY), ())
    assert empty.pareto() == ()
    assert empty.cheapest(0.1) is None
    assert empty.hypervolume({"macs": 1, "accuracy": 0}) == 0.0


@given(rows=st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3), max_size=10))
def test_file_gives_back_an_equal_result(
    evaluations_of: Make, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, ...]]
) -> None:
    path = tmp_path_factory.mktemp("result") / "result.json"
    result = result_of(evaluations_of, rows, *OBJECTIVES)
    result.write_json(path)
    again = SearchResult.read_json(path)
    assert again == result
    assert again.to_json() == result.to_json()


def test_results_that_differ_in_one_value_are_not_equal(evaluations_of: Make) -> None:
    one, other = (result_of(evaluations_of, [(1, 0.5), (2, last)], MACS, ACCURACY) for last in (0.75, 0.76))
    assert one != other


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"version": 1}, "version 2", id="version"),
        pytest.param({"format": "other"}, "of format 'bnas-search-result'", id="format"),
        pytest.param({"objectives": [{"name": "macs"}]}, "KeyError: 'direction'", id="objective"),
        pytest.param({"evaluations": [{"index": 0}]}, "KeyError: 'subnet'", id="evaluation"),
        pytest.param({"evaluations": 3}, "TypeError", id="evaluations"),
        pytest.param({"objectives": [{"name": "size", "direction": "min"}]}, "no value for .*'size'", id="values"),
    ],
)
def test_malformed_file_is_refused_by_name(
    evaluations_of: Make, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    data = result_of(evaluations_of, [(1, 0.5)], MACS, ACCURACY).to_json()
    (tmp_path / "result.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(RecordError, match=rf"result\.json: .*{reason}"):
        SearchResult.read_json(tmp_path / "result.json")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": "bnas-search-result"}'])
def test_file_of_something_else_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RecordError, match=r"result\.json: "):
        SearchResult.read_json(tmp_path / "result.json")


def test_infeasible_and_failed_ones_are_never_chosen(evaluations_of: Make) -> None:
    rows = evaluations_of([(10.0, 0.9), (5.0, 0.8), (20.0, 0.95)], ["macs", "accuracy"])
    failed = Evaluation(3, rows[0].subnet, {}, 0.0, "no memory")
    result = SearchResult((MACS, ACCURACY), (*rows, failed), (Constraint("macs", "<=", 10.0),))
    assert result.feasible == rows[:2]
    assert result.failed == (failed,)
    assert set(result.pareto()) == set(rows[:2])
    assert result.hypervolume({"macs": 100.0, "accuracy": 0.0}) == pytest.approx(90 * 0.9 + 5 * 0.8)
    assert result.cheapest(0.1, reference=0.95) == rows[0]
    assert result.infeasible() is None
    assert SearchResult.from_json(result.to_json()) == result


def test_named_winners(evaluations_of: Make) -> None:
    result = result_of(
        evaluations_of, [(0.9, 10.0, 3.0), (0.9, 9.0, 2.5), (0.85, 5.0, 2.0), (0.4, 1.0, 1.0)], *OBJECTIVES
    )
    found = result.winners(0.06, speed="latency")
    assert {name: one.index for name, one in found.items()} == {"best": 1, "smallest": 2, "fastest": 2}
    assert result.winners(0.06) == found
    assert result.winners(0.06, speed="macs")["fastest"].index == 2
    assert set(result.winners(0.06, reference=2.0)) == {"best"}
    assert set(result_of(evaluations_of, [(10, 0.95)], MACS, ACCURACY).winners(0.1)) == {"best", "smallest"}
    with pytest.raises(SearchError, match=r"metric 'f1' is not an objective; known are .*; give one as metric=\.\.\."):
        result.winners(0.06, metric="f1")


def test_the_same_evaluations_under_other_constraints(evaluations_of: Make) -> None:
    result = result_of(evaluations_of, [(10, 0.95), (9, 0.9), (5, 0.8)], MACS, ACCURACY)
    half = replace(result, constraints=(Constraint.parse("macs <= 50 %"),))
    assert half.constraints == (Constraint("macs", "<=", 5.0),)
    assert half.feasible == result.evaluations[2:]
    assert SearchResult.from_json(half.to_json()) == half
    with pytest.raises(
        SearchError, match=r"latency <= 50 %: the maximal sub-network has no value 'latency'; known are"
    ):
        replace(result, constraints=(Constraint.parse("latency <= 50 %"),))


def test_best_has_fewer_macs_than_the_maximal_where_any_has(evaluations_of: Make) -> None:
    result = result_of(evaluations_of, [(10, 0.95), (9, 0.9), (5, 0.8)], MACS, ACCURACY)
    assert result.winners(0.0)["best"].index == 1
    assert result_of(evaluations_of, [(10, 0.95)], MACS, ACCURACY).winners(0.0)["best"].index == 0


def test_closest_is_told_with_what_it_misses(evaluations_of: Make) -> None:
    rows = evaluations_of([(10.0, 0.9), (5.0, 0.8)], ["macs", "accuracy"])
    result = SearchResult((MACS, ACCURACY), rows, (Constraint("macs", "<=", 4.0), Constraint("accuracy", ">=", 0.5)))
    assert result.closest() == rows[1]
    assert re.search(r"none of 2 .* misses macs <= 4, it has 5 \(off by 25 %\): .*\"w\": 1", str(result.infeasible()))


def test_table_gives_back_an_equal_result_with_the_same_objectives(evaluations_of: Make, tmp_path: Path) -> None:
    result = result_of(evaluations_of, [(10.0, 0.9), (5.0, 0.8)], MACS, ACCURACY)
    result.write_csv(tmp_path / "table.csv")
    assert SearchResult.read_csv(tmp_path / "table.csv", (MACS, ACCURACY)) == result
    with pytest.raises(MetricError, match="no value for 'latency'"):
        SearchResult.read_csv(tmp_path / "table.csv", (LATENCY,))


@pytest.mark.parametrize("objectives", [(MACS,), (ACCURACY, MACS)])
def test_plot_shows_every_evaluation_and_the_front(
    evaluations_of: Make, tmp_path: Path, objectives: tuple[Objective, ...]
) -> None:
    rows = evaluations_of([(10.0, 0.9), (5.0, 0.8), (20.0, 0.7)], ["macs", "accuracy"])
    result = SearchResult(objectives, (*rows, Evaluation(3, rows[0].subnet, {}, 0.0, "no memory")))
    axes = result.plot(tmp_path / "made" / "front.png").axes[0]
    assert (tmp_path / "made" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert len(axes.collections[0].get_offsets()) == 3
    assert len(axes.lines[0].get_xdata()) == len(result.pareto())
    with pytest.raises(SearchError, match="did you mean 'accuracy'"):
        result.plot(y="acuracy")
