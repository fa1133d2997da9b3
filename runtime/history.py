"""What the epochs of a training ended with, as a JSON file that grows with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .files import write_json

if TYPE_CHECKING:
    from .stage import Stage
    from .validation import EpochRecord

FORMAT = "bnas-training-history"
VERSION = 1


def write_history(path: Path, stages: Sequence[Stage], metric: str, epochs: Sequence[EpochRecord]) -> None:
    """Write the stages, what the metric is called, and the records of all epochs so far, atomically."""
    write_json(
        path,
        {
            "format": FORMAT,
            "version": VERSION,
            "metric": metric,
            "stages": [{"train_dims": one.train_dims, "epochs": one.epochs} for one in stages],
            "epochs": [one.to_json() for one in epochs],
        },
    )
