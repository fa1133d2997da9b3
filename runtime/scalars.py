"""TensorBoard scalars (extra "tensorboard")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import TrainingError
from .validation import EpochRecord


class Scalars:
    """Writes ``train/...`` for every step and ``val/...`` for every epoch, at the number of steps taken then.

    Args:
        directory: of the event files.
        taken: steps that were taken before; what the files hold of later ones is void.

    Raises:
        TrainingError: TensorBoard is not installed.
    """

    def __init__(self, directory: Path, taken: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError("TensorBoard is not installed: pip install 'bnas[tensorboard]'") from error
        self._writer: Any = SummaryWriter(str(directory), purge_step=taken + 1 if taken else None)

    def step(self, step: int, loss: float, rate: float) -> None:
        """Loss of the first sub-network of a step, and its learning rate."""
        self._writer.add_scalar("train/loss", loss, step)
        self._writer.add_scalar("train/learning_rate", rate, step)

    def epoch(self, step: int, record: EpochRecord) -> None:
        """The metrics of an epoch."""
        for name, value in record.metrics.items():
            self._writer.add_scalar(f"val/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
