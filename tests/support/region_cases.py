"""Straight networks of parts in a row, some of which are regions without a shortcut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTHS = (8, 12)


def layer(channels: int, out: int, stride: int = 1, activation: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm and activation."""
    parts = [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*parts, *([nn.ReLU(inplace=True)] if activation else []))


class Fire(nn.Module):
    """Squeeze, and the concatenation of two expansions."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.squeeze, self.one, self.three = layer(channels, 4), layer(4, out // 2), layer(4, out - out // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.one(x), self.three(x)], 1)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return x * gate.sigmoid()


class Split(nn.Module):
    """One half goes through layers, the other past them."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(layer(channels // 2, channels // 2), layer(channels // 2, channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        return torch.cat([kept, self.branch(changed)], 1)


def plain(channels: int, out: int) -> nn.Sequential:
    """A layer without activation."""
    return layer(channels, out, activation=False)


Part = Callable[[int, int], nn.Module]
PARTS: dict[str, Part] = {"layer": layer, "fire": Fire, "gate": Gate, "split": Split, "plain": plain}


@dataclass(frozen=True)
class Row:
    """A network of parts, each with so many output channels; its ``repr`` makes it."""

    parts: tuple[tuple[str, int], ...]
    stem: int = 8
    seed: int = 0
    module: nn.Module = field(init=False, repr=False, compare=False)
    inputs: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Build the module in evaluation mode, with random statistics and biases."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            object.__setattr__(self, "module", self._build().eval())
            object.__setattr__(self, "inputs", torch.randn(2, 3, 6, 7))
            for name, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]:
                if tensor.ndim == 1:
                    positive = name.endswith(("weight", "var"))
                    tensor.data.uniform_(*((0.5, 1.5) if positive else (-0.5, 0.5)))

    def _build(self) -> nn.Module:
        body, channels = nn.Sequential(), self.stem
        for kind, out in self.parts:
            body.append(PARTS[kind](channels, out))
            channels = channels if kind in ("gate", "split") else out
        return _Row(layer(3, self.stem), body, nn.Conv2d(channels, 2, 1))

    def without(self, names: frozenset[str]) -> nn.Module:
        """A copy of the module in which the parts that the names of regions tell are ``nn.Identity``."""
        twin = copy.deepcopy(self.module)
        for name in names:
            path, _, children = name.rpartition(".")
            first, _, last = children.partition("-")
            holder = twin.get_submodule(path)
            for number in range(int(first), int(last or first) + 1):
                holder[number] = nn.Identity()  # type: ignore[operator]
        return twin


class _Row(nn.Module):
    def __init__(self, stem: nn.Module, body: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.last = stem, body, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.stem(x))).mean((2, 3))


@st.composite
def rows(draw: st.DrawFn) -> Row:
    part = st.tuples(st.sampled_from(tuple(PARTS)), st.sampled_from(WIDTHS))
    parts = draw(st.lists(part, min_size=1, max_size=6))
    return Row(tuple(parts), draw(st.sampled_from(WIDTHS)), draw(st.integers(0, 100)))
