"""Knowledge distillation: a sub-network learns from the outputs of a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from bnas.passes.frontend.structure import Attribute, leaves_of
from bnas.passes.settings import NotNegative, Positive, settings

from .errors import TrainingError


@settings(TrainingError)
class Distillation:
    """What a sub-network learns beside, or instead of, the targets.

    Raises:
        TrainingError: names every setting that is out of its bounds.
    """

    teacher: Literal["maximal", "original"] = "maximal"
    """"maximal": the others learn from its outputs in the same step (in-place distillation, Yu et al. 2020, BigNAS,
    section 3.1). "original": all learn from a frozen copy of the model as it was, in evaluation mode."""
    type: Literal["softmax", "mse"] = "softmax"
    """"softmax": cross-entropy against the softmax over axis 1 (Hinton et al. 2015). "mse": mean squared error."""
    scale: Positive = 1.0
    """Factor of the distillation loss."""
    temperature: Positive = 1.0
    """Of the softmax; the loss is multiplied by its square, so that gradients keep their size."""
    hard: NotNegative = 0.0
    """Factor of the loss against the targets beside it; BootstrapNAS adds the two, which is 1."""

    @field_validator("temperature")
    @classmethod
    def _of_softmax(cls, temperature: float, known: ValidationInfo) -> float:
        if known.data.get("type") == "mse" and temperature != 1:
            raise ValueError("temperature belongs to the type softmax; mse has none")
        return temperature

    def loss(self, outputs: Any, teacher: Any) -> Tensor:
        """The distillation loss of `outputs`, scaled; nested outputs are matched by place, and summed over.

        Raises:
            TrainingError: outputs and teacher differ in structure or shape; names the place.
        """
        mine, theirs = dict(_tensors(outputs, "output")), dict(_tensors(teacher, "output"))
        for place in sorted(mine.keys() ^ theirs.keys()):
            raise TrainingError(f"distillation: {place} is not among the outputs of both teacher and sub-network")
        if not mine:
            raise TrainingError("distillation: there is no floating-point tensor among the outputs")
        return self.scale * sum((self._distance(place, mine[place], theirs[place]) for place in mine), start=_ZERO)

    def _distance(self, place: str, output: Tensor, target: Tensor) -> Tensor:
        output, target = output.float(), target.detach().float()
        if output.shape != target.shape:
            shapes = f"{tuple(output.shape)} and the teacher's {tuple(target.shape)}"
            raise TrainingError(f"distillation: {place} has shape {shapes}; they must agree")
        if self.type == "mse":
            return F.mse_loss(output, target)
        if output.ndim < 2:
            raise TrainingError(f"distillation: {place} has one axis; softmax needs (batch, classes, ...): take mse")
        soft = (target / self.temperature).softmax(1)
        return F.cross_entropy(output / self.temperature, soft) * self.temperature**2


_ZERO: Any = 0.0


def _tensors(outputs: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors among nested outputs, by place."""
    for path, leaf in leaves_of(outputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim:  # a scalar is a loss of the model's own
            steps = [f".{step.name}" if isinstance(step, Attribute) else f"[{step!r}]" for step in path]
            yield place + "".join(steps), leaf
