"""The progress of a search: hypervolumes that never fall, those of the front after each evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.passes import Subnet
from bnas.search import Constraint, Evaluation, EvaluationLog, Objective, RecordError, SearchError, SearchResult
from bnas.search.pareto import pareto_front
from bnas.search.progression import Progression

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"), Objective("latency", "min"))


def result(rows: list[tuple[int, ...]], constraints: tuple[Constraint, ...] = ()) -> SearchResult:
    names = [one.name for one in OBJECTIVES][: len(rows[0])]
    found = [
        Evaluation(n, Subnet({"w": n}), dict(zip(names, map(float, row), strict=True)), 0.0)
        for n, row in enumerate(rows)
    ]
    return SearchResult(OBJECTIVES[: len(names)], tuple(found), constraints)


def by_hand(search: SearchResult, count: int, found: Progression) -> float:
    """The share of the box, by `SearchResult.hypervolume` of the first evaluations."""
    part = SearchResult(search.objectives, search.evaluations[:count])
    box = np.prod([abs(found.best[o.name] - found.worst[o.name]) or 1 for o in search.objectives])
    corner = {o.name: found.worst[o.name] for o in search.objectives}
    for one in search.objectives:  # where all are alike, the box has no width, and counts as 1
        if found.best[one.name] == found.worst[one.name]:
            corner[one.name] += one.sign
    return part.hypervolume(corner) / float(box)


points = st.integers(2, 3).flatmap(
    lambda size: st.lists(st.tuples(*[st.integers(0, 9)] * size), min_size=1, max_size=12)
)


@given(rows=points)
def test_shares_are_those_of_the_front_so_far(rows: list[tuple[int, ...]]) -> None:
    search = result(rows)
    found = Progression.of(search)
    expected = [by_hand(search, count, found) for count in range(1, len(rows) + 1)]
    np.testing.assert_allclose(found.volumes, expected, atol=1e-12)
    assert (np.diff(found.volumes) >= -1e-12).all()
    assert found.volumes.max() <= 1


def test_a_wrong_share_is_noticed() -> None:
    search = result([(5, 5), (0, 9), (9, 0), (7, 2)])
    found = Progression.of(search)
    expected = [by_hand(search, count, found) for count in range(1, 5)]
    assert found.volumes[-1] == pytest.approx(expected[-1])
    assert found.volumes[0] != pytest.approx(expected[-1])
    assert (found.best, found.worst) == ({"accuracy": 9, "macs": 0}, {"accuracy": 0, "macs": 9})


def test_what_breaks_a_constraint_or_failed_adds_nothing() -> None:
    search = result([(5, 5), (9, 1), (0, 9)], (Constraint("macs", ">=", 2),))
    failed = Evaluation(3, Subnet({"w": 9}), {}, 0.0, "out of memory")
    search = SearchResult(search.objectives, (*search.evaluations, failed), search.constraints)
    volumes = Progression.of(search).volumes
    assert volumes.tolist() == [1.0, 1.0, 1.0, 1.0]
    with pytest.raises(SearchError, match="no evaluation is feasible"):
        Progression.of(SearchResult(search.objectives, (failed,)))


def test_without_moocore_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moocore", None)
    with pytest.raises(SearchError, match=r"pip install 'bnas\[report\]'"):
        Progression.of(result([(5, 5)]))


@given(rows=points)
def test_the_front_is_what_no_other_row_dominates(rows: list[tuple[int, ...]]) -> None:
    search = result(rows)
    costs = np.array([[o.sign * e.values[o.name] for o in search.objectives] for e in search.evaluations])
    expected = {
        number
        for number, one in enumerate(costs)
        if not any((other <= one).all() and (other < one).any() for other in costs)
    }
    assert {e.index for e in pareto_front(search.evaluations, search.objectives)} == expected


def test_a_log_is_read_while_somebody_writes_to_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = EvaluationLog(path, "print")
    log.record(Subnet({"w": 1}), {"accuracy": 0.5}, 0.1)
    with path.open("ab") as file:
        file.write(b'{"index": 1, "subn')
    before = path.read_bytes()
    found = EvaluationLog.read(path)
    assert [one.values for one in found] == [{"accuracy": 0.5}]
    assert found.path is None
    assert path.read_bytes() == before
    assert len(EvaluationLog.read(path)) == 1
    EvaluationLog(path, "print")
    assert path.read_bytes() != before  # a writer drops the line that was cut off
    path.write_bytes(b"something else\n")
    with pytest.raises(RecordError, match="needs to be a file of format"):
        EvaluationLog.read(path)
    path.write_bytes(b"")
    assert len(EvaluationLog.read(path)) == 0
