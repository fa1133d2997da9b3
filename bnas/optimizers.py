"""The optimizer that a configuration names, from `torch.optim`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from bnas.configuration import OptimizerSection
from bnas.runtime import TrainingError

KINDS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}
OWN = {"sgd": ("momentum", "nesterov"), "adam": ("betas",), "adamw": ("betas",), "rmsprop": ("momentum",)}
"""The settings that only some have."""


def settings_of(section: OptimizerSection) -> dict[str, Any]:
    """The keyword arguments of the optimizer, but for its learning rate.

    Raises:
        TrainingError: a setting belongs to another type, or contradicts another one.
    """
    given = {key: getattr(section, key) for key in ("momentum", "nesterov", "betas")}
    own = OWN[section.type]
    for key, value in given.items():
        if value is not None and key not in own:
            kinds = " and ".join(kind for kind, keys in OWN.items() if key in keys)
            raise TrainingError(
                f"{key} belongs to {kinds}; with {section.type} leave it out, or say --set optimizer.{key}=null"
            )
    if section.type == "sgd":
        given["momentum"] = 0.9 if section.momentum is None else section.momentum
        given["nesterov"] = given["momentum"] > 0 if section.nesterov is None else section.nesterov
        if given["nesterov"] and not given["momentum"]:
            raise TrainingError("nesterov looks ahead along the momentum, which is 0: leave one of the two out")
    return {key: value for key, value in given.items() if value is not None} | {"weight_decay": section.weight_decay}


def optimizer_of(section: OptimizerSection, model: nn.Module) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Makes the optimizer from the parameters of a super-network on `model`.

    Those of `model` that ``no_decay_keys`` name have no weight decay.
    """
    parts = section.no_decay_keys.split("#") if section.no_decay_keys else []
    whole = {id(tensor) for name, tensor in model.named_parameters() if any(part in name for part in parts)}
    kind: Any = KINDS[section.type]

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        every = list(parameters)
        decayed = {"params": [one for one in every if id(one) not in whole]}
        kept = {"params": [one for one in every if id(one) in whole], "weight_decay": 0.0}
        groups = [group for group in (decayed, kept) if group["params"]]
        made: Optimizer = kind(groups, lr=section.base_lr, **settings_of(section))
        return made

    return make
