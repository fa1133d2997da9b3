"""Learning rates: a number for every step, so that a resumed run has those of the run that was not interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pydantic import ValidationInfo, field_validator

from bnas.passes.settings import Count, Positive, Whole, settings

from .errors import TrainingError
from .stage import Stage

Rate = Callable[[int], float]
"""The learning rate of a step, from 0."""


@settings(TrainingError)
class CosineSchedule:
    """One cosine with warm-up over the whole training: BootstrapNAS's ``lr_schedule.params``.

    The rate rises linearly to `base_lr` in the warm-up and falls to 0 at the end of the last epoch. (The peer's stays
    above 0 where there is a warm-up, and drifts by a step an epoch.)

    Raises:
        TrainingError: names every setting that is out of its bounds.
    """

    base_lr: Positive
    """The rate after the warm-up."""
    num_epochs: Count | None = None
    """Length, warm-up included; by default that of all stages."""
    warmup_epochs: Whole = 0
    """The rate rises linearly for so long."""
    warmup_lr: Positive = 3.4e-4
    """Where the warm-up starts."""

    @field_validator("warmup_epochs")
    @classmethod
    def _within_the_length(cls, warmup: int, known: ValidationInfo) -> int:
        length = known.data.get("num_epochs")
        if length is not None and length <= warmup:
            raise ValueError(f"must be less than num_epochs, which is {length}")
        return warmup

    def rate(self, epochs: int, steps_per_epoch: int) -> Rate:
        """The rate of each step of `epochs` epochs."""
        length = self.num_epochs or epochs
        if length < epochs or length <= self.warmup_epochs:
            raise TrainingError(
                f"lr_schedule ends after {length} epochs ({self.warmup_epochs} of warm-up); the stages have {epochs}"
            )
        warm, end = self.warmup_epochs * steps_per_epoch, length * steps_per_epoch

        def rate(step: int) -> float:
            if step < warm:
                return self.warmup_lr + (step + 1) / warm * (self.base_lr - self.warmup_lr)
            return _cosine(self.base_lr, step - warm, end - warm)

        return rate


def rate_of(stages: Sequence[Stage], steps_per_epoch: int, default: float, schedule: CosineSchedule | None) -> Rate:
    """The rate of every step of `stages`: that of `schedule`, or a cosine for each stage.

    Raises:
        TrainingError: a stage has an ``init_lr`` or ``epochs_lr`` beside a schedule for the whole training.
    """
    if schedule is not None:
        for number, stage in enumerate(stages):
            for key in ("init_lr", "epochs_lr"):
                if getattr(stage, key) is not None:
                    raise TrainingError(f"list_stage_descriptions[{number}].{key} contradicts lr_schedule; give one")
        return schedule.rate(sum(stage.epochs for stage in stages), steps_per_epoch)

    def rate(step: int) -> float:
        for stage in stages:
            if step < stage.epochs * steps_per_epoch:
                break
            step -= stage.epochs * steps_per_epoch
        return _cosine(stage.init_lr or default, step, (stage.epochs_lr or stage.epochs) * steps_per_epoch)

    return rate


def _cosine(start: float, step: int, steps: int) -> float:
    return start * 0.5 * (1 + math.cos(math.pi * step / steps))
