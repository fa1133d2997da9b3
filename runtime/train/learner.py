"""One step of training: forward and backward of its sub-networks, gradients in the shared parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes import Subnet
from bnas.passes.frontend.ir import as_program_call
from bnas.runtime.errors import TrainingError
from bnas.runtime.evaluate.evaluation import Batch
from bnas.runtime.feed import OF_THE_PROCESS, about_classes, about_probabilities, remedy, told
from bnas.runtime.nested import (
    as_batch,
    batch_size,
    described,
    device_of,
    inputs_of,
    laid_out,
    placed,
    scores_of,
    tensors_in,
)
from bnas.runtime.recomputation import in_segments
from bnas.runtime.supernetwork import SuperNetwork

from .imitation import Imitation, as_targets, imitation
from .recipe import Distillation, Recipe

Criterion = Callable[[Any, Any], Tensor]
"""The loss of outputs against targets: a mean over the batch."""

OWN_LOSS = "pass your own criterion (criterion=..., or the key `criterion` of a configuration file)"


@dataclass(frozen=True)
class Moment:
    """The position of a batch in the training, for error messages; all numbers count from 0."""

    step: int = 0
    """Of the whole training."""
    epoch: int = 0
    """Of the whole training."""
    batch: int = 0
    """Of the epoch."""

    def __str__(self) -> str:
        return f"step {self.step} (epoch {self.epoch}, batch {self.batch})"

    def after(self, batches: int) -> Moment:
        """Return the moment this many batches later in the same step."""
        return replace(self, batch=self.batch + batches)


class Learner:
    """Computes and accumulates the gradients of a step.

    Args:
        supernet: The super-network, in training mode.
        recipe: The recipe, of which distillation, label smoothing and precision are used.
        criterion: The loss; by default cross-entropy against class numbers.
        original: The teacher in evaluation mode, if the recipe needs it.
        layout: Memory layout of images, a key of `LAYOUTS`.
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
        self._own_criterion = criterion is None
        self.criterion = criterion or self._cross_entropy
        self.device = device_of(supernet)
        self._takes = inputs_of(supernet)
        self._imitation: Imitation | None = None
        self._are_probabilities = False

    def accumulate(self, subnets: Sequence[Subnet], group: Sequence[Batch], moment: Moment) -> list[float]:
        """Run the backward pass of every sub-network on every batch of `group`; return the loss of each sub-network.

        `moment` belongs to the first batch. Losses are means over all samples of the group, so several batches give the
        gradients of one large batch. (BatchNorm still sees each batch separately.)

        Raises:
            TrainingError: A batch does not fit the model or the criterion, or a loss is NaN, infinite or cannot be
                trained with. The message names the step, the epoch and the batch.
        """
        sizes = [batch_size(batch) for batch in group]
        losses = torch.zeros(len(subnets), dtype=torch.float64)
        for number, (size, batch) in enumerate(zip(sizes, group, strict=True)):
            losses += self._batch(subnets, batch, size / sum(sizes), moment.after(number))
        found: list[float] = losses.tolist()
        for subnet, loss in zip(subnets, found, strict=True):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at {moment}, of sub-network {subnet.to_json()}{_not_finite(group, moment)}; "
                    "lower the learning rate, set clip_norm, or clean the inputs"
                )
        return found

    def _batch(self, subnets: Sequence[Subnet], batch: Batch, share: float, moment: Moment) -> Tensor:
        given, wanted = as_batch(batch, self._takes)
        inputs, targets = placed(laid_out(given, self.layout), self.device), placed(wanted, self.device)
        teacher, in_place, losses = self._taught(inputs, moment), self._in_place, []
        for subnet in subnets:
            outputs = self._forward(self._program(subnet), inputs, moment)
            loss = self._loss(outputs, targets, teacher, moment) * share
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            if in_place and teacher is None:  # the teacher is the first sub-network, the maximal one
                teacher = outputs
        return torch.stack(losses).cpu().double()  # summed on the CPU, since MPS has no double precision

    def _program(self, subnet: Subnet) -> Callable[..., Any]:
        program = self.supernet.program(subnet)
        return in_segments(program) if self.recipe.checkpoint_activations else program

    @property
    def _in_place(self) -> bool:
        return self.recipe.distillation is not None and self.recipe.distillation.teacher == "maximal"

    def _taught(self, inputs: Any, moment: Moment) -> Any:
        """Return the outputs of the original, if it is the teacher."""
        if self.original is None:
            return None
        with torch.no_grad():
            return self._forward(self.original, inputs, moment)

    def _forward(self, module: Callable[..., Any], inputs: Any, moment: Moment) -> Any:
        tensors, named = as_program_call(inputs)
        half = self.recipe.precision == "bfloat16"
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                return module(*tensors, **named)
        except OF_THE_PROCESS:
            raise
        except Exception as error:
            raise TrainingError(
                f"{moment}: a batch of inputs {described(inputs)} does not fit the model, which was traced with "
                f"{described(self.supernet.example_inputs)}: {told(error)}{remedy(error, inputs, self.supernet.model)}"
            ) from error

    def _loss(self, outputs: Any, targets: Any, teacher: Any, moment: Moment) -> Tensor:
        distillation: Distillation | None = self.recipe.distillation
        if teacher is None or distillation is None:
            return self._hard(outputs, targets, moment)
        loss = self._soft(outputs, targets, teacher, moment)
        if loss is None:
            return self._hard(outputs, targets, moment)
        return loss + distillation.hard * self._hard(outputs, targets, moment) if distillation.hard else loss

    def _soft(self, outputs: Any, targets: Any, teacher: Any, moment: Moment) -> Tensor | None:
        """Return the loss against the teacher; None if the user's criterion does not say how to compare outputs."""
        distillation = self.recipe.distillation
        assert distillation is not None
        if self._own_criterion or distillation.type == "mse":
            return distillation.loss(outputs, teacher)
        if self._imitation is None:
            self._imitation = imitation(self.criterion, teacher, targets)
        found = self._imitation
        if found.class_axes is not None:
            return distillation.loss(outputs, teacher, found.class_axes)
        wanted = as_targets(teacher, targets)
        if wanted is None or found.as_targets is None:
            return None
        return distillation.scale * self._hard(outputs, found.as_targets(wanted), moment)

    def measured(self, module: nn.Module, batch: Batch, moment: Moment) -> float:
        """Return the loss of `module` on a batch against the targets only, without training.

        Raises:
            TrainingError: The batch does not fit the module or the criterion; the message names the batch.
        """
        given, wanted = as_batch(batch, self._takes)
        inputs, targets = placed(laid_out(given, self.layout), self.device), placed(wanted, self.device)
        with torch.no_grad():
            return float(self._criterion(self._forward(module, inputs, moment), targets, moment))

    def _hard(self, outputs: Any, targets: Any, moment: Moment) -> Tensor:
        loss = self._criterion(outputs, targets, moment)
        if fault := _about_loss(loss):
            raise TrainingError(
                f"{moment}: the criterion, on outputs {described(outputs)} and targets {described(targets)}, {fault}"
            )
        return loss  # type: ignore[no-any-return]

    def _criterion(self, outputs: Any, targets: Any, moment: Moment) -> Any:
        try:
            return self.criterion(outputs, targets)
        except OF_THE_PROCESS:
            raise
        except Exception as error:
            why = about_classes(scores_of(outputs), targets) if self._own_criterion else ""
            raise TrainingError(
                f"{moment}: the criterion fails on outputs {described(outputs)} and targets {described(targets)}: "
                f"{told(error)}{why and f'; {why}'}"
            ) from error

    def _cross_entropy(self, outputs: Any, targets: Any) -> Tensor:
        scores = scores_of(outputs)
        if not isinstance(scores, Tensor):
            raise TypeError(f"cross-entropy needs a tensor; {OWN_LOSS}")
        if scores.ndim > 1 and scores.shape[1] == 1:
            raise TypeError(f"cross-entropy over one class is always 0: {OWN_LOSS}")
        if not isinstance(targets, Tensor):
            given = "" if targets is None else f" in a tensor, not {type(targets).__name__}"
            raise TypeError(
                f"cross-entropy needs targets{given}: in a batch that is a dict, give them the key 'labels'"
            )
        if targets.is_floating_point() and not self._are_probabilities:  # once: it reads numbers
            if why := about_probabilities(scores, targets):
                raise TypeError(f"{why}: {OWN_LOSS}")
            self._are_probabilities = True
        return F.cross_entropy(scores.float(), targets, label_smoothing=self.recipe.label_smoothing)


def _about_loss(loss: Any) -> str:
    """Return why the result of a criterion cannot be trained with; empty if it can."""
    if not isinstance(loss, Tensor):
        return f"returns {described(loss)}: it must return a tensor with one number that has a gradient"
    if loss.ndim:
        return f"returns a tensor of shape {tuple(loss.shape)}: it must return one number, such as loss.mean()"
    if not loss.is_floating_point():
        return f"returns {described(loss)}: it must return a floating-point number"
    if not loss.requires_grad:
        return (
            "returns a number without a gradient: compute it from the outputs, without .detach() or .item(), and "
            "set requires_grad=True for at least one parameter"
        )
    return ""


def _not_finite(group: Sequence[Batch], moment: Moment) -> str:
    """Return a text about the batches of a step that contain NaN or infinity."""
    bad = [
        str(moment.after(number).batch)
        for number, batch in enumerate(group)
        if any(one.is_floating_point() and not bool(torch.isfinite(one).all()) for one in tensors_in(batch))
    ]
    return f" (NaN or inf in the data of batch {', '.join(bad)})" if bad else ""
