"""Measure the duration of a training step on the real data, and compute how many steps fit into a time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.optim import Optimizer

from bnas.runtime.errors import TrainingError
from bnas.runtime.evaluate.evaluation import Loader
from bnas.runtime.nested import batch_size
from bnas.runtime.storage.checkpoint import matrix_tensors, shared_tensors
from bnas.runtime.supernetwork import SuperNetwork

from . import random_state
from .averages import put_back
from .batches import Batches
from .recipe import Recipe
from .trainer import Trainer

Clock = Callable[[], float]
"""Function that returns seconds, such as `time.perf_counter` (wall clock) or `time.process_time` (CPU)."""
LEAST = 3
"""Least number of timed steps, after a first step that is not counted."""


def step_seconds(trainer: Trainer, loader: Loader, seconds: float = 3.0, clock: Clock = time.perf_counter) -> float:
    """Return the mean duration of a training step, including the loading of its batch.

    Some steps are made and undone: weights, statistics, the optimizer and all random generators are restored.

    Args:
        trainer: The trainer. Nothing is written to its directory, and its callbacks are not called.
        loader: The training data.
        seconds: Duration of the measurement; at least four steps, or all steps if the training has fewer.
        clock: The clock to use.

    Raises:
        TrainingError: As `Trainer.fit`.
        BatchError: As `Trainer.fit`.
    """
    with _undone(trainer), random_state.undisturbed(loader):
        times = [clock()]
        for _ in trainer.steps(loader):
            times.append(clock())
            if len(times) > LEAST + 1 and times[-1] - times[1] >= seconds:
                break
    counted = times[1:] if len(times) > 2 else times
    return (counted[-1] - counted[0]) / (len(counted) - 1)


def steps_within(
    seconds: float, trainer: Trainer, loader: Loader, measure: float = 3.0, clock: Clock = time.perf_counter
) -> int:
    """Return how many training steps fit into a time; at least 1. `Epochs.of` turns them into epochs.

    `measure` and `clock` are those of `step_seconds`.
    """
    return max(1, int(seconds / step_seconds(trainer, loader, measure, clock)))


@contextmanager
def _undone(trainer: Trainer) -> Iterator[None]:
    """Restore afterwards everything that a training changes."""
    supernet, optimizer = trainer.supernet, trainer.optimizer
    state = copy.deepcopy(optimizer.state_dict()) if isinstance(optimizer, Optimizer) else None
    try:
        with put_back(_tensors(supernet)):
            yield
    finally:
        for parameter in supernet.parameters():
            parameter.grad = None
        if isinstance(optimizer, Optimizer) and state is not None:
            optimizer.load_state_dict(state)


def _tensors(supernet: SuperNetwork) -> dict[str, torch.Tensor]:
    return shared_tensors(supernet.model) | matrix_tensors(supernet.kernel_matrices)


# Dividing a number of steps into epochs of stages.

PARTS = 8
"""Number of parts of the training over which stages are divided if their lengths have no simple ratio."""


@dataclass(frozen=True)
class Epochs:
    """A number of training steps, divided into epochs of equal length."""

    stages: tuple[int, ...]
    """Epochs of each stage."""
    steps: int
    """Steps of each epoch."""
    train_steps: int
    """Samples of each epoch: `Recipe.train_steps`."""

    @property
    def total(self) -> int:
        """Epochs of all stages."""
        return sum(self.stages)

    def shortened(self, recipe: Recipe) -> Recipe:
        """Return the recipe for this number of epochs and of samples per epoch."""
        schedule = recipe.lr_schedule
        if schedule is not None:
            warmup = min(schedule.warmup_epochs, self.total - 1)
            schedule = replace(schedule, num_epochs=None, warmup_epochs=warmup)
        return replace(recipe, train_steps=self.train_steps, lr_schedule=schedule)

    @classmethod
    def of(cls, steps: int, loader: Loader, stages: Sequence[int] = (1,), accumulate: int = 1) -> Epochs:
        """Return epochs with `steps` steps in total, or slightly fewer so that all epochs have equal lengths.

        Args:
            steps: Number of optimizer steps; at least one for each stage.
            loader: The training data. If they have a length, no epoch is longer.
            stages: Epochs of each stage; only the proportions matter.
            accumulate: Number of batches in a step, as in the recipe.

        Raises:
            TrainingError: There are fewer steps than stages.
        """
        batches = Batches(loader, accumulate)
        epochs, each = spread(steps, stages, batches.longest or steps)
        return cls(epochs, each, each * accumulate * batch_size(batches.first()))


def spread(steps: int, weights: Sequence[int], per_epoch: int) -> tuple[tuple[int, ...], int]:
    """Epochs of each stage in the proportion of `weights`, and the steps of an epoch, at most `per_epoch`.

    Raises:
        TrainingError: there are fewer steps than stages.
    """
    if steps < len(weights):
        raise TrainingError(
            f"{steps} steps are too few for {len(weights)} stages: each stage needs at least one: "
            "give more steps or fewer stages"
        )
    common = math.gcd(*weights)
    parts = [one // common for one in weights]
    if sum(parts) > PARTS:
        parts = [max(1, round(PARTS * one / sum(weights))) for one in weights]
    if steps < 2 * sum(parts):
        parts = [1] * len(weights)
    whole = steps / per_epoch / sum(parts)
    turns = {max(1, math.floor(whole)), max(1, math.ceil(whole))}  # full epochs, or a few more but shorter ones
    each = {one: min(per_epoch, steps // (one * sum(parts))) for one in turns}
    most = max(sorted(turns), key=lambda one: one * each[one])
    return tuple(most * one for one in parts), each[most]
