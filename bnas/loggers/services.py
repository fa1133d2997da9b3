"""MLflow and Weights & Biases as loggers: `pip install 'bnas[mlflow]'`, `pip install 'bnas[wandb]'`.

No data leave the machine unless a server is named. For this reason the usage statistics of both libraries are off,
unless their own environment variables turn them on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from .logger import Logger, library

SECONDS, MOST = 10.0, 500
"""Limits of a batch of numbers for MLflow: seconds after its first number, and number of entries."""


class MLflow(Logger):
    """Writes parameters and metrics to a run of MLflow: ``mlflow ui`` shows them.

    Without `tracking_uri` MLflow writes where the environment variable ``MLFLOW_TRACKING_URI`` says, else to the file
    ``mlflow.db`` in the current folder. A metric is at its number of steps, or of evaluations for a search. The status
    of the run becomes FAILED where an error stopped a training or a search, and KILLED after Ctrl-C.

    Args:
        experiment: name of the experiment; it is made if there is none.
        run_id: an existing run to go on with; by default the first event makes a new one.
        tracking_uri: a server or a database, such as "http://host:5000" or "sqlite:///runs/mlflow.db".

    Raises:
        LoggerError: MLflow is not installed.
    """

    def __init__(self, experiment: str = "bnas", *, run_id: str | None = None, tracking_uri: str | None = None) -> None:
        super().__init__()
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._mlflow = library("mlflow", "mlflow")
        self._client = self._mlflow.MlflowClient(tracking_uri)
        self.experiment, self.run_id = experiment, run_id
        self._noted: dict[str, str] = {}
        self._waiting: list[Any] = []
        self._since = 0.0

    def note(self, settings: Mapping[str, str | int | float | bool]) -> None:
        """Write parameters. MLflow never changes a parameter, so a continued run keeps the first value."""
        self._begin()
        new = {name: str(value) for name, value in settings.items() if name not in self._noted}
        entities = [self._mlflow.entities.Param(name, value) for name, value in new.items()]
        for start in range(0, len(entities), 100):  # MLflow's limit for one call
            self._client.log_batch(self.run_id, params=entities[start : start + 100])
        self._noted |= new

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write metrics, a batch at a time."""
        now = time.time()
        self._since = self._since if self._waiting else now
        self._waiting += [self._mlflow.entities.Metric(name, v, int(1000 * now), step) for name, v in values.items()]
        if now - self._since >= SECONDS or len(self._waiting) >= MOST:
            self._flush()

    def close(self, error: BaseException | None = None) -> None:
        """Write what is left, and the status."""
        if self.run_id is not None:
            self._flush()
            status = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
            self._client.set_terminated(self.run_id, status)

    def _begin(self) -> None:
        """Create the run, or continue it."""
        if self.run_id is None:
            found = self._client.get_experiment_by_name(self.experiment)
            where = self._client.create_experiment(self.experiment) if found is None else found.experiment_id
            self.run_id = str(self._client.create_run(where).info.run_id)
            return
        self._client.update_run(self.run_id, "RUNNING")
        self._noted = dict(self._client.get_run(self.run_id).data.params)

    def _flush(self) -> None:
        if self._waiting:
            self._client.log_batch(self.run_id, metrics=self._waiting)
        self._waiting = []


class WandB(Logger):
    """Writes settings and metrics to a run of Weights & Biases.

    The run is *offline*: it stays in the folder ``wandb/``, and ``wandb sync FOLDER`` uploads it when you want that.
    ``mode="online"``, or the environment variable ``WANDB_MODE``, sends it at once. Metrics are drawn over
    ``train/step`` and ``search/evaluations``. The run ends with the process, or by `finish` in a notebook.

    Args:
        project: name of the project.
        run: what ``wandb.init`` gave, to write to; by default the first event makes a new one.
        settings: further arguments of ``wandb.init``, such as ``mode``, ``name``, ``id`` and ``resume``.

    Raises:
        LoggerError: wandb is not installed.
    """

    def __init__(self, project: str = "bnas", *, run: Any = None, **settings: Any) -> None:
        super().__init__()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._wandb = library("wandb", "wandb")
        self.run = run
        mode = os.environ.get("WANDB_MODE", "offline")
        self.settings = {"project": project, "mode": mode, "reinit": "create_new", **settings}
        self._axes: set[str] = set()

    def note(self, settings: Mapping[str, str | int | float | bool]) -> None:
        """Write the configuration; the first call makes the run."""
        if self.run is None:
            self.run = self._wandb.init(**self.settings)
        self.run.config.update(dict(settings), allow_val_change=True)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write metrics, with their axis among them."""
        searched = "search/evaluations" in values
        axis = "search/evaluations" if searched else f"{self._prefix}train/step"
        for family in {name.rpartition("/")[0] for name in values} - self._axes:
            self.run.define_metric(f"{family}/*", step_metric=axis)
            self._axes.add(family)
        self.run.log({**values, axis: step})

    def finish(self) -> None:
        """End the run; the next event makes another one."""
        if self.run is not None:
            self.run.finish()
        self.run = None
        self._axes.clear()
