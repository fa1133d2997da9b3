"""TensorBoard scalars (extra "tensorboard")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import TrainingError
from .files import writing
from .validation import EpochRecord


class Scalars:
    """Writes ``train/...`` for every step and ``val/...`` for every epoch, at the number of steps taken then.

    Args:
        directory: of the event files.
        taken: steps that were taken before; what the files hold of later ones is void.

    Raises:
        TrainingError: TensorBoard is not installed.
        WriteError, also from the methods: the files cannot be written.
    """

    def __init__(self, directory: Path, taken: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError("TensorBoard is not installed: pip install 'bnas[tensorboard]'") from error
        self._directory = directory
        with writing(directory):
            self._writer: Any = SummaryWriter(str(directory), purge_step=taken + 1 if taken else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by their names, at a step."""
        with writing(self._directory):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def step(self, step: int, loss: float, rate: float) -> None:
        """Loss of the first sub-network of a step, and its learning rate."""
        self.add(step, {"train/loss": loss, "train/learning_rate": rate})

    def epoch(self, step: int, record: EpochRecord) -> None:
        """The metrics of an epoch."""
        self.add(step, {f"val/{name}": value for name, value in record.metrics.items()})

    def close(self) -> None:
        """Write what is left."""
        with writing(self._directory):
            self._writer.close()
