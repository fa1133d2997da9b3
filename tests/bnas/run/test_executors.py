"""Executors in a configuration: processes, and a Dask scheduler of which a worker is killed, find what one finds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import bnas
from several import CONFIG, evaluations, torchrun, write_files

from bnas.run.runner import elsewhere
from bnas.run.spread import spread
from bnas.search import ExecutorSettings, Remote, SearchError, SearchSettings, WorkerError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that this process alone searched, in ``one``; others search copies of it."""
    path = tmp_path_factory.mktemp("executors")
    write_files(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert bnas(patch, "train", "config.json", "-o", "one") == 0
        assert bnas(patch, "search", "one") == 0
    return path


def copied(folder: Path, name: str) -> Path:
    """A copy of the run, to search anew."""
    return Path(shutil.copytree(folder / "one", folder / name))


class Cluster:
    """A scheduler of Dask, and two workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, folder / "scheduler.json"
        here = ("--host", "127.0.0.1", "--no-dashboard")
        self.scheduler = self._started("dask_scheduler", "--port", "0", "--scheduler-file", str(self.address), *here)
        known = ("--scheduler-file", str(self.address), "--local-directory", str(folder))
        self.workers = [self._started("dask_worker", *known, "--nthreads", "1", "--no-nanny", *here) for _ in range(2)]

    def _started(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=quiet, stderr=quiet)

    def ready(self) -> str:
        """The address of the scheduler, once both workers are there."""
        from distributed import Client

        with Client(scheduler_file=str(self.address), timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=120)
            return str(client.scheduler.address)

    def end(self) -> None:
        """Stop all processes."""
        for one in (*self.workers, self.scheduler):
            one.kill()
            one.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed")
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.end()


def kill_in_the_middle(worker: subprocess.Popen[bytes], log: Path) -> threading.Thread:
    """Kill a worker as soon as the log of a search has some evaluations, and not yet all."""

    def kill() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if log.exists() and 3 < log.read_bytes().count(b"\n") < 12:  # the log of before has 13 lines
                worker.send_signal(signal.SIGKILL)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_killed_worker_of_a_cluster_costs_no_evaluation(
    folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = copied(folder, "dask")
    change = f'search.executor={{"dask": "{cluster.ready()}", "chunk": 1}}'
    killer = kill_in_the_middle(cluster.workers[0], run / "evaluations.jsonl")
    assert bnas(monkeypatch, "search", "dask", "--overwrite", "--set", change) == 0
    killer.join()
    assert cluster.workers[0].wait(timeout=10) == -signal.SIGKILL
    assert cluster.workers[1].poll() is None
    assert evaluations(run) == evaluations(folder / "one")
    assert not [one for one in evaluations(run) if one["failure"]]


def test_scheduler_that_dies_ends_the_search_with_a_message_and_loses_nothing(
    folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dask

    monkeypatch.chdir(folder)
    run = copied(folder, "orphaned")
    change = f'search.executor={{"dask": "{cluster.ready()}", "chunk": 1}}'
    killer = kill_in_the_middle(cluster.scheduler, run / "evaluations.jsonl")
    with dask.config.set({"distributed.comm.timeouts.connect": "3s"}):  # else the client waits half a minute, twice
        assert bnas(monkeypatch, "search", "orphaned", "--overwrite", "--set", change) == 1
    killer.join()
    told = " ".join(capsys.readouterr().err.split())
    assert "no Dask scheduler can be reached at tcp://127.0.0.1:" in told
    assert "start it, then resume the search" in told
    known = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()[1:]]
    assert 0 < len(known) < len(evaluations(folder / "one"))
    assert not [one for one in known if one.get("failure")], "a scheduler's death is no fault of a sub-network"
    assert bnas(monkeypatch, "search", "orphaned", "--resume", "--set", "search.executor=null") == 0
    assert evaluations(run) == evaluations(folder / "one")


def test_processes_find_what_one_finds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run = copied(folder, "pool")
    assert bnas(monkeypatch, "search", "pool", "--overwrite", "--set", "search.executor.processes=2") == 0
    assert evaluations(run) == evaluations(folder / "one")
    changes = ("--set", "search.executor=null", "--set", "search.num_evals=16")
    assert bnas(monkeypatch, "search", "pool", "--resume", *changes) == 0, "another executor changes nothing"
    assert evaluations(run)[:12] == evaluations(folder / "one")


def test_int8_files_are_measured_in_other_processes_as_in_this_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an executor and by torchrun: each process makes, quantises and runs the file of its share."""
    monkeypatch.chdir(folder)
    objectives = [{"name": "int8_accuracy", "direction": "max"}, {"name": "macs", "direction": "min"}]
    asked = {"objectives": objectives, "export": {"int8": True}, "search": {"num_evals": 6}}
    settings = {**CONFIG, **asked}
    Path("int8.json").write_text(json.dumps(settings))
    assert bnas(monkeypatch, "train", "int8.json", "-o", "int8") == 0
    for name in ("pool", "team"):
        shutil.copytree("int8", f"int8-{name}")
    assert bnas(monkeypatch, "search", "int8") == 0
    assert bnas(monkeypatch, "search", "int8-pool", "--set", "search.executor.processes=2") == 0
    started = torchrun(folder, "search", "int8-team")
    assert started.returncode == 0, started.stderr
    found = evaluations(folder / "int8")
    assert len({one["int8_accuracy"] for one in found}) > 1
    assert evaluations(folder / "int8-pool") == evaluations(folder / "int8-team") == found


def test_worker_that_sees_another_run_refuses(folder: Path) -> None:
    remote = elsewhere(folder / "one", folder)("evaluator")
    assert remote.make(*remote.arguments).names[0] == "accuracy"
    run, source, _, wanted = remote.arguments
    other = Remote(remote.make, run, source, "another stamp", wanted)
    with pytest.raises(WorkerError, match="here is not the run where the search began"):
        other.evaluate_many([])


def test_job_without_a_configuration_cannot_be_made_elsewhere() -> None:
    settings, evaluator = SearchSettings(executor=ExecutorSettings(processes=2)), object()
    with pytest.raises(SearchError, match=r"search\.executor works only for a run from a configuration file"):
        spread(settings, evaluator, None, None)  # type: ignore[arg-type]
    assert spread(SearchSettings(), evaluator, None, None) == (evaluator, None, None)  # type: ignore[arg-type]
