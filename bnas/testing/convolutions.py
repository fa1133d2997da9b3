"""Parts of convolutional networks: layers, residual blocks, concatenation, pooling and the classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stage import ACTIVATIONS, Stage, drop, halved


@dataclass(frozen=True)
class Layer(Stage):
    """A convolution with BatchNorm and activation."""

    channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    groups: int = 1
    norm: bool = False
    activation: str = "relu"
    dilation: int = 1
    same: bool = False
    """Whether the padding is said by the word "same" and not by numbers; not with a stride."""

    def build(self, channels: int) -> nn.Module:
        """The layer for so many input channels."""
        sizes = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        padding: Any = "same" if self.same else tuple(self.dilation * (size // 2) for size in sizes)
        settings = (sizes, self.stride, padding, self.dilation, self.groups, not self.norm)
        conv = nn.Conv2d(channels, self.channels, *settings)
        norm = [nn.BatchNorm2d(self.channels)] if self.norm else []
        return nn.Sequential(conv, *norm, ACTIVATIONS[self.activation](self.channels))

    def width(self, channels: int) -> int:
        """Its output channels."""
        return self.channels

    def rows(self, rows: int) -> int:
        """Half of them with a stride."""
        return halved(rows) if self.stride > 1 else rows


@dataclass(frozen=True)
class Residual(Stage):
    """A residual block ``x + scale * gate(project(middle(expand(x))))``; `middle` is called `repeats` times."""

    hidden: int
    groups: int = 1
    """Groups of the middle layer; `hidden` makes it depthwise."""
    repeats: int = 1
    norm: bool = False
    activation: str = "relu"
    gate: int | None = None
    """Hidden channels of a squeeze-excite gate."""
    scale: bool = False
    """Whether the branch is scaled by a parameter that forward reads by itself."""
    after: str | None = None
    """Activation of the sum."""
    kernel: int | tuple[int, int] = 3
    """Kernel of the middle layer."""
    drop: str | None = None
    """What drops the branch, or parts of it, in training mode: one of `DROPS`."""

    def build(self, channels: int) -> nn.Module:
        """The block for so many channels."""
        return _ResidualModule(self, channels)


@dataclass(frozen=True)
class Downsample(Stage):
    """A strided residual block; its shortcut is a projection, or a strided slice with zero channels (option A)."""

    channels: int
    project: bool = True
    norm: bool = False
    activation: str = "relu"

    def build(self, channels: int) -> nn.Module:
        """The block for so many input channels."""
        return _DownsampleModule(self, channels)

    def width(self, channels: int) -> int:
        """Its output channels."""
        return self.channels

    def rows(self, rows: int) -> int:
        """Half of them."""
        return halved(rows)


@dataclass(frozen=True)
class Branches(Stage):
    """The concatenation of several layers' outputs, and of the input itself with `keep`."""

    layers: tuple[Layer, ...]
    keep: bool = False

    def build(self, channels: int) -> nn.Module:
        """The branches for so many input channels."""
        return _BranchesModule(self, channels)

    def width(self, channels: int) -> int:
        """The sum over the branches."""
        return sum(layer.channels for layer in self.layers) + (channels if self.keep else 0)


@dataclass(frozen=True)
class Around(Stage):
    """A shortcut around other parts that keep height and width, and a convolution: ``x + project(parts(x))``."""

    stages: tuple[Stage, ...]
    drop: str | None = None
    """What drops the branch, or parts of it, in training mode: one of `DROPS`."""

    def build(self, channels: int) -> nn.Module:
        """The block for so many channels."""
        return _AroundModule(self, channels)


@dataclass(frozen=True)
class Twice(Stage):
    """One layer that is called twice."""

    kernel: int | tuple[int, int] = 1
    norm: bool = False
    activation: str = "relu"

    def build(self, channels: int) -> nn.Module:
        """The layer for so many channels."""
        return _TwiceModule(Layer(channels, self.kernel, norm=self.norm, activation=self.activation).build(channels))


@dataclass(frozen=True)
class Pool(Stage):
    """Strided pooling."""

    maximum: bool = True

    def build(self, channels: int) -> nn.Module:
        """The pooling layer."""
        return nn.MaxPool2d(3, 2, 1) if self.maximum else nn.AvgPool2d(2, ceil_mode=True)

    def rows(self, rows: int) -> int:
        """Half of them."""
        return halved(rows)


@dataclass(frozen=True)
class Head:
    """The classifier: all positions flattened or their mean, then one or two linear layers."""

    flatten: bool = False
    hidden: int | None = None

    def build(self, channels: int, positions: int) -> nn.Module:
        """The classifier for so many channels of so many positions."""
        first = nn.Flatten() if self.flatten else _Mean()
        features = channels * positions if self.flatten else channels
        if self.hidden is None:
            return nn.Sequential(first, nn.Linear(features, CLASSES))
        return nn.Sequential(first, nn.Linear(features, self.hidden), nn.ReLU(), nn.Linear(self.hidden, CLASSES))


CLASSES = 3


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class _Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return x * gate.sigmoid()


class _ResidualModule(nn.Module):
    def __init__(self, plan: Residual, channels: int) -> None:
        super().__init__()
        settings: dict[str, Any] = {"norm": plan.norm, "activation": plan.activation}
        self.repeats = plan.repeats
        self.expand = Layer(plan.hidden, **settings).build(channels)
        middle = Layer(plan.hidden, plan.kernel, groups=plan.groups, **settings)
        self.middle = middle.build(plan.hidden) if plan.repeats else nn.Identity()
        self.project = nn.Conv2d(plan.hidden, channels, 1, bias=not plan.norm)
        self.norm = nn.BatchNorm2d(channels) if plan.norm else nn.Identity()
        self.gate = None if plan.gate is None else _Gate(channels, plan.gate)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1)) if plan.scale else None
        self.drop = drop(plan.drop)
        self.after = None if plan.after is None else ACTIVATIONS[plan.after](channels)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.expand(x)
        for _ in range(self.repeats):
            branch = self.middle(branch)
        branch = self.norm(self.project(branch))
        branch = branch if self.gate is None else self.gate(branch)
        branch = branch if self.scale is None else self.scale * branch
        total: Tensor = x + self.drop(branch)
        return total if self.after is None else self.after(total)


class _AroundModule(nn.Module):
    def __init__(self, plan: Around, channels: int) -> None:
        super().__init__()
        parts, width = list[nn.Module](), channels
        for stage in plan.stages:
            parts.append(stage.build(width))
            width = stage.width(width)
        self.parts = nn.Sequential(*parts, nn.Conv2d(width, channels, 1))
        self.drop = drop(plan.drop)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop(self.parts(x))
        return out


class _DownsampleModule(nn.Module):
    def __init__(self, plan: Downsample, channels: int) -> None:
        super().__init__()
        self.extra = plan.channels - channels
        self.layer = Layer(plan.channels, 3, 2, norm=plan.norm, activation=plan.activation).build(channels)
        self.last = nn.Conv2d(plan.channels, plan.channels, 1)
        self.shortcut = nn.Conv2d(channels, plan.channels, 1, 2) if plan.project else None

    def forward(self, x: Tensor) -> Tensor:
        branch = self.last(self.layer(x))
        if self.shortcut is not None:
            return F.relu(branch + self.shortcut(x))
        before = self.extra // 2
        return F.relu(branch + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.extra - before)))


class _TwiceModule(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))  # type: ignore[no-any-return]


class _BranchesModule(nn.Module):
    def __init__(self, plan: Branches, channels: int) -> None:
        super().__init__()
        self.keep = plan.keep
        self.branches = nn.ModuleList(layer.build(channels) for layer in plan.layers)

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        return torch.cat([x, *parts] if self.keep else parts, 1)
