"""Progressive shrinking: stage by stage, more of the search space is trained on the shared weights.

Every step trains the maximal and random sub-networks (the sandwich rule of Yu et al. 2020, BigNAS, section 3.1,
without the minimal one), the random ones by distillation: from the maximal's logits of the same step, or from a
frozen copy of the original.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes import BnasError, SearchSpace, Subnet
from bnas.passes.elasticity import DIMENSIONS

from .evaluation import Loader
from .supernetwork import SuperNetwork

TEACHERS = ("maximal", "original")


class TrainingError(BnasError):
    """Training cannot go on: contradicting settings, no data, or a loss that is no number."""


@dataclass(frozen=True)
class Stage:
    """A part of the training."""

    train_dims: tuple[str, ...] = DIMENSIONS
    """Dimensions that are sampled; the others stay maximal."""
    epochs: int = 1
    init_lr: float = 0.01
    """Learning rate at the start of the stage; it falls to 0 along a cosine."""
    width_indicator: int | None = None
    """Sample only the so many largest widths of each; all if None."""
    depth_indicator: int | None = None
    """Skip at most so many blocks of each chain; any number if None."""
    reorg_weights: bool = False
    """Reorder by importance before the stage."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        unknown = sorted(set(self.train_dims) - set(DIMENSIONS))
        if unknown:
            raise TrainingError(f"train_dims: {unknown[0]!r} is not one of {', '.join(DIMENSIONS)}")
        if self.epochs < 1:
            raise TrainingError(f"epochs: {self.epochs} is smaller than 1")
        if not 0 < self.init_lr < math.inf:
            raise TrainingError(f"init_lr: {self.init_lr} is not a positive number")
        for name, number in (("width_indicator", self.width_indicator), ("depth_indicator", self.depth_indicator)):
            if number is not None and number < 1:
                raise TrainingError(f"{name}: {number} is smaller than 1")

    def space(self, space: SearchSpace) -> SearchSpace:
        """The part of `space` that this stage samples."""
        trained = {dimension: dimension in self.train_dims for dimension in DIMENSIONS}
        widths, depth = self.width_indicator, self.depth_indicator
        return space.restrict(**trained, width_indicator=widths, depth_indicator=depth)


@dataclass(frozen=True)
class Progress:
    """Where the training is, after a step."""

    stage: int
    epoch: int
    """Epoch of the stage, from 0."""
    step: int
    """Step of the whole training, from 0."""
    steps: int
    """Steps of the whole training."""
    loss: float
    """Loss of the maximal sub-network."""


class Trainer:
    """Trains a super-network on batches of (inputs, class numbers); its parameters change in place.

    Args:
        supernet: the super-network; it is put in training mode, and back.
        stages: what to train, in order.
        momentum, weight_decay, nesterov: of SGD, as in `torch.optim.SGD`.
        teacher: "maximal" (in-place distillation) or "original" (a frozen copy, for the maximal too).
        subnets_per_step: random sub-networks beside the maximal.
        seed: fixes the sub-networks; the data's order is the loader's.
        on_step: called after every step.
    """

    def __init__(
        self,
        supernet: SuperNetwork,
        stages: Sequence[Stage],
        *,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        nesterov: bool = True,
        teacher: str = "maximal",
        subnets_per_step: int = 1,
        seed: int = 0,
        on_step: Callable[[Progress], None] | None = None,
    ) -> None:
        if teacher not in TEACHERS:
            raise TrainingError(f"teacher: {teacher!r} is not one of {', '.join(TEACHERS)}")
        if subnets_per_step < 1:
            raise TrainingError(f"subnets_per_step: {subnets_per_step} is smaller than 1")
        self.supernet, self.stages, self.teacher = supernet, tuple(stages), teacher
        self.options: dict[str, Any] = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        self.subnets_per_step, self.on_step = subnets_per_step, on_step
        self.generator = np.random.default_rng(seed)
        self.step = 0

    def fit(self, loader: Loader) -> None:
        """Train through all stages; `loader` is iterated once an epoch.

        Raises:
            TrainingError: the loader is empty, or a loss is NaN or inf (names the step and the sub-network).
        """
        if not len(loader):
            raise TrainingError("the training loader is empty")
        frozen = copy.deepcopy(self.supernet.model).eval() if self.teacher == "original" else None
        mode = self.supernet.training
        self.supernet.train()
        try:
            for number, stage in enumerate(self.stages):
                self._fit_stage(number, stage, loader, frozen)
        finally:
            self.supernet.train(mode)

    def _fit_stage(self, number: int, stage: Stage, loader: Loader, frozen: nn.Module | None) -> None:
        if stage.reorg_weights:
            self.supernet.reorder()
        optimizer = torch.optim.SGD(self.supernet.parameters(), lr=stage.init_lr, **self.options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, stage.epochs * len(loader))
        steps = sum(one.epochs for one in self.stages) * len(loader)
        space = stage.space(self.supernet.space)
        for epoch in range(stage.epochs):
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = self._accumulate(space, inputs, targets, frozen)
                optimizer.step()
                schedule.step()
                if self.on_step is not None:
                    self.on_step(Progress(number, epoch, self.step, steps, loss))
                self.step += 1

    def _accumulate(self, space: SearchSpace, inputs: Tensor, targets: Any, frozen: nn.Module | None) -> float:
        """Backward for the maximal and the random sub-networks; returns the maximal's loss."""
        soft = None
        if frozen is not None:
            with torch.no_grad():
                soft = frozen(inputs).softmax(1)
        maximal = self.supernet.space.maximal()
        logits = self.supernet.program(maximal)(inputs)
        loss = self._backward(F.cross_entropy(logits, targets if soft is None else soft), maximal)
        soft = logits.detach().softmax(1) if soft is None else soft
        for subnet in self._random(space):
            self._backward(F.cross_entropy(self.supernet.program(subnet)(inputs), soft), subnet)
        return loss

    def _random(self, space: SearchSpace) -> Iterator[Subnet]:
        return (space.sample(self.generator) for _ in range(self.subnets_per_step))

    def _backward(self, loss: Tensor, subnet: Subnet) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.step}, of sub-network {subnet.to_json()}; "
                "a lower init_lr or cleaner inputs may help"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        return value
