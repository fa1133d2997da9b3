"""Loggers: callbacks that write the progress of a training, search or run to TensorBoard, MLflow, W&B or Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnas.passes.lazy import attach

if TYPE_CHECKING:
    from .logger import Logger, LoggerError
    from .optuna import Optuna, to_optuna
    from .services import MLflow, WandB
    from .tensorboard import TensorBoard

__getattr__, __dir__ = attach(
    __name__,
    {
        "bnas.loggers.logger": ("Logger", "LoggerError"),
        "bnas.loggers.optuna": ("Optuna", "to_optuna"),
        "bnas.loggers.services": ("MLflow", "WandB"),
        "bnas.loggers.tensorboard": ("TensorBoard",),
    },
)

__all__ = ["Logger", "LoggerError", "MLflow", "Optuna", "TensorBoard", "WandB", "to_optuna"]
