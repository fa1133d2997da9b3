"""A small job whose data come in another order each time: what a run must find whoever drew from them before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bnas.passes import Elasticity
from bnas.run.job import Job, Splits
from bnas.runtime import LatencySettings, Recipe, Stage
from bnas.search import NSGA2, SearchSettings


class Net(nn.Module):
    """Its input has a name that Python and torch.fx keep for themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 3)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(input)))
        return self.head(torch.relu(self.body(x) + x).mean((2, 3)))


class Shuffled:
    """Batches in an order of their own at every iteration: what was drawn before must not matter."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(48) % 3
        patterns = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(9))
        self.images = patterns[self.labels] + torch.randn(48, 1, 6, 6, generator=self.generator)

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        for chosen in torch.randperm(48, generator=self.generator).split(12):
            yield self.images[chosen], self.labels[chosen]


def job(**changes: Any) -> Job:
    torch.manual_seed(0)
    held = Shuffled(1)
    part = [(held.images, held.labels)]
    made = Job(
        Net().eval(),
        Splits(Shuffled(0), part, part, {"classes": 3}),
        torch.zeros(1, 1, 6, 6),
        elasticity=Elasticity(min_width=4, divisor=4),
        stages=[Stage(epochs=2, init_lr=0.1)],
        recipe=Recipe(memory_format="contiguous"),  # what is faster may be another one each time
        search=SearchSettings(algorithm=NSGA2(population=4), num_evals=6),
        num_bn_adaptation_samples=24,
        latency=LatencySettings(runs=3),
    )
    return replace(made, **changes)
