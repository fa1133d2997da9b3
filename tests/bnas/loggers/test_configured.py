"""Loggers that a configuration asks for: a whole run is one run of MLflow, and nothing else makes a logger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import bnas, write_files

from bnas.config.file import load_config
from bnas.config.loggers import loggers_of
from bnas.loggers import MLflow, WandB
from bnas.run.runner import job_of

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")  # of MLflow's own tables
pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'bnas[mlflow]'")
pytest.importorskip("wandb", reason="wandb is not installed: pip install 'bnas[wandb]'")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    return tmp_path


def made(folder: Path, *changes: str) -> tuple[Any, ...]:
    return loggers_of(load_config(folder / "config.json", changes))


def test_a_run_is_one_run_of_mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    asked = ("--set", 'mlflow={"experiment": "mine", "tracking_uri": "sqlite:///mine.db"}')
    assert bnas(monkeypatch, "run", "config.json", "-o", "run", *asked, "--set", "fine_tune.epochs=1") == 0
    client = MlflowClient("sqlite:///mine.db")
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert {"train/loss", "search/hypervolume"} <= run.data.metrics.keys()
    assert any(name.endswith("/train/loss") for name in run.data.metrics), "the winners are fine-tuned"
    # A search alone is another process, and so another run of MLflow.
    asked = ("--set", 'mlflow={"experiment": "alone", "tracking_uri": "sqlite:///mine.db"}')
    assert bnas(monkeypatch, "search", "run", "--overwrite", *asked) == 0
    (found,) = client.search_runs([client.get_experiment_by_name("alone").experiment_id])  # type: ignore[union-attr]
    assert "search/hypervolume" in found.data.metrics
    # What a run is written to says nothing about the run: another choice resumes it.
    assert bnas(monkeypatch, "run", "config.json", "-o", "run", "--resume", "--set", "fine_tune.epochs=1") == 0
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_keys_become_arguments(folder: Path) -> None:
    assert made(folder) == made(folder, "mlflow=false", "wandb=null") == ()
    mlflow, wandb = made(folder, "mlflow.run_id=abc", 'wandb={"id": "x", "mode": "online"}')
    assert isinstance(mlflow, MLflow)
    assert (mlflow.experiment, mlflow.run_id) == ("bnas", "abc")
    assert isinstance(wandb, WandB)
    told = {name: wandb.settings[name] for name in ("project", "id", "mode", "resume")}
    assert told == {"project": "bnas", "id": "x", "mode": "online", "resume": "allow"}
    (plain,) = made(folder, "wandb=true")
    assert plain.settings["mode"] == "offline"
    assert "id" not in plain.settings


def test_a_process_that_only_evaluates_makes_none(folder: Path) -> None:
    configuration = load_config(folder / "config.json", ["mlflow=true"])
    assert job_of(configuration, folder, loggers=False).callbacks == ()
    (logger,) = job_of(configuration, folder, weights=False).callbacks
    assert isinstance(logger, MLflow)
