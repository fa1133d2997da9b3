"""Parts that regroup, gate, pad, share or normalise the channels of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolutions import Layer
from .stage import ACTIVATIONS, Stage


@dataclass(frozen=True)
class Norm(Stage):
    """A normalisation ("group", "instance", or "layer" and "rms" of the channels as the last axis) and activation."""

    kind: str
    groups: int = 1
    affine: bool = True
    activation: str = "gelu"

    def build(self, channels: int) -> nn.Module:
        """The layer for so many channels."""
        return nn.Sequential(self._norm(channels), ACTIVATIONS[self.activation](channels))

    def _norm(self, channels: int) -> nn.Module:
        if self.kind == "group":
            return nn.GroupNorm(self.groups, channels, affine=self.affine)
        if self.kind == "instance":
            return nn.InstanceNorm2d(channels, affine=self.affine)
        make = nn.LayerNorm if self.kind == "layer" else nn.RMSNorm
        return _ChannelsLast(make(channels, elementwise_affine=self.affine))


@dataclass(frozen=True)
class Shuffle(Stage):
    """A channel shuffle: as a module, or as a view, a transposition and a view."""

    groups: int
    views: bool = True

    def build(self, channels: int) -> nn.Module:
        """The shuffle, which needs a multiple of `groups` channels."""
        return _Shuffled(self.groups) if self.views else nn.ChannelShuffle(self.groups)


@dataclass(frozen=True)
class Gated(Stage):
    """A convolution of which one half gates the other: ``F.glu``, or chunks and a sigmoid."""

    channels: int
    chunks: bool = False

    def build(self, channels: int) -> nn.Module:
        """The layer for so many input channels."""
        return nn.Sequential(nn.Conv2d(channels, 2 * self.channels, 1), _Halves() if self.chunks else nn.GLU(1))

    def width(self, channels: int) -> int:
        """Its output channels."""
        return self.channels


@dataclass(frozen=True)
class Padded(Stage):
    """Channels of a constant value before and after, and a border of zeros that a convolution takes off again."""

    before: int
    after: int
    value: float = 0.0
    border: int = 0

    def build(self, channels: int) -> nn.Module:
        """The padding for so many channels."""
        return _PaddedModule(self, channels)

    def width(self, channels: int) -> int:
        """Those that are added, too."""
        return self.before + channels + self.after


PARTS = ("split", "chunk", "slice", "narrow")
"""The ways in which `Parts` are written."""


@dataclass(frozen=True)
class Parts(Stage):
    """The first channels pass, the others go through a layer: cross-stage partial networks, ShuffleNet."""

    first: int
    layer: Layer
    written: str = "split"
    """One of `PARTS`; chunks are halves."""

    def build(self, channels: int) -> nn.Module:
        """The parts of so many channels."""
        return _PartsModule(self, channels)

    def width(self, channels: int) -> int:
        """The first, and those of the layer."""
        return self.first + self.layer.channels


@dataclass(frozen=True)
class Einsum(Stage):
    """A convolution with a kernel of one entry, written as an einsum over a parameter."""

    channels: int

    def build(self, channels: int) -> nn.Module:
        """The layer for so many input channels."""
        return _EinsumModule(channels, self.channels)

    def width(self, channels: int) -> int:
        """Its output channels."""
        return self.channels


@dataclass(frozen=True)
class Tied(Stage):
    """Two layers that have one weight, each with a bias of its own."""

    kernel: int = 1

    def build(self, channels: int) -> nn.Module:
        """The layers for so many channels."""
        layers = [Layer(channels, self.kernel, activation="silu").build(channels) for _ in range(2)]
        layers[1][0].weight = layers[0][0].weight  # type: ignore[index]
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class Upsample(Stage):
    """Twice the height and width: a transposed convolution, or channels that become pixels."""

    channels: int
    groups: int = 1
    """Of the transposed convolution."""
    shuffle: bool = False
    """Whether channels become pixels."""

    def build(self, channels: int) -> nn.Module:
        """The layer for so many input channels."""
        if self.shuffle:
            return nn.Sequential(nn.Conv2d(channels, 4 * self.channels, 1), nn.PixelShuffle(2), nn.ReLU())
        return nn.Sequential(nn.ConvTranspose2d(channels, self.channels, 2, 2, groups=self.groups), nn.ReLU())

    def width(self, channels: int) -> int:
        """Its output channels."""
        return self.channels

    def rows(self, rows: int) -> int:
        """Twice as many."""
        return 2 * rows


@dataclass(frozen=True)
class Unshuffle(Stage):
    """Blocks of two by two pixels become channels, of which a convolution makes its own."""

    channels: int

    def build(self, channels: int) -> nn.Module:
        """The layer for so many input channels."""
        return nn.Sequential(_Even(), nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, self.channels, 1), nn.ReLU())

    def width(self, channels: int) -> int:
        """Its output channels."""
        return self.channels

    def rows(self, rows: int) -> int:
        """Half of them."""
        return -(-rows // 2)


class _ChannelsLast(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


class _Shuffled(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        grouped = x.reshape(n, self.groups, channels // self.groups, height, width)
        return grouped.transpose(1, 2).contiguous().view(n, channels, height, width)


class _Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, 1)
        return value * gate.sigmoid()


class _Even(nn.Module):
    """A row and a column of zeros more where the number of them is odd."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))


class _PaddedModule(nn.Module):
    def __init__(self, plan: Padded, channels: int) -> None:
        super().__init__()
        self.value, self.border = plan.value, plan.border
        self.channels = plan.before, plan.after
        total = plan.width(channels)
        self.conv = nn.Conv2d(total, total, 2 * plan.border + 1) if plan.border else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, *self.channels), value=self.value)
        out: Tensor = self.conv(F.pad(x, [self.border] * 4) if self.border else x)
        return out


class _PartsModule(nn.Module):
    def __init__(self, plan: Parts, channels: int) -> None:
        super().__init__()
        self.first, self.written = plan.first, plan.written
        self.layer = plan.layer.build(channels - plan.first)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = self.parts(x)
        return torch.cat([first, self.layer(rest)], 1)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        rest = x.shape[1] - self.first
        if self.written == "slice":
            return x[:, : self.first], x[:, self.first :]
        if self.written == "narrow":
            return x.narrow(1, 0, self.first), x.narrow(1, self.first, rest)
        return x.chunk(2, 1) if self.written == "chunk" else torch.split(x, [self.first, rest], 1)


class _EinsumModule(nn.Module):
    def __init__(self, channels: int, made: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(made, channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,dc->bdhw", x, self.weight).relu()
