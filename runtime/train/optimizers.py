"""The optimizer of a recipe, from `torch.optim`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from .recipe import OWN, Recipe

KINDS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}


def optimizer_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the keyword arguments of the optimizer, but for its learning rate."""
    given = {name: getattr(recipe, name) for name, kinds in OWN.items() if recipe.optimizer in kinds}
    if recipe.optimizer == "sgd":
        momentum = 0.9 if recipe.momentum is None else recipe.momentum
        given = {"momentum": momentum, "nesterov": momentum > 0 if recipe.nesterov is None else recipe.nesterov}
    return {name: value for name, value in given.items() if value is not None} | {"weight_decay": recipe.weight_decay}


def optimizer_of(recipe: Recipe, parameters: Sequence[nn.Parameter], names: Mapping[str, nn.Parameter]) -> Optimizer:
    """Make the optimizer of `parameters`; those whose name ``no_decay_keys`` has a part of have no weight decay."""
    parts = recipe.no_decay_keys.split("#") if recipe.no_decay_keys else []
    whole = {id(one) for name, one in names.items() if any(part in name for part in parts)}
    decayed = {"params": [one for one in parameters if id(one) not in whole]}
    kept = {"params": [one for one in parameters if id(one) in whole], "weight_decay": 0.0}
    groups = [group for group in (decayed, kept) if group["params"]]
    kind: Any = KINDS[recipe.optimizer]
    fused = {"fused": True} if recipe.optimizer in FUSED and all(map(_on_gpu, parameters)) else {}
    made: Optimizer = kind(groups, lr=recipe.learning_rate, **optimizer_settings(recipe), **fused)
    return made


FUSED = ("sgd", "adam", "adamw")
"""Optimizers that PyTorch has as one kernel: on a GPU these take a third of the time (docs/performance.md)."""


def _on_gpu(parameter: nn.Parameter) -> bool:
    return parameter.is_cuda and parameter.is_floating_point()
