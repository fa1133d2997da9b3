"""Callbacks of a search: when they are called and with what, that they change no number, and what their errors do."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from callback_cases import Broken, Noted

from bnas import Callback
from bnas.runtime import TrainingCallback
from bnas.search import (
    NSGA2,
    InfeasibleError,
    Objective,
    Search,
    Searcher,
    SearchError,
    SearchResult,
    SearchSettings,
)

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))
SETTINGS = SearchSettings(algorithm=NSGA2(population=8), num_evals=20)


class Problem:
    """ZDT1 whose accuracy also depends on a number that Python's global generator gives."""

    def __init__(self, zdt1: Any, space: Any) -> None:
        self.problem = zdt1(space)

    def __call__(self, subnet: Any) -> dict[str, float]:
        values = self.problem(subnet)
        return {"macs": values["macs"] + 1, "accuracy": values["accuracy"] + 10 + random.random() / 100}


@pytest.fixture
def searched(make_space: Any, zdt1: Any) -> Any:
    """Runs a search with these callbacks."""

    def run(*callbacks: Callback, **options: Any) -> SearchResult:
        space = make_space((9,) * 4)
        random.seed(1)
        settings = {"settings": SETTINGS, "callbacks": callbacks, **options}
        return Searcher(space, Problem(zdt1, space), OBJECTIVES, **settings).run()

    return run


def test_every_event_comes_in_its_place(searched: Any) -> None:
    noted = Noted()
    result = searched(noted)
    generations = [event for count in (8, 8, 4) for event in (*["evaluation"] * count, "generation")]
    assert noted.events() == ["start", *generations, "end"]
    start: Search = noted.told[0][1]
    assert (start.objectives, start.planned, start.settings, start.space.size) == (OBJECTIVES, 20, SETTINGS, 9**4)
    told = noted.all("evaluation")
    assert tuple(one.evaluation for one in told) == result.evaluations
    assert [one.generation for one in told] == [0] * 8 + [1] * 8 + [2] * 4
    assert {(one.metric, one.planned) for one in told} == {("accuracy", 20)}
    ends = noted.all("generation")
    assert [len(one.result.evaluations) for one in ends] == [8, 16, 20]
    assert ends[-1].result == result == noted.told[-1][1]
    first, best = (result.evaluations[0].values[name] for name in ("macs", "accuracy"))
    for one in ends:
        volume = one.result.hypervolume({"accuracy": 0.0, "macs": first}) / (first * max(1.0, best))
        assert one.hypervolume == pytest.approx(volume)
        assert one.best == max(each.values["accuracy"] for each in one.result.evaluations)
    assert ends[0].hypervolume < ends[-1].hypervolume


def test_a_search_with_callbacks_is_one_without(searched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without = searched()
    assert searched(Noted(), Noted()) == without
    monkeypatch.setattr("bnas.runtime.train.random_state.Numbers._set", lambda _: None)
    assert searched(Noted()) != without


def test_constraints_hold_in_the_first_generation_too(searched: Any) -> None:
    noted = Noted()
    settings = SearchSettings(algorithm=NSGA2(population=8), num_evals=20, constraints=("macs <= 60 %",))
    result = searched(noted, settings=settings)
    bound = result.constraints[0].bound
    for one in noted.all("evaluation"):
        assert one.result.constraints == result.constraints
        assert all(each.values["macs"] <= bound for each in one.result.pareto())
    assert noted.all("evaluation")[0].best is None
    assert noted.all("evaluation")[-1].best is not None


def test_the_end_comes_also_where_nothing_keeps_the_constraints(searched: Any) -> None:
    noted = Noted()
    with pytest.raises(InfeasibleError):
        searched(
            noted, settings=SearchSettings(algorithm=NSGA2(population=8), num_evals=20, constraints=("macs <= 0",))
        )
    assert noted.events()[-1] == "end"
    assert "exception" not in noted.events()


@pytest.mark.parametrize(
    ("event", "count", "known"),
    [
        ("on_search_start", 1, 0),
        ("on_evaluation_end", 1, 1),
        ("on_evaluation_end", 11, 11),
        ("on_generation_end", 2, 16),
        ("on_search_end", 1, 20),
    ],
)
def test_an_error_of_a_callback_stops_a_search_that_goes_on_from_its_log(
    event: str, count: int, known: int, make_space: Any, zdt1: Any, tmp_path: Path
) -> None:
    space, log, noted = make_space((9,) * 4), tmp_path / "log.jsonl", Noted()
    whole = Searcher(space, zdt1(space), OBJECTIVES, SETTINGS).run()
    with pytest.raises(OSError, match="the server is gone"):
        Searcher(space, zdt1(space), OBJECTIVES, SETTINGS, log=log, callbacks=[noted, Broken(event, count)]).run()
    assert list(map(str, noted.all("exception"))) == ["the server is gone"]
    evaluate, again = zdt1(space), Noted()
    assert Searcher(space, evaluate, OBJECTIVES, SETTINGS, log=log, callbacks=[again]).run() == whole
    assert len(evaluate.asked) == 20 - known
    assert again.events().count("evaluation") == 20


@pytest.mark.parametrize("given", [[print], [Noted], [TrainingCallback()], Noted()])
def test_what_is_no_callback_of_a_search_is_told_at_once(given: Any, make_space: Any, zdt1: Any) -> None:
    space = make_space((9,) * 4)
    with pytest.raises(SearchError, match=r"^callbacks: "):
        Searcher(space, zdt1(space), OBJECTIVES, callbacks=given)
