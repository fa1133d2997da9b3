"""Progressive shrinking on the shared weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from training_cases import batches, supernet

from bnas.runtime import Distillation, Progress, Recipe, Stage, SuperNetwork, Trainer

Data = list[tuple[Tensor, Tensor]]


@pytest.fixture
def data() -> Data:
    return batches(3, 20)


@pytest.mark.parametrize("teacher", ["maximal", "original"])
def test_loss_falls_and_a_seed_fixes_everything(data: Data, teacher: str) -> None:
    seen: list[Progress] = []
    nets = []
    for _ in range(2):
        nets.append(supernet())
        recipe = Recipe(distillation=Distillation(teacher), memory_format="contiguous")  # a measured one may differ
        stages = [Stage(("depth",), 3, init_lr=0.05), Stage(("depth", "width"), 3, init_lr=0.05, reorg_weights=True)]
        Trainer(nets[-1], stages, recipe, on_step=seen.append).fit(data)
    assert [p.step for p in seen[:18]] == list(range(18))
    assert {(p.stage, p.epoch) for p in seen} == {(e // 3, e) for e in range(6)}
    if teacher == "maximal":
        assert seen[17].loss < seen[0].loss
    assert all(torch.equal(a, b) for a, b in zip(*(n.state_dict().values() for n in nets), strict=True))
    assert not nets[0].training


class InPlace(nn.Module):
    """In-place activations behind a skippable block: skipping it must not let them write into its entry."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.act = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.act(self.body(x) + x)
        return self.head(x.mean((2, 3)))


def test_in_place_activation_behind_a_skipped_block_trains() -> None:
    net = SuperNetwork.from_model(InPlace(), torch.zeros(2, 1, 8, 8))
    program = net.program(net.space.minimal())
    program(torch.randn(2, 1, 8, 8)).sum().backward()
    assert net.model.first.weight.grad is not None
    assert net.model.body.weight.grad is None
