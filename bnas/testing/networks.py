"""Random networks as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .convolutions import Head, Layer
from .stage import Stage


@dataclass(frozen=True)
class Network:
    """A small convolutional network in evaluation mode with random weights and statistics; its ``repr`` makes it."""

    stem: Layer = field(default_factory=lambda: Layer(4))
    stages: tuple[Stage, ...] = ()
    head: Head = field(default_factory=Head)
    size: int = 8
    """Height of the images; they are one pixel wider."""
    batch: int = 2
    seed: int = 0
    nested: bool = False
    """Whether it returns ``{"out": head, "more": [features, (mean,)]}``."""
    module: nn.Module = field(init=False, repr=False, compare=False)
    example_inputs: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Build the module; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            example = torch.randn(self.batch, 3, self.size, self.size + 1)
            module = self._build(example).eval()
            _randomise(module)
        object.__setattr__(self, "module", module)
        object.__setattr__(self, "example_inputs", example)

    def _build(self, example: Tensor) -> nn.Module:
        parts, channels = [self.stem.build(3)], self.stem.channels
        for stage in self.stages:
            parts.append(stage.build(channels))
            channels = stage.width(channels)
        body = nn.Sequential(*parts).eval()
        with torch.no_grad():
            positions = body(example)[0, 0].numel()
        for part in body.modules():
            vars(part).get("tables", {}).clear()  # at the example's size a table would be there already
        head = self.head.build(channels, positions)
        return _Nested(body, head) if self.nested else nn.Sequential(body, head)


class _Nested(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        features = self[0](x)
        return {"out": self[1](features), "more": [features, (features.mean((1, 2, 3)),)]}


def _randomise(module: nn.Module) -> None:
    """Statistics, biases and scales unlike the initial ones, and weights that let the signal live: or mistakes hide."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.ndim > 1 and tensor[0].numel() > 1:
            nn.init.kaiming_normal_(tensor)
        elif tensor.is_floating_point():
            positive = name.endswith(("weight", "var", "scale"))
            tensor.data.uniform_(*((0.5, 1.5) if positive else (-0.5, 0.5)))
