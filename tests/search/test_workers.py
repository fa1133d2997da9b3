"""Who evaluates decides nothing: threads, processes and a cluster find the same, and a worker that dies is survived."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import worker_cases
from worker_cases import SPACE, Evaluator, values

from bnas.passes import Subnet
from bnas.search import (
    NSGA2,
    EvaluationLog,
    ExecutorSettings,
    MetricError,
    Objective,
    Remote,
    Searcher,
    SearchError,
    SearchResult,
    SearchSettings,
    WorkerError,
    Workers,
    workers,
)

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))
SETTINGS = SearchSettings(algorithm=NSGA2(population=12), num_evals=48, seed=3)

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["bnas.search"])  # else each process imports torch again
two_processes = partial(ProcessPoolExecutor, 2, CONTEXT)


def searched(evaluate: Any, executor: Any = None, chunk: int = 1, log: Any = None) -> SearchResult:
    workers = None if executor is None else Workers(executor, chunk)
    return Searcher(SPACE, evaluate, OBJECTIVES, replace(SETTINGS, workers=workers), log=log).run()


@pytest.fixture(scope="module")
def alone() -> SearchResult:
    return searched(values)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Executor]:
    distributed = pytest.importorskip("distributed")
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(**settings) as made, distributed.Client(made) as client:
        client.run(_see_tests, str(Path(worker_cases.__file__).parent))
        yield client.get_executor()


def _see_tests(folder: str) -> None:
    import sys

    sys.path.insert(0, folder)


@pytest.mark.parametrize("chunk", [1, 5])
def test_threads_find_what_one_finds(alone: SearchResult, chunk: int) -> None:
    with ThreadPoolExecutor(3) as executor:
        assert searched(values, executor=executor, chunk=chunk) == alone


def test_processes_find_what_one_finds(alone: SearchResult) -> None:
    with two_processes() as executor:
        assert searched(values, executor=executor) == alone


def test_cluster_finds_what_one_finds(alone: SearchResult, cluster: Executor) -> None:
    assert searched(values, executor=cluster, chunk=3) == alone


def test_log_is_complete_before_the_result(alone: SearchResult, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as executor:
        searched(values, executor=executor, log=tmp_path / "log.jsonl")
    assert {one.subnet for one in EvaluationLog(tmp_path / "log.jsonl")} == {one.subnet for one in alone.evaluations}


def test_each_process_makes_its_evaluator_once_and_a_death_costs_a_retry(alone: SearchResult, tmp_path: Path) -> None:
    result = searched(Remote(Evaluator, str(tmp_path)), executor=two_processes)
    assert (tmp_path / "died").exists()
    poison = [one for one in result.evaluations if one.failure]
    assert all(one.subnet.widths["w2"] == 5 and one.subnet.widths["w3"] > 6 for one in poison)
    assert all("no worker returned it in 3 attempts" in str(one.failure) for one in poison)
    first = alone.evaluations[:12]  # later ones depend on what failed
    assert [one.subnet for one in result.evaluations[:12]] == [one.subnet for one in first]
    assert [one for one in result.evaluations[:12] if not one.failure] == [
        one for one, other in zip(first, result.evaluations, strict=False) if not other.failure
    ]
    assert len(result.evaluations) == 48


def test_given_pool_that_broke_says_what_to_do(tmp_path: Path) -> None:
    with two_processes() as executor, pytest.raises(SearchError, match="Give a function that makes the executor"):
        searched(Remote(Evaluator, str(tmp_path)), executor=executor)


def test_worker_that_cannot_make_its_evaluation_ends_the_search_and_loses_nothing(tmp_path: Path) -> None:
    evaluate, log = Remote(Evaluator, str(tmp_path / "nowhere")), tmp_path / "log.jsonl"
    with ThreadPoolExecutor(2) as executor, pytest.raises(WorkerError, match="cannot create the evaluator by worker_c"):
        searched(evaluate, executor=executor, log=log)
    with pytest.raises(WorkerError, match="no evaluation is lost"):
        searched(evaluate, log=log)
    assert len(EvaluationLog(log)) == 0


def test_measure_that_workers_cannot_make_is_no_fault_of_a_sub_network(tmp_path: Path) -> None:
    cost = Objective("cost", "min", measure=Remote(Evaluator, str(tmp_path / "nowhere")))
    with pytest.raises(WorkerError, match="cannot create the evaluator"):
        Searcher(SPACE, values, [OBJECTIVES[0], cost], SETTINGS).run()


def test_settings_make_workers(alone: SearchResult) -> None:
    settings = replace(SETTINGS, executor=ExecutorSettings(processes=1, chunk=12))
    assert Searcher(SPACE, values, OBJECTIVES, settings).run() == alone


class Orphaned(Executor):
    """Ends the first evaluations; the others never, as those that a client of Dask got while it looked for a scheduler.

    `gone` says after how many looks it has given up; None: it is only slow, and ends the rest then.
    """

    def __init__(self, gone: int | None, ends: int = 5) -> None:
        self.after, self.ends, self.looks = gone, ends, 0
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    @property
    def gone(self) -> bool:
        self.looks += 1
        if self.after is None:
            while self.waiting:
                future, call = self.waiting.pop()
                future.set_result(call())
        return self.after is not None and self.looks >= self.after

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        if self.ends > 0:
            self.ends -= 1
            future.set_result(function(*args, **kwargs))
        else:
            self.waiting.append((future, partial(function, *args, **kwargs)))
        return future


def test_scheduler_that_is_lost_does_not_keep_the_search_waiting(
    alone: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "LOOK", 0.02)
    made: list[Executor] = [ThreadPoolExecutor(2), Orphaned(gone=3)]
    assert searched(values, executor=made.pop) == alone
    assert not made, "another executor was made"


def test_slow_executor_is_waited_for(alone: SearchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LOOK", 0.02)
    slow = Orphaned(gone=None)
    assert searched(values, executor=slow, chunk=5) == alone
    assert slow.looks > 1


def test_scheduler_that_is_not_there_is_told() -> None:
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    settings = replace(SETTINGS, executor=ExecutorSettings(dask="tcp://127.0.0.1:9"))
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}),
        pytest.raises(WorkerError, match=r"no Dask scheduler can be reached at tcp://127\.0\.0\.1:9"),
    ):
        Searcher(SPACE, values, OBJECTIVES, settings).run()


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({}, "executor.dask is None: give either processes or dask"),
        ({"processes": 2, "dask": "tcp://a:1"}, "executor.dask is 'tcp://a:1': give either processes or dask"),
        ({"dask": "a:1"}, "must be the address of a scheduler, such as tcp://10.0.0.1:8786"),
        ({"processes": 0}, "executor.processes is 0"),
    ],
)
def test_executor_is_one_of_two_kinds(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(SearchError, match=re.escape(fault)):
        SearchSettings(executor=given)  # type: ignore[arg-type]


def test_executor_and_workers_exclude_each_other() -> None:
    with pytest.raises(SearchError, match="contradicts executor"):
        replace(SETTINGS, executor=ExecutorSettings(processes=1), workers=Workers(two_processes))


def test_evaluation_that_can_never_succeed_stops_the_search() -> None:
    with ThreadPoolExecutor(2) as executor, pytest.raises(MetricError, match="returned float, not a mapping"):
        searched(lambda _: 0.5, executor=executor)


def test_what_cannot_be_sent_is_told() -> None:
    unsendable: Callable[[Subnet], Any] = lambda subnet: values(subnet)  # noqa: E731
    with two_processes() as executor, pytest.raises(SearchError, match=r"all 12 evaluations failed.*[Pp]ickl"):
        searched(unsendable, executor=executor)


def test_empty_chunk_is_refused() -> None:
    with pytest.raises(SearchError, match="chunk 0"):
        Workers(two_processes, 0)


def test_workers_serve_one_search_after_another(alone: SearchResult) -> None:
    workers = Workers(partial(ThreadPoolExecutor, 2))
    for _ in range(2):
        assert Searcher(SPACE, values, OBJECTIVES, replace(SETTINGS, workers=workers)).run() == alone


def test_an_executor_is_not_taken_for_workers() -> None:
    with ThreadPoolExecutor(1) as executor, pytest.raises(SearchError, match=r"must be bnas\.search\.Workers, such as"):
        replace(SETTINGS, workers=executor)
