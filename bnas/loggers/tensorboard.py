"""TensorBoard as a logger: `pip install 'bnas[tensorboard]'`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnas.runtime.storage.files import discard, writing

from .logger import Logger, library

if TYPE_CHECKING:
    import os

    from bnas.runtime.train.callbacks import Training
    from bnas.search import Search

SEARCH = ".search"
"""Suffix of the event files of a search."""


class TensorBoard(Logger):
    """Writes scalars for TensorBoard: ``tensorboard --logdir DIRECTORY`` shows them.

    A resumed training continues after its last step. A resumed search writes all its evaluations again and replaces its
    files in the directory. A training with a name has a folder with this name in the directory.

    Args:
        directory: of the event files; it is made if needed.

    Raises:
        LoggerError: TensorBoard is not installed.
        WriteError, also from the methods: the files cannot be written.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        super().__init__()
        library("tensorboard", "tensorboard")
        self.directory = Path(directory)
        self._writer: Any = None

    def on_train_start(self, training: Training) -> None:
        """Open an event file; later steps in existing files become invalid."""
        super().on_train_start(training)
        self._prefix = ""
        self._open(self.directory / training.name, purge_step=training.taken + 1 if training.taken else None)

    def on_search_start(self, search: Search) -> None:
        """Open an event file, which replaces those of the same search."""
        for former in self.directory.glob(f"events.out.tfevents.*{SEARCH}"):
            discard(former)
        self._open(self.directory, filename_suffix=SEARCH)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        with writing(self.directory):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self, error: BaseException | None = None) -> None:
        """Close the event file."""
        if self._writer is not None:
            with writing(self.directory):
                self._writer.close()
        self._writer = None

    def _open(self, directory: Path, **options: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with writing(directory):
            self._writer = SummaryWriter(str(directory), **options)
