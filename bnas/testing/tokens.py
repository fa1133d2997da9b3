"""Parts of token models: patches become tokens (N, T, D), go through attention and perceptrons, and are read out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stage import ACTIVATIONS, Stage, drop

POSITIONS = 256
"""The most tokens that `Tokens` has positions for."""
PROJECTIONS = ("separate", "reshape", "unbind", "chunk", "module")
"""The ways in which `Attention` makes queries, keys and values: the last is `nn.MultiheadAttention`."""
READOUTS = ("image", "mean", "class")
"""What `Tokens` hands on: an image again, the mean token, or a token that was put in front."""


@dataclass(frozen=True)
class Attention(Stage):
    """Self-attention on tokens that are normalised, added to them: ``x + attention(norm(x))``."""

    heads: int
    head_width: int
    projections: str = "separate"
    """One of `PROJECTIONS`; the module's heads share the width of the tokens, whatever `head_width` is."""
    product: bool = False
    """Whether the scores are written as matrix products with a softmax, and not as one function."""
    norm: str = "layer"
    """ "layer" or "rms"."""
    drop: str | None = None
    """What drops the branch, or parts of it, in training mode: one of `DROPS`."""

    def build(self, channels: int) -> nn.Module:
        """The block for so many channels."""
        return _Added(_AttentionModule(self, channels), self.norm, self.drop, channels)


@dataclass(frozen=True)
class Mlp(Stage):
    """Two linear layers on tokens that are normalised, added to them; `gated` halves the first one's outputs."""

    hidden: int
    gated: bool = False
    activation: str = "gelu"
    norm: str = "layer"
    """ "layer" or "rms"."""
    drop: str | None = None
    """What drops the branch, or parts of it, in training mode: one of `DROPS`."""

    def build(self, channels: int) -> nn.Module:
        """The block for so many channels."""
        gate = nn.GLU(-1) if self.gated else ACTIVATIONS[self.activation](self.hidden)
        first = nn.Linear(channels, 2 * self.hidden if self.gated else self.hidden)
        return _Added(nn.Sequential(first, gate, nn.Linear(self.hidden, channels)), self.norm, self.drop, channels)


@dataclass(frozen=True)
class Mix(Stage):
    """Tokens mixed with one another by an einsum over a parameter, added to them."""

    def build(self, channels: int) -> nn.Module:
        """The block for so many channels."""
        return _MixModule()


@dataclass(frozen=True)
class Tokens(Stage):
    """Patches of an image become tokens, with `positions` added, and go through `blocks`.

    Attributes such as `blocks` are stages on (N, T, D); an image is made of the tokens again, or one token.
    """

    channels: int
    blocks: tuple[Stage, ...] = ()
    patch: int = 1
    """Height and width of a patch."""
    positions: str | None = "parameter"
    """A "parameter" that is sliced, an "embedding" of numbers, or none."""
    readout: str = "mean"
    """One of `READOUTS`."""

    def build(self, channels: int) -> nn.Module:
        """The part for so many input channels."""
        return _TokensModule(self, channels)

    def width(self, channels: int) -> int:
        """The width of its tokens."""
        return self.channels

    def rows(self, rows: int) -> int:
        """One, or those of the patches."""
        return rows // self.patch if self.readout == "image" else 1


class _Added(nn.Module):
    """``x + drop(branch(norm(x)))``."""

    def __init__(self, branch: nn.Module, norm: str, dropped: str | None, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels) if norm == "layer" else nn.RMSNorm(channels)
        self.branch, self.drop = branch, drop(dropped)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop(self.branch(self.norm(x)))
        return out


class _AttentionModule(nn.Module):
    def __init__(self, plan: Attention, channels: int) -> None:
        super().__init__()
        self.plan, inner = plan, plan.heads * plan.head_width
        if plan.projections == "module":
            self.attention = nn.MultiheadAttention(channels, plan.heads, batch_first=True)
            return
        if plan.projections == "separate":
            self.query, self.key = nn.Linear(channels, inner), nn.Linear(channels, inner)
            self.value = nn.Linear(channels, inner)
        else:
            self.qkv = nn.Linear(channels, 3 * inner)
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.plan.projections == "module":
            attended: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return attended
        n, tokens, _ = x.shape
        out = self.attend(*self.project(x)).transpose(1, 2)
        joined: Tensor = self.out(out.reshape(n, tokens, self.plan.heads * self.plan.head_width))
        return joined

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (N, heads, T, head width)."""
        (n, tokens, _), heads, width = x.shape, self.plan.heads, self.plan.head_width
        if self.plan.projections == "separate":
            made: tuple[Tensor, ...] = self.query(x), self.key(x), self.value(x)
        elif self.plan.projections == "chunk":
            made = self.qkv(x).chunk(3, -1)
        else:
            packed = self.qkv(x).reshape(n, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
            return packed.unbind(0) if self.plan.projections == "unbind" else (packed[0], packed[1], packed[2])
        return tuple(one.view(n, tokens, heads, width).transpose(1, 2) for one in made)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not self.plan.product:
            return F.scaled_dot_product_attention(query, key, value)
        scores: Tensor = query @ key.transpose(-2, -1) * self.plan.head_width**-0.5
        return scores.softmax(-1) @ value


class _MixModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(POSITIONS, POSITIONS))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        return x + torch.einsum("btc,tu->buc", x, self.weight[:tokens, :tokens])


class _TokensModule(nn.Module):
    def __init__(self, plan: Tokens, channels: int) -> None:
        super().__init__()
        self.plan, width = plan, plan.channels
        self.patches = nn.Conv2d(channels, width, plan.patch, plan.patch)
        self.first = nn.Parameter(torch.empty(1, 1, width)) if plan.readout == "class" else None
        if plan.positions == "parameter":
            self.positions = nn.Parameter(torch.empty(1, POSITIONS, width))
        elif plan.positions == "embedding":
            self.embedding = nn.Embedding(POSITIONS, width)
        self.blocks = nn.Sequential(*(block.build(width) for block in plan.blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.patches(x)
        tokens = image.flatten(2).transpose(1, 2)
        if self.first is not None:
            tokens = torch.cat([self.first.expand(tokens.shape[0], -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(self.placed(tokens)))
        if self.plan.readout == "image":
            placed: Tensor = tokens.transpose(1, 2).reshape(image.shape)
            return placed
        token: Tensor = tokens[:, 0] if self.plan.readout == "class" else tokens.mean(1)
        return token[:, :, None, None]

    def placed(self, tokens: Tensor) -> Tensor:
        if self.plan.positions == "parameter":
            return tokens + self.positions[:, : tokens.shape[1]]
        if self.plan.positions == "embedding":
            placed: Tensor = tokens + self.embedding(torch.arange(tokens.shape[1]))
            return placed
        return tokens
