"""Modules that cannot be recorded. Not in a file of tests: pytest would write their assertions anew."""

from __future__ import annotations

from collections.abc import Callable

import torch
from export_kinds import Flipped
from torch import Tensor, nn


class Part(nn.Module):
    """Two layers and a dropout; `step` is done in between."""

    def __init__(self, step: Callable[[Part, Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.drop, self.down, self.step = nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 8), step

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(self.step(self, self.up(x))))


class Whole(nn.Module):
    """A part between two layers."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.stem, self.narrow, self.part, self.head = nn.Linear(8, 16), nn.Linear(16, 8), part, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.narrow(torch.relu(self.stem(x)))))


def asserts_a_number(part: Part, x: Tensor) -> Tensor:
    assert x.max().item() < 1e6
    return torch.relu(x)


def goes_through_numpy(part: Part, x: Tensor) -> Tensor:
    return x * torch.from_numpy((x.detach().numpy() > 0).astype("float32"))


def keeps_a_count(part: Part, x: Tensor) -> Tensor:
    assert x.max().item() < 1e6
    part.calls = getattr(part, "calls", 0) + 1
    return x


def has_a_backward(part: Part, x: Tensor) -> Tensor:
    assert x.max().item() < 1e6
    return Flipped.apply(x)


def branches(part: Part, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def multiplies_by_a_number(part: Part, x: Tensor) -> Tensor:
    return x * x.abs().max().item()


def loops(part: Part, x: Tensor) -> Tensor:
    return torch.stack([one * one.unique().numel() for one in x])


def selects(part: Part, x: Tensor) -> Tensor:
    return x + x[x > 0].sum()


class Images(nn.Module):
    """A residual block with a large kernel whose forward asserts something."""

    def __init__(self, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 3, 1)
        self.part = Block(padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.stem(x)))


class Block(nn.Module):
    """The block of `Images`."""

    def __init__(self, padding_mode: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 5, padding=2, padding_mode=padding_mode)
        self.norm, self.second = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.max().item() < 1e6
        return self.second(torch.relu(self.norm(self.first(x)))) + x
