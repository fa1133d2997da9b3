"""Small networks and data for tests of training: everything takes milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bnas.runtime import Recipe, SuperNetwork
from bnas.runtime.evaluate.evaluation import Batch

WIDTH = 16


class Small(nn.Module):
    """A stem, two skippable blocks and a head on 4 x 4 images; with BatchNorm and dropout, or without."""

    def __init__(self, norm: bool = True, dropout: float = 0.0, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.body1, self.body2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm1, self.norm2 = (nn.BatchNorm2d(width) if norm else nn.Identity() for _ in range(2))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x)).relu()
        x = x + self.norm2(self.body1(x)).relu()
        x = x + self.body2(x).relu()
        return self.head(self.drop(x.mean((2, 3))))


def supernet(seed: int = 0, elasticity: Any = None, **options: Any) -> SuperNetwork:
    """A super-network of `Small`; the same one for the same seed."""
    torch.manual_seed(seed)
    return SuperNetwork.from_model(Small(**options).eval(), torch.zeros(2, 1, 4, 4), elasticity)


def batches(count: int = 3, size: int = 8, seed: int = 0) -> list[Batch]:
    """Batches with labels that a network can learn."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        labels = torch.randint(3, (size,), generator=generator)
        images = torch.randn(size, 1, 4, 4, generator=generator) + labels[:, None, None, None]
        found.append((images, labels))
    return found


def plain(**changes: Any) -> Recipe:
    """A recipe of which nothing depends on a measurement of time, and that learns from targets alone."""
    settings: dict[str, Any] = {"distillation": None, "memory_format": "contiguous", "num_bn_adaptation_samples": 0}
    return Recipe(**settings | changes)


def tensors(net: SuperNetwork) -> dict[str, Tensor]:
    """Copies of all that is trained."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether all tensors agree to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def gradients(net: SuperNetwork) -> dict[str, Tensor]:
    """Copies of the gradients that are there."""
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
