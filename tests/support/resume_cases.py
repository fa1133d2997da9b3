"""A training in a process of its own, which may kill itself; child processes import this file."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from stream_cases import SAMPLES, loader
from torch.utils.data import DataLoader, TensorDataset
from training_cases import batches, supernet

from bnas.runtime import Recipe, Stage, Trainer

STAGES = (Stage(("depth",), 2, sample_rate=2), Stage(epochs=2, reorg_weights=True, bn_adapt=True))
RECIPE = Recipe(
    sampling="attentive", ema_decay=0.8, memory_format="contiguous", num_bn_adaptation_samples=16, learning_rate=0.05
)
STEPS = 20

supernet()  # imports what is imported late, so that a process that is forked from one with this module begins at once


def shuffled(own_generator: bool = True) -> DataLoader[Any]:
    """Five batches in an order that a generator of its own, or PyTorch's global one, gives."""
    ((x, y),) = batches(1, 20)
    generator = torch.Generator().manual_seed(5) if own_generator else None
    return DataLoader(TensorDataset(x, y), 4, shuffle=True, generator=generator)


def killed_at_step(count: int) -> Any:
    """For ``on_step``: the process ends after so many steps of its own."""
    left = iter(range(count - 1, -1, -1))
    return lambda _: next(left) or os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[func-returns-value]


def kill_in_write(count: int) -> None:
    """The process ends in the so manieth write of a file: all is in the temporary file, nothing is renamed."""
    left = iter(range(count - 1, -1, -1))
    flush = os.fsync

    def flush_or_end(file: int) -> None:
        flush(file)
        if not next(left):
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = flush_or_end  # type: ignore[assignment]


def disturb(seed: int) -> None:
    """Start all global generators somewhere else."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def train(directory: Path, kill: tuple[str, int] | None, seed: int, shards: Path | None = None) -> None:
    """Go on with the training in `directory`; what it ends with is written to ``final.safetensors``.

    It trains on what `shuffled` gives, or on a stream from a folder of shards.
    """
    torch.set_num_threads(1)
    disturb(seed)
    net = supernet(dropout=0.4)
    torch.manual_seed(seed)
    recipe = RECIPE if shards is None else replace(RECIPE, train_steps=SAMPLES)
    trainer = Trainer(net, STAGES, recipe, directory=directory, checkpoint_every=2)
    if kill is not None and kill[0] == "step":
        trainer.on_step = killed_at_step(kill[1])
    elif kill is not None:
        kill_in_write(kill[1])
    data = shuffled() if shards is None else loader(shards, moved=True)
    trainer.fit(data, batches(1, seed=8), resume=True)
    final = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    safetensors.torch.save_file(final, directory / "final.safetensors")
