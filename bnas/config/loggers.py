"""The keys `tensorboard`, `mlflow` and `wandb`: the loggers of a run."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from bnas.loggers import Logger, LoggerError, MLflow, WandB

from .section import Section

if TYPE_CHECKING:
    from .configuration import Configuration

TITLES = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "Weights & Biases"}
"""The keys; each is also the name of the library and of bnas's extra."""


class MLflowSection(Section):
    """``mlflow``."""

    experiment: str = "bnas"
    """Name of the experiment; MLflow makes it if there is none."""
    tracking_uri: str | None = None
    """A server or a database, such as "http://host:5000"; by default what MLFLOW_TRACKING_URI says, else the file
    mlflow.db of the current folder."""
    run_id: str | None = None
    """A run of MLflow to continue; by default a new one."""


class WandBSection(Section):
    """``wandb``."""

    project: str = "bnas"
    """Name of the project."""
    entity: str | None = None
    """User or team; by default that of the login."""
    name: str | None = None
    """Name of the run; by default W&B makes one."""
    id: str | None = None
    """Id of a run of W&B to continue; by default a new one."""
    mode: Literal["offline", "online"] | None = None
    """Whether the run is sent at once; by default what WANDB_MODE says, else offline."""


def _switched(value: Any) -> Any:
    """Read true as the defaults and false as no logger, as for TensorBoard."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


MLflowKey = Annotated[
    MLflowSection | None, BeforeValidator(_switched, json_schema_input_type=bool | MLflowSection | None)
]
WandBKey = Annotated[WandBSection | None, BeforeValidator(_switched, json_schema_input_type=bool | WandBSection | None)]


def loggers_of(configuration: Configuration) -> tuple[Logger, ...]:
    """Return the loggers of `configuration`, except TensorBoard, whose files belong to the run folder.

    Raises:
        LoggerError: A library is not installed.
    """
    mlflow, wandb = configuration.mlflow, configuration.wandb
    made: list[Logger] = []
    if mlflow is not None:
        made.append(MLflow(mlflow.experiment, run_id=mlflow.run_id, tracking_uri=mlflow.tracking_uri))
    if wandb is not None:
        given = wandb.model_dump(exclude_none=True)
        made.append(WandB(**given, **({"resume": "allow"} if wandb.id else {})))
    return tuple(made)


def check_installed(configuration: Configuration, key: str) -> None:
    """Check that the library of a logger is installed, before anything runs.

    Raises:
        LoggerError: It is not installed; the message says what to install.
    """
    if getattr(configuration, key) and find_spec(key) is None:
        raise LoggerError(f"{TITLES[key]} is not installed: pip install 'bnas[{key}]'")
