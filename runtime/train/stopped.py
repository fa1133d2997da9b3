"""Resume a stopped training in the same process (a notebook), with the model whose weights it has already changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import nn

from bnas.runtime.errors import CheckpointError
from bnas.runtime.storage.archive import digest_of
from bnas.runtime.storage.checkpoint import TRAINING, shared_tensors

from . import parallel

BEGAN: dict[tuple[Path, str], str] = {}
"""Digests of the initial weights of trainings in this process, by their directory and the weights they ended with."""


@contextmanager
def remembered(directory: Path | None, model: nn.Module, start: str) -> Iterator[None]:
    """Remember that a training in `directory` began with weights of digest `start`, even if it ends with an error."""
    try:
        yield
    finally:
        if directory is not None:
            with suppress(RuntimeError):  # the weights are on a failed device, so the training cannot continue anyway
                BEGAN[directory.resolve(), digest_of(shared_tensors(model))] = start


def beginning(model: nn.Module, resumed: Path | None, untaught: bool) -> str:
    """Return the digest of the weights of `model`, or of the initial weights of the training in `resumed`.

    A checkpoint has everything that a training changes. Two cases need the initial weights and are refused: a training
    without a checkpoint yet, and a teacher that is a copy of the model (`untaught`).

    Raises:
        CheckpointError: The initial weights are needed; the message says for what, and what to do.
    """
    now = digest_of(shared_tensors(model))
    began = None if resumed is None else BEGAN.get((resumed.resolve(), now))
    if resumed is None or began is None or began == now:
        return now
    again = "make the super-network again from the pre-trained model"
    if not parallel.from_first(TRAINING.exists(resumed / "last")):
        raise CheckpointError(
            f"{resumed}: the training was stopped before its first checkpoint, and has changed the weights: {again}; "
            "Trainer(checkpoint_every=...) writes the first checkpoint earlier"
        )
    if untaught:
        raise CheckpointError(
            f"{resumed}: the teacher is the model from before the training, which has changed it: {again}, or give a "
            "copy from before as Trainer(teacher=...)"
        )
    return began
