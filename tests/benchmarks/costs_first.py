"""Table of what the first costs of a super-network take: ``python tests/benchmarks/costs_first.py``.

CPU seconds of one thread for two networks with very many operators; the goal was set for a quiet machine.
"""

from __future__ import annotations

from time import process_time

from timing import Spread  # isort: skip  # first: it sets the number of threads

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bnas.runtime import SuperNetwork

GOAL = 2.0
"""Seconds of the first costs."""


class DecoderLayer(nn.Module):
    """A layer of a language model: attention and a gated hidden layer, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (part(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """A language model with `depth` layers."""

    def __init__(self, depth: int = 80, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        self.layers = nn.Sequential(*(DecoderLayer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, 100)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embedding(tokens))))


def unit(channels: int) -> nn.Sequential:
    """The branch of a residual block."""
    layers = [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))


class Exchange(nn.Module):
    """Branches of several resolutions with residual blocks; afterwards each gets the sum of all (as in HRNet)."""

    def __init__(self, widths: list[int], blocks: int = 4) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.ModuleList(unit(w) for _ in range(blocks)) for w in widths)
        self.fuse = nn.ModuleList(nn.ModuleList(nn.Conv2d(v, w, 1) for v in widths) for w in widths)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        ys = []
        for x, branch in zip(xs, self.branches, strict=True):
            for block in branch:
                x = F.relu(x + block(x))
            ys.append(x)
        return [
            F.relu(sum(F.interpolate(f(y), size=ys[i].shape[-2:]) for f, y in zip(fuse, ys, strict=True)))
            for i, fuse in enumerate(self.fuse)
        ]


class Resolutions(nn.Module):
    """Three or four branches through eight exchanges."""

    def __init__(self) -> None:
        super().__init__()
        widths = [32, 64, 128, 256]
        self.stems = nn.ModuleList(nn.Conv2d(3, w, 3, 2**i, 1) for i, w in enumerate(widths))
        self.stages = nn.ModuleList(Exchange(widths) for _ in range(8))
        self.head = nn.Linear(sum(widths), 10)

    def forward(self, x: Tensor) -> Tensor:
        xs = [stem(x) for stem in self.stems]
        for stage in self.stages:
            xs = stage(xs)
        return self.head(torch.cat([x.mean((2, 3)) for x in xs], 1))


MODELS = {
    "decoder of 80 layers": (Decoder, torch.zeros(1, 16, dtype=torch.long)),
    "four resolutions": (Resolutions, torch.zeros(1, 3, 64, 64)),
}


def main() -> None:
    """Print the table."""
    table = Table("model", "nodes", "CPU s: median (quartiles)", "goal", "again, CPU ms", title="First costs")
    for name, (make, inputs) in MODELS.items():
        model = make().eval()
        took, again = [], []
        for _ in range(3):
            supernet = SuperNetwork.from_model(model, inputs)
            for times in (took, again):
                begin = process_time()
                supernet.costs(supernet.space.minimal())
                times.append(process_time() - begin)
        milliseconds = [1000 * seconds for seconds in again]
        nodes = str(len(supernet.ir.graph.nodes))
        table.add_row(name, nodes, Spread(took).shown(2), f"{GOAL}", Spread(milliseconds).shown(1))
    Console().print(table)


if __name__ == "__main__":
    main()
