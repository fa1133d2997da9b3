"""Stages of progressive shrinking: which dimensions are sampled for how many epochs, and at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from bnas.passes import SearchSpace
from bnas.passes.settings import Count, Dimension, Positive, Whole, settings
from bnas.passes.space.elasticity import DIMENSIONS
from bnas.runtime.errors import TrainingError

# Stages, and the order in which they may follow each other.

PROGRESSIVITY: tuple[Dimension, ...] = ("kernel", "depth", "width")
"""The order in which stages add dimensions (Cai et al. 2020, Once for All, section 3.3), as in BootstrapNAS."""


@settings(TrainingError)
class Stage:
    """Settings of one training stage, with the keys of BootstrapNAS's ``list_stage_descriptions``.

    Raises:
        TrainingError: names every setting that is out of its bounds.
    """

    train_dims: Annotated[tuple[Dimension, ...], Field(min_length=1)] | None = None
    """Dimensions to sample; all others stay maximal. By default all elastic ones."""
    epochs: Count = 1
    """Length of the stage in epochs."""
    depth_indicator: Count | None = None
    """Largest number of blocks to skip in each chain; by default any number."""
    width_indicator: Count | None = None
    """Number of widths of each layer to sample, counted from the largest; by default all."""
    reorg_weights: bool = False
    """Sort channels by importance before the stage, so that narrow layers keep the most important ones."""
    bn_adapt: bool = False
    """Recalibrate the shared BatchNorm statistics of the maximal sub-network before the stage."""
    init_lr: Positive | None = None
    """Learning rate at the start of the stage, which falls along a cosine; by default that of the recipe."""
    epochs_lr: Count | None = None
    """Epochs after which the cosine reaches 0; by default those of the stage."""
    sample_rate: Count = 1
    """Number of steps between two draws of random sub-networks."""

    @field_validator("epochs_lr")
    @classmethod
    def _not_before_the_end(cls, end: int | None, known: ValidationInfo) -> int | None:
        epochs = known.data.get("epochs")
        if end is not None and epochs is not None and end < epochs:
            raise ValueError(
                f"smaller than the {epochs} epochs of the stage, so the learning rate would be 0 before its end: "
                f"give at least {epochs}, or leave it out"
            )
        return end

    def space(self, space: SearchSpace) -> SearchSpace:
        """Return the part of `space` that this stage samples."""
        dims = DIMENSIONS if self.train_dims is None else self.train_dims
        trained = {dimension: dimension in dims for dimension in DIMENSIONS}
        widths, depth = self.width_indicator, self.depth_indicator
        return space.restrict(**trained, width_indicator=widths, depth_indicator=depth)


STAGES = (Stage(("depth", "kernel")), Stage(reorg_weights=True))
"""The default stages."""


def check_stages(
    stages: Sequence[Stage], available: Sequence[str], progressivity: Sequence[str] = PROGRESSIVITY
) -> None:
    """Raise `TrainingError` unless `stages` shrink progressively.

    The rules are those of BootstrapNAS's documentation. A stage trains only dimensions that the super-network has. A
    dimension stays in all later stages. New dimensions come in the order of `progressivity`, which must contain all
    available dimensions.
    """
    if not stages:
        raise TrainingError("stages is empty; give at least one stage")
    unordered = [name for name in available if name not in progressivity]
    if unordered:
        raise TrainingError(
            f"progressivity_of_elasticity: {', '.join(progressivity)} leaves out {unordered[0]!r}, which is elastic"
        )
    order = [name for name in progressivity if name in available]
    before: frozenset[str] = frozenset()
    for number, stage in enumerate(stages):
        dims = frozenset(order if stage.train_dims is None else stage.train_dims)
        for fault in _faults(dims, before, order):
            raise TrainingError(f"list_stage_descriptions[{number}].train_dims: {fault}")
        before = dims


def _faults(dims: frozenset[str], before: frozenset[str], order: Sequence[str]) -> Iterator[str]:
    for name in sorted(dims - set(order)):
        yield f"{name!r} is not elastic in this super-network; elastic are {', '.join(order) or 'none'}"
    for name in sorted(before - dims):
        yield f"{name!r} is missing, but the stage before trains it; later stages may only add dimensions"
    places = [order.index(name) for name in dims]
    for place in range(min(places, default=0), max(places, default=0)):
        if place not in places:
            yield f"{order[place]!r} is missing between its neighbours in {', '.join(order)}"


# Learning rates. Each is a function of the step, so a resumed training has the same rates as an uninterrupted one.

Rate = Callable[[int], float]
"""Returns the learning rate of a step; steps count from 0."""


@settings(TrainingError)
class CosineSchedule:
    """Settings of a learning-rate cosine with warm-up over the whole training (BootstrapNAS's ``lr_schedule.params``).

    The rate rises linearly to `base_lr` in the warm-up and falls to 0 at the end of the last epoch. (In BootstrapNAS it
    stays above 0 if there is a warm-up, and drifts by a step each epoch.)

    Raises:
        TrainingError: names every setting that is out of its bounds.
    """

    base_lr: Positive
    """Learning rate after the warm-up."""
    num_epochs: Count | None = None
    """Length in epochs, including the warm-up; by default that of all stages."""
    warmup_epochs: Whole = 0
    """Length of the warm-up in epochs; the rate rises linearly."""
    warmup_lr: Positive = 3.4e-4
    """Learning rate at the start of the warm-up."""

    @field_validator("warmup_epochs")
    @classmethod
    def _within_the_length(cls, warmup: int, known: ValidationInfo) -> int:
        length = known.data.get("num_epochs")
        if length is not None and length <= warmup:
            raise ValueError(f"must be less than num_epochs, which is {length}; shorten the warm-up")
        return warmup

    def rate(self, epochs: int, steps_per_epoch: int) -> Rate:
        """Return the learning rate of each step of `epochs` epochs."""
        length = self.num_epochs or epochs
        if length < epochs or length <= self.warmup_epochs:
            least = max(epochs, self.warmup_epochs + 1)
            raise TrainingError(
                f"lr_schedule ends after {length} epochs ({self.warmup_epochs} of warm-up), but the stages have "
                f"{epochs} epochs: set its num_epochs to at least {least}"
            )
        warm, end = self.warmup_epochs * steps_per_epoch, length * steps_per_epoch

        def rate(step: int) -> float:
            if step < warm:
                return self.warmup_lr + (step + 1) / warm * (self.base_lr - self.warmup_lr)
            return _cosine(self.base_lr, step - warm, end - warm)

        return rate


def rate_of(stages: Sequence[Stage], steps_per_epoch: int, default: float, schedule: CosineSchedule | None) -> Rate:
    """Return the learning rate as a function of the step: that of `schedule`, or one cosine for each stage.

    Raises:
        TrainingError: A stage has ``init_lr`` or ``epochs_lr`` although there is a schedule for the whole training.
    """
    if schedule is not None:
        for number, stage in enumerate(stages):
            for key in ("init_lr", "epochs_lr"):
                if getattr(stage, key) is not None:
                    raise TrainingError(
                        f"list_stage_descriptions[{number}].{key} contradicts lr_schedule; give only one of them"
                    )
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
