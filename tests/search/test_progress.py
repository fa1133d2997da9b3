"""How far a search has come after each evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.passes import Subnet
from bnas.search import Constraint, Evaluation, Objective, SearchResult
from bnas.search.progress import SearchProgress

NAMES = ("accuracy", "macs", "parameters")
OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))
Made = Callable[[Sequence[Sequence[float]], Sequence[str]], tuple[Evaluation, ...]]
ROWS = [(0.9, 100.0, 50.0), (0.6, 40.0, 20.0), (0.8, 60.0, 45.0), (0.5, 70.0, 10.0), (0.95, 100.0, 10.0)]


def told(evaluations: Sequence[Evaluation], constraints: Sequence[str] = ()) -> list[tuple[float | None, float]]:
    """The best accuracy and the hypervolume after each evaluation."""
    progress, found = SearchProgress(OBJECTIVES, constraints), []
    for number, one in enumerate(evaluations, 1):
        progress.add(one)
        assert progress.evaluations == number
        found.append((progress.best, progress.hypervolume))
    return found


def test_the_box_is_that_of_the_maximal_sub_network(evaluations_of: Made) -> None:
    best, volumes = zip(*told(evaluations_of(ROWS, NAMES)), strict=True)
    assert best == (0.9, 0.9, 0.9, 0.9, 0.95)
    # by hand: (0.6, 40) is 0.6 x 0.6 of the box; (0.8, 60) adds 0.2 x 0.4; nothing else is better than 100 MACs
    assert volumes == pytest.approx([0, 0.36, 0.44, 0.44, 0.44])


def test_the_box_of_an_error_reaches_to_that_of_the_minimal_sub_network(evaluations_of: Made) -> None:
    """The maximal one has the smallest error: a box that begins there stays empty."""
    rows = [(1.0, 100.0, 50.0), (5.0, 20.0, 10.0), (2.0, 60.0, 30.0), (9.0, 10.0, 5.0)]
    progress, found = SearchProgress((Objective("accuracy", "min"), Objective("macs", "min"))), []
    for one in evaluations_of(rows, NAMES):
        progress.add(one)
        found.append(progress.hypervolume)
    assert progress.corner == {"accuracy": 5.0, "macs": 100.0}
    # by hand: (2, 60) is 3 x 40 of the box of 5 x 100; what is as bad as the minimal one adds nothing
    assert found == pytest.approx([0, 0, 0.24, 0.24])


def test_what_misses_a_constraint_or_failed_only_counts(evaluations_of: Made) -> None:
    made = evaluations_of(ROWS, NAMES)
    failed = Evaluation(1, Subnet({"w": 9}), {}, 0.0, "no memory")
    best, volumes = zip(*told([made[0], failed, *made[1:]], ["parameters <= 50 %"]), strict=True)
    assert best == (None, None, 0.6, 0.6, 0.6, 0.95)
    assert volumes == pytest.approx([0, 0, 0.36, 0.36, 0.36, 0.36])


values = st.tuples(st.floats(0.01, 1), st.floats(0.01, 10), st.floats(0.01, 10))


@given(rows=st.lists(values, min_size=1, max_size=12))
def test_it_is_what_the_result_says_after_each_evaluation(rows: list[tuple[float, float, float]]) -> None:
    evaluations = [
        Evaluation(i, Subnet({"w": i}), dict(zip(NAMES, row, strict=True)), 0.0) for i, row in enumerate(rows)
    ]
    bound = Constraint("parameters", "<=", 0.5 * rows[0][2])
    for count, (best, volume) in enumerate(told(evaluations, ["parameters <= 50 %"]), 1):
        result = SearchResult(OBJECTIVES, tuple(evaluations[:count]), (bound,))
        largest = max(macs for _, macs, _ in rows[: min(count, 2)])
        expected = result.hypervolume({"accuracy": 0.0, "macs": largest}) / largest
        assert volume == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert 0 <= volume <= 1
        assert best == max((one.values["accuracy"] for one in result.feasible), default=None)
