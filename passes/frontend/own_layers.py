"""Layers that a graph has and the model has not: they give what no function of torch gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Follows(nn.Module):
    """Gives one plain value in evaluation mode and another in training mode."""

    def __init__(self, evaluation: Any, training: Any) -> None:
        super().__init__()
        self.evaluation, self.in_training = evaluation, training

    def forward(self) -> Any:
        """The value of the mode."""
        return self.in_training if self.training else self.evaluation

    def extra_repr(self) -> str:
        """Both values."""
        return f"evaluation={self.evaluation!r}, training={self.in_training!r}"


class Filled(nn.Module):
    """Makes a plain object of a user's class with the given attributes, without calling its constructor."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, **attributes: Any) -> Any:
        """The object."""
        kind: Any = self.kind
        made = kind.__new__(kind)
        vars(made).update(attributes)
        return made

    def extra_repr(self) -> str:
        """The name of the class."""
        return self.kind.__name__


class CustomFunction(nn.Module):
    """A `torch.autograd.Function` as a layer of the graph: it is applied, so that its own backward stays."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """Apply the function."""
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        """The name of the function."""
        return self.function.__name__
