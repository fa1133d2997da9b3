"""What the plan of a random network is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: Mapping[str, Callable[[int], nn.Module]] = {
    "relu": lambda width: nn.ReLU(),
    "relu_": lambda width: nn.ReLU(inplace=True),
    "gelu": lambda width: nn.GELU(),
    "silu": lambda width: nn.SiLU(),
    "hardswish": lambda width: nn.Hardswish(),
    "sigmoid": lambda width: nn.Sigmoid(),
    "prelu": lambda width: nn.PReLU(width),
}
"""Activation layers by name, for a given number of channels; a trailing underscore writes in place."""

WIDTHS = (4, 6, 8, 12, 16, 24, 32)


class Stage(ABC):
    """A part of a network's plan. Each is a frozen dataclass of plain values, so that its ``repr`` makes it again."""

    @abstractmethod
    def build(self, channels: int) -> nn.Module:
        """The part for so many input channels."""

    def width(self, channels: int) -> int:
        """Its output channels: by default as many as it gets."""
        return channels

    def rows(self, rows: int) -> int:
        """Height of its output, for images of so many rows: by default the same."""
        return rows


def halved(rows: int) -> int:
    """Half of the rows, rounded up: what a stride of two leaves."""
    return -(-rows // 2)


class DropPath(nn.Module):
    """Stochastic depth as many models write it: whole samples of a branch are dropped in training mode."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """The input itself in evaluation mode."""
        if not self.training:
            return x
        keep = 1 - self.probability
        return x * torch.rand(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).lt(keep) / keep


class FunctionalDropout(nn.Module):
    """Dropout as a function that is told the mode."""

    def forward(self, x: Tensor) -> Tensor:
        """The input, in training mode with some entries dropped."""
        return F.dropout(x, 0.25, self.training)


DROPS: Mapping[str, Callable[[], nn.Module]] = {
    "path": lambda: DropPath(0.25),
    "function": FunctionalDropout,
    "module": lambda: nn.Dropout(0.25),
}
"""What drops parts of a branch in training mode, by name."""


def drop(name: str | None) -> nn.Module:
    """What `DROPS` has under the name; nothing is dropped without one."""
    return nn.Identity() if name is None else DROPS[name]()
