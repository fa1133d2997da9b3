"""Fine-tuning of a chosen sub-network by itself: no other sub-network holds its weights back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from bnas.passes.frontend.state import deep_copy

from .recipe import Recipe
from .stage import Stage
from .supernetwork import SuperNetwork
from .training import Trainer


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
    """`module`, such as `SuperNetwork.extract` gives, trained by itself; returns another one, in evaluation mode.

    It is a training of a super-network without choices, so that averages, precision, checkpoints and processes are as
    there. The rule and the number of sub-networks of the recipe say nothing here.

    Args:
        module: what to train; it stays as it is.
        example_inputs: as `SuperNetwork.from_model` takes them.
        loader: as `Trainer.fit` takes it.
        validation: as `Trainer.fit` takes it.
        resume: as `Trainer.fit` takes it.
        epochs: along one cosine.
        recipe: by default that of `Trainer`, without distillation where no teacher is given.
        teacher: what it learns from, such as the pre-trained model, by the distillation of the recipe.
        settings: further ones of `Trainer`, such as ``directory``.
    """
    single = SuperNetwork.from_model(deep_copy(module), example_inputs, {"dimensions": ()})
    recipe = recipe or Recipe()
    taught = None if teacher is None or recipe.distillation is None else recipe.distillation
    distillation = taught and replace(taught, teacher="original")
    recipe = replace(recipe, rule="maximal", subnets_per_step=1, distillation=distillation)
    trainer = Trainer(single, [Stage(epochs=epochs)], recipe, teacher=teacher, watch=0, **settings)
    trainer.fit(loader, validation, resume=resume)
    return single.extract(single.space.maximal())
