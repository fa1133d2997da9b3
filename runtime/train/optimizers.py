"""The optimizer of a recipe, from `torch.optim`, in its fused version if PyTorch has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from .recipe import OWN, Recipe

KINDS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}


def optimizer_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the keyword arguments of the optimizer, without the learning rate."""
    given = {name: getattr(recipe, name) for name, kinds in OWN.items() if recipe.optimizer in kinds}
    if recipe.optimizer == "sgd":
        momentum = 0.9 if recipe.momentum is None else recipe.momentum
        given = {"momentum": momentum, "nesterov": momentum > 0 if recipe.nesterov is None else recipe.nesterov}
    return {name: value for name, value in given.items() if value is not None} | {"weight_decay": recipe.weight_decay}


def optimizer_of(recipe: Recipe, parameters: Sequence[nn.Parameter], names: Mapping[str, nn.Parameter]) -> Optimizer:
    """Make the optimizer of `parameters`. Parameters with a name part in ``no_decay_keys`` get no weight decay."""
    parts = recipe.no_decay_keys.split("#") if recipe.no_decay_keys else []
    whole = {id(one) for name, one in names.items() if any(part in name for part in parts)}
    decayed = {"params": [one for one in parameters if id(one) not in whole]}
    kept = {"params": [one for one in parameters if id(one) in whole], "weight_decay": 0.0}
    groups = [group for group in (decayed, kept) if group["params"]]
    kind: Any = KINDS[recipe.optimizer]
    fused = recipe.optimizer in FUSED and all(map(_has_kernel, parameters))
    made: Optimizer = kind(
        groups, lr=recipe.learning_rate, **optimizer_settings(recipe), **({"fused": True} if fused else {})
    )
    if fused:
        made.register_step_pre_hook(_lay_out)
    return made


FUSED = ("sgd", "adam", "adamw")
"""Optimizers with a fused kernel in PyTorch, which takes a third of the time or less (docs/performance.md)."""


def _has_kernel(parameter: nn.Parameter) -> bool:
    return parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point()


def _lay_out(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Give gradients and momenta the strides of their parameter, because fused CPU kernels ignore strides.

    Missing momenta become 0: the fused SGD kernel needs momenta for all parameters or for none, but a parameter that no
    sub-network has used yet has none.
    """
    moved = isinstance(optimizer, SGD)
    for settings, parameter in ((group, one) for group in optimizer.param_groups for one in group["params"]):
        if parameter.grad is not None:
            parameter.grad = _as_laid_out(parameter.grad, parameter)
            if moved and settings["momentum"] and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
        state = optimizer.state.get(parameter, {})
        state.update({key: _as_laid_out(value, parameter) for key, value in state.items()})


def _as_laid_out(value: Any, parameter: nn.Parameter) -> Any:
    if not isinstance(value, Tensor) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
