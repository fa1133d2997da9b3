"""Stages of progressive shrinking: what is sampled for how many epochs, and how one stage may follow another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from bnas.passes import SearchSpace
from bnas.passes.elasticity import DIMENSIONS
from bnas.passes.settings import Count, Dimension, Positive, settings

from .errors import TrainingError

PROGRESSIVITY: tuple[Dimension, ...] = ("kernel", "depth", "width")
"""The order in which stages add dimensions (Cai et al. 2020, Once for All, section 3.3), as in BootstrapNAS."""


@settings(TrainingError)
class Stage:
    """A part of the training; the keys are those of BootstrapNAS's ``list_stage_descriptions``.

    Raises:
        TrainingError: names every setting that is out of its bounds.
    """

    train_dims: Annotated[tuple[Dimension, ...], Field(min_length=1)] | None = None
    """Dimensions that are sampled, the others stay maximal; by default all that are elastic."""
    epochs: Count = 1
    """Length of the stage."""
    depth_indicator: Count | None = None
    """Skip at most so many blocks of each chain; by default any number."""
    width_indicator: Count | None = None
    """Sample only the so many largest widths of each; by default all."""
    reorg_weights: bool = False
    """Bring important entries to the front before the stage."""
    bn_adapt: bool = False
    """Recalibrate the shared BatchNorm statistics of the maximal sub-network before the stage."""
    init_lr: Positive | None = None
    """Learning rate at the start of the stage, which falls along a cosine; by default that of the recipe."""
    epochs_lr: Count | None = None
    """The cosine reaches 0 after so many epochs; by default those of the stage."""
    sample_rate: Count = 1
    """Draw new random sub-networks every so many steps of the stage."""

    @field_validator("epochs_lr")
    @classmethod
    def _not_before_the_end(cls, end: int | None, known: ValidationInfo) -> int | None:
        epochs = known.data.get("epochs")
        if end is not None and epochs is not None and end < epochs:
            raise ValueError(f"smaller than the {epochs} epochs of the stage; the rate would be 0 for the rest of them")
        return end

    def space(self, space: SearchSpace) -> SearchSpace:
        """The part of `space` that this stage samples."""
        dims = DIMENSIONS if self.train_dims is None else self.train_dims
        trained = {dimension: dimension in dims for dimension in DIMENSIONS}
        widths, depth = self.width_indicator, self.depth_indicator
        return space.restrict(**trained, width_indicator=widths, depth_indicator=depth)


STAGES = (Stage(("depth", "kernel")), Stage(reorg_weights=True))
"""What is trained where nothing else is said."""


def check_stages(
    stages: Sequence[Stage], available: Sequence[str], progressivity: Sequence[str] = PROGRESSIVITY
) -> None:
    """Raise `TrainingError` unless `stages` shrink progressively.

    The rules are those that BootstrapNAS documents: a stage trains only dimensions that the super-network has; a
    dimension that a stage trains stays in all later ones; those that are trained follow one another in the order of
    `progressivity`, which names all that are available.
    """
    if not stages:
        raise TrainingError("there is no stage; give at least one")
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
        yield f"{name!r} leaves, which the stage before trains; later stages only add dimensions"
    places = [order.index(name) for name in dims]
    for place in range(min(places, default=0), max(places, default=0)):
        if place not in places:
            yield f"{order[place]!r} is missed between its neighbours in {', '.join(order)}"
