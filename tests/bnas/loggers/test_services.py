"""MLflow and Weights & Biases as loggers, without a network: what they wrote, and that nothing was sent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import logger_cases
import psutil
import pytest
from logger_cases import Stop, search, train

from bnas.loggers import LoggerError, MLflow, WandB

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")  # of MLflow's own tables


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow: making its tables takes seconds."""
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'bnas[mlflow]'")
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def history(database: str, run_id: str | None, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [(one.step, one.value) for one in MlflowClient(database).get_metric_history(run_id, name)]


def read(database: str, run_id: str | None) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(database).get_run(run_id)


def test_mlflow_has_a_training_and_a_search_in_one_run(database: str) -> None:
    logger = MLflow("mine", tracking_uri=database)
    kept = train(logger)
    assert read(database, logger.run_id).info.status == "FINISHED"
    _, found = search(logger)
    train(logger, name="half")
    assert history(database, logger.run_id, "train/loss") == [(n, one.loss) for n, one in enumerate(kept.steps, 1)]
    metrics = [(3 * n, one.metrics["minimal"]) for n, one in enumerate(kept.epochs, 1)]
    assert history(database, logger.run_id, "val/minimal") == metrics
    volumes = [(n, one.hypervolume) for n, one in enumerate(found.evaluations, 1)]
    assert history(database, logger.run_id, "search/hypervolume") == volumes
    assert len(history(database, logger.run_id, "half/train/loss")) == 6
    run = read(database, logger.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["recipe.learning_rate"] == "0.01"
    assert run.data.params["stages.0.epochs"] == run.data.params["half/stages.0.epochs"] == "2"
    assert run.data.params["search.algorithm.name"] == "NSGA2"
    assert run.data.params["search.constraints.0"] == "macs <= 90 %"
    assert run.data.params["objectives"] == "accuracy (max), macs (min)"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError("odd"), "FAILED")])
def test_mlflow_knows_how_a_training_ended_and_goes_on_with_its_run(
    error: BaseException, status: str, database: str
) -> None:
    first = MLflow(tracking_uri=database)
    with pytest.raises(type(error)):
        train(first, Stop(steps=5, error=error))
    assert read(database, first.run_id).info.status == status
    assert [step for step, _ in history(database, first.run_id, "train/loss")] == [1, 2, 3, 4, 5]
    train(MLflow(tracking_uri=database, run_id=first.run_id))
    assert read(database, first.run_id).info.status == "FINISHED"
    assert max(step for step, _ in history(database, first.run_id, "train/loss")) == 6


def test_mlflow_gets_batches(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, sent = MLflow(tracking_uri=database), list[int]()
    write = logger._client.log_batch

    def noted(*arguments: Any, **told: Any) -> None:
        sent.append(len(told.get("metrics", ())))
        write(*arguments, **told)

    monkeypatch.setattr(logger._client, "log_batch", noted)
    train(logger)
    assert [count for count in sent if count] == [6 * 2 + 2 * 3]


def parsed(file: Path) -> list[Any]:
    """What wandb wrote so far: a log as LevelDB has it, of records in protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


def records(folder: Path) -> list[Any]:
    """What wandb wrote; its process may still be writing when the run is finished."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(300):
        found = parsed(file)
        if found and found[-1].HasField("exit"):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end")


def rows_of(found: list[Any]) -> list[dict[str, Any]]:
    """The rows that were logged, without wandb's own columns."""
    rows = []
    for one in (record.history for record in found if record.HasField("history")):
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.item}
        rows.append({name: value for name, value in row.items() if not name.startswith("_")})
    return rows


def test_wandb_has_a_training_and_a_search_in_one_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'bnas[wandb]'")
    logger = WandB("mine", dir=str(tmp_path))
    kept = train(logger)
    _, found = search(logger)
    train(logger, name="half")
    assert logger.run.offline
    logger.finish()
    written = records(tmp_path)
    rows = rows_of(written)
    losses = [(row["train/step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(n, one.loss) for n, one in enumerate(kept.steps, 1)]
    metrics = [(row["train/step"], row["val/minimal"]) for row in rows if "val/minimal" in row]
    assert metrics == [(3 * n, one.metrics["minimal"]) for n, one in enumerate(kept.epochs, 1)]
    volumes = [(row["search/evaluations"], row["search/hypervolume"]) for row in rows if "search/hypervolume" in row]
    assert volumes == [(n, one.hypervolume) for n, one in enumerate(found.evaluations, 1)]
    assert [row["half/train/step"] for row in rows if "half/train/loss" in row] == [1, 2, 3, 4, 5, 6]
    axes = {one.metric.glob_name: one.metric.step_metric for one in written if one.HasField("metric")}
    assert axes["val/*"] == axes["train/*"] == "train/step"
    assert (axes["search/*"], axes["half/val/*"]) == ("search/evaluations", "half/train/step")
    config = {"/".join(each.nested_key) or each.key: each.value_json for one in written for each in one.config.update}
    assert config["recipe.learning_rate"] == "0.01"


@pytest.mark.parametrize(("make", "library"), [(MLflow, "mlflow"), (WandB, "wandb")])
def test_a_missing_library_names_the_remedy(make: Any, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(LoggerError, match=rf"{library} cannot be imported \(.*\): pip install 'bnas\[{library}\]'"):
        make()


# Whether anything is sent: all requests of a process of its own go to a proxy, which notices them.

SCRIPT = """
import sys
from logger_cases import search, train
from bnas.loggers import MLflow, WandB
logger = {"mlflow": lambda: MLflow(tracking_uri="sqlite:///mlflow.db"), "wandb": WandB}[sys.argv[1]]()
train(logger)
search(logger)
getattr(logger, "finish", lambda: None)()
print("done", flush=True)
"""
SERVICES = ("CI", "GITHUB_", "GITLAB_", "JENKINS_", "TRAVIS", "TF_BUILD", "BITBUCKET_", "CODEBUILD_", "BUILDKITE")
HIDDEN = ("MLFLOW_", "WANDB_", "PYTEST_", "DO_NOT_TRACK", *SERVICES)
"""MLflow sends nothing where it sees that it is tested: so it must not see it."""


@contextlib.contextmanager
def started(library: str, folder: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """The script with a logger, and the proxy of its requests; what the script prints goes to said.txt.

    That is no pipe: wandb's own process outlives the script, and would hold a pipe open.
    """
    with (folder / "said.txt").open("wb") as said, socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        known = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
        proxies = {name: address for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
        paths = {"PYTHONPATH": str(Path(logger_cases.__file__).parent), "NO_PROXY": "", "no_proxy": ""}
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, library],
            cwd=folder,
            env={**known, **proxies, **paths, **environment},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process, proxy
        finally:
            end_with_children(process)


def end_with_children(process: subprocess.Popen[bytes]) -> None:
    """Wandb's own process is in a session of its own, so no signal to a group of processes reaches it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


@pytest.mark.parametrize("library", ["mlflow", "wandb"])
def test_nothing_is_sent(library: str, empty_database: Path, tmp_path: Path) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'bnas[{library}]'")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    with started(library, tmp_path) as (process, proxy):
        process.wait(timeout=300)
        assert "done" in (said := (tmp_path / "said.txt").read_text()), said
        assert process.returncode == 0
        proxy.settimeout(0.2)
        with pytest.raises(TimeoutError):
            proxy.accept()


@pytest.mark.parametrize(
    ("library", "environment"),
    [
        ("mlflow", {"MLFLOW_DISABLE_TELEMETRY": "false"}),
        ("wandb", {"WANDB_MODE": "online", "WANDB_API_KEY": 40 * "0"}),
    ],
)
def test_what_is_sent_is_noticed(
    library: str, environment: dict[str, str], empty_database: Path, tmp_path: Path
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'bnas[{library}]'")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    with started(library, tmp_path, **environment) as (_, proxy):
        proxy.settimeout(240)
        connection, _ = proxy.accept()
        with connection:
            connection.settimeout(30)
            assert connection.recv(8) == b"CONNECT "
