"""Fine-tuning of a chosen sub-network: as a standalone module, or in the shared weights of its super-network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import field_validator
from torch import nn
from torch.fx import GraphModule

from bnas.passes import Subnet
from bnas.passes.frontend.copies import deep_copy
from bnas.passes.settings import Count, NotNegative, Positive, settings
from bnas.runtime.errors import TrainingError
from bnas.runtime.supernetwork import SuperNetwork

from .recipe import Distillation, Recipe
from .stages import Stage
from .trainer import Trainer

# Settings for fine-tuning the winners of a search in a run.

RATE, DECAY = 0.025, 5e-4
"""Default learning rate and weight decay with SGD."""


@settings(TrainingError)
class FineTune:
    """Settings of the fine-tuning of winners; all other settings are those of the super-network's recipe.

    Raises:
        TrainingError: names every setting that is out of its bounds.
    """

    epochs: Count
    """Length in epochs, along one cosine."""
    learning_rate: Positive | None = None
    """Learning rate at the start; by default 0.025 with SGD, and that of the recipe with another optimizer."""
    weight_decay: NotNegative | None = None
    """Weight decay; by default 5e-4 with SGD, and that of the recipe with another optimizer."""
    distillation: Distillation | None = Distillation("original", hard=1.0)
    """Knowledge distillation besides the targets; by default from the original. Null: none."""
    clip_norm: Positive | None = 10.0
    """Largest norm of the gradients of a step: a network that was just cut may diverge. Null: not limited."""
    order: Literal["separate", "shared"] = "shared"
    """"separate": each winner alone, on copies of the weights. "shared": one after another, from the largest to the
    smallest, in the shared weights. Each starts from the weights that the larger ones trained, is chosen again in them
    if it has a target, and is trained shorter, in proportion to the square root of its MACs."""
    train_steps: Count | None = None
    """Number of samples of an epoch, in whole batches; by default as in the recipe."""

    @field_validator("distillation")
    @classmethod
    def _from_the_original(cls, distillation: Distillation | None) -> Distillation | None:
        if distillation is not None and distillation.teacher != "original":
            raise ValueError('a winner is trained alone, so its teacher must be "original", not "maximal"')
        return distillation

    def recipe(self, of: Recipe) -> Recipe:
        """Return the recipe of the fine-tuning; `of` is the recipe of the super-network."""
        sgd = of.optimizer == "sgd"
        return replace(
            of,
            rule="maximal",
            subnets_per_step=1,
            sampling="uniform",
            lr_schedule=None,
            distillation=self.distillation,
            learning_rate=self.learning_rate or (RATE if sgd else of.learning_rate),
            weight_decay=self.weight_decay if self.weight_decay is not None else DECAY if sgd else of.weight_decay,
            train_steps=self.train_steps or of.train_steps,
            clip_norm=self.clip_norm,
        )


def shared_lengths(supernet: SuperNetwork, subnets: Sequence[Subnet]) -> dict[Subnet, float]:
    """Return the relative training length of each sub-network in the order "shared": the square root of its MACs.

    MACs are relative to the largest sub-network. Reason: the first training benefits all later ones, and with equal
    lengths the largest sub-network was trained too little (docs/results.md).
    """
    macs = {subnet: supernet.costs(subnet)["macs"] for subnet in subnets}
    most = max(macs.values(), default=1) or 1
    return {subnet: math.sqrt(own / most) for subnet, own in macs.items()}


# A standalone sub-network: no other sub-network shares its weights.


def alone(module: nn.Module, example_inputs: Any) -> SuperNetwork:
    """Return a super-network without choices, made from a copy of `module`."""
    return SuperNetwork.from_model(deep_copy(module), example_inputs, {"dimensions": ()})


def fine_tune(
    module: nn.Module,
    example_inputs: Any,
    loader: Any,
    validation: Any = None,
    *,
    epochs: int,
    recipe: Recipe | None = None,
    teacher: nn.Module | None = None,
    resume: bool = False,
    **settings: Any,
) -> GraphModule:
    """Fine-tune a module, such as one of `SuperNetwork.extract`; return a trained copy in evaluation mode.

    The module is trained as a super-network without choices, so averages, precision, checkpoints and several processes
    work as in `Trainer`. The rule and the number of sub-networks of the recipe have no effect.

    Args:
        module: the module to train; it is not changed.
        example_inputs: as `SuperNetwork.from_model` takes them.
        loader: as `Trainer.fit` takes it.
        validation: as `Trainer.fit` takes it.
        resume: as `Trainer.fit` takes it.
        epochs: length of the training, along one cosine.
        recipe: by default that of `Trainer`, without distillation if there is no `teacher`.
        teacher: a model to learn from, such as the pre-trained one, by the distillation of the recipe.
        settings: further arguments of `Trainer`, such as ``directory``.
    """
    single, recipe = alone(module, example_inputs), recipe or Recipe()
    taught = None if teacher is None or recipe.distillation is None else recipe.distillation
    distillation = taught and replace(taught, teacher="original")
    recipe = replace(recipe, rule="maximal", subnets_per_step=1, distillation=distillation)
    trainer = Trainer(single, [Stage(epochs=epochs)], recipe, teacher=teacher, watch=0, **settings)
    trainer.fit(loader, validation, resume=resume)
    return single.extract(single.space.maximal())
