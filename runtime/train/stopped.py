"""A training that was stopped goes on in the same process, such as a notebook, with the model that it has changed."""

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
"""Digests of the weights that trainings of this process began with, by their directory and the weights they left."""


@contextmanager
def remembered(directory: Path | None, model: nn.Module, start: str) -> Iterator[None]:
    """A training in `directory` that began with weights of the digest `start`; it may end by an error."""
    try:
        yield
    finally:
        if directory is not None:
            with suppress(RuntimeError):  # of a device that has failed: nothing goes on there
                BEGAN[directory.resolve(), digest_of(shared_tensors(model))] = start


def beginning(model: nn.Module, resumed: Path | None, untaught: bool) -> str:
    """The digest of the weights of `model`, or of those that the training in the directory `resumed` began with.

    Everything that a training changes is in its checkpoint. What only the weights before it can give is refused: the
    first steps, where there is no checkpoint yet, and a teacher that is a copy of the model (`untaught`).

    Raises:
        CheckpointError: says what is missing, and what to do.
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
