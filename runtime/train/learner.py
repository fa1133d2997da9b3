"""One step of training: forward and backward of its sub-networks, gradients in the shared parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes import Subnet
from bnas.passes.frontend.ir import as_program_call
from bnas.runtime.errors import TrainingError
from bnas.runtime.evaluate.evaluation import Batch
from bnas.runtime.nested import as_batch, batch_size, described, device_of, inputs_of, laid_out, placed, scores_of
from bnas.runtime.supernetwork import SuperNetwork

from .recipe import Distillation, Recipe

Criterion = Callable[[Any, Any], Tensor]
"""The loss of outputs against targets: a mean over the batch."""


class Learner:
    """Accumulates the gradients of a step.

    Args:
        supernet: in training mode.
        recipe: distillation, label smoothing, precision.
        criterion: by default cross-entropy against class numbers.
        original: the teacher, where the recipe asks for it; in evaluation mode.
        layout: of images, a key of `LAYOUTS`.
    """

    def __init__(
        self,
        supernet: SuperNetwork,
        recipe: Recipe,
        criterion: Criterion | None = None,
        original: nn.Module | None = None,
        layout: str = "contiguous",
    ) -> None:
        self.supernet, self.recipe, self.original, self.layout = supernet, recipe, original, layout
        self.criterion = criterion or self._cross_entropy
        self.device = device_of(supernet)
        self._takes = inputs_of(supernet)

    def accumulate(self, subnets: Sequence[Subnet], group: Sequence[Batch], step: int) -> list[float]:
        """Backward for every sub-network on every batch of `group`; returns their losses.

        Losses are means over all samples of the group: several batches give the gradients of one large batch, but for
        BatchNorm, which sees each by itself.

        Raises:
            TrainingError: a batch does not fit the model, or a loss is NaN or inf; names the step.
        """
        sizes = [batch_size(batch) for batch in group]
        losses = torch.zeros(len(subnets), dtype=torch.float64)
        for size, batch in zip(sizes, group, strict=True):
            losses += self._batch(subnets, batch, size / sum(sizes), step)
        found: list[float] = losses.tolist()
        for subnet, loss in zip(subnets, found, strict=True):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {step}, of sub-network {subnet.to_json()}; "
                    "a lower learning rate, clip_norm or cleaner inputs may help"
                )
        return found

    def _batch(self, subnets: Sequence[Subnet], batch: Batch, share: float, step: int) -> Tensor:
        given, wanted = as_batch(batch, self._takes)
        inputs, targets = placed(laid_out(given, self.layout), self.device), placed(wanted, self.device)
        teacher, in_place, losses = self._taught(inputs), self._in_place, []
        for subnet in subnets:
            outputs = self._forward(self.supernet.program(subnet), inputs, step)
            loss = self._loss(outputs, targets, teacher, step) * share
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            if in_place and teacher is None:  # the first sub-network, which is the maximal
                teacher = outputs
        return torch.stack(losses).cpu().double()  # not on the device: MPS has no double precision

    @property
    def _in_place(self) -> bool:
        return self.recipe.distillation is not None and self.recipe.distillation.teacher == "maximal"

    def _taught(self, inputs: Any) -> Any:
        """The outputs of the original, where it is the teacher."""
        if self.original is None:
            return None
        with torch.no_grad():
            return self._forward(self.original, inputs, 0)

    def _forward(self, module: nn.Module, inputs: Any, step: int) -> Any:
        tensors, named = as_program_call(inputs)
        half = self.recipe.precision == "bfloat16"
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                return module(*tensors, **named)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise TrainingError(
                f"step {step}: a batch of inputs {described(inputs)} does not fit the model, which was traced with "
                f"{described(self.supernet.example_inputs)}: {error}"
            ) from error

    def _loss(self, outputs: Any, targets: Any, teacher: Any, step: int) -> Tensor:
        distillation: Distillation | None = self.recipe.distillation
        if teacher is None or distillation is None:
            return self._hard(outputs, targets, step)
        loss = distillation.loss(outputs, teacher)
        return loss + distillation.hard * self._hard(outputs, targets, step) if distillation.hard else loss

    def _hard(self, outputs: Any, targets: Any, step: int) -> Tensor:
        try:
            return self.criterion(outputs, targets)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise TrainingError(
                f"step {step}: the criterion fails on outputs {described(outputs)} and targets {described(targets)}: "
                f"{error}"
            ) from error

    def _cross_entropy(self, outputs: Any, targets: Any) -> Tensor:
        scores = scores_of(outputs)
        if not isinstance(scores, Tensor):
            raise TypeError("cross-entropy needs a tensor; give a criterion of your own (criterion=...)")
        if not isinstance(targets, Tensor):
            raise TypeError("cross-entropy needs targets: in a batch that is a dict they have the key 'labels'")
        return F.cross_entropy(scores.float(), targets, label_smoothing=self.recipe.label_smoothing)
