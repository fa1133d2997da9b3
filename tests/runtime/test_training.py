"""Progressive shrinking on the shared weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bnas.digits import DigitNet
from bnas.runtime import Distillation, Progress, Recipe, Stage, SuperNetwork, Trainer, TrainingError

Data = list[tuple[Tensor, Tensor]]


def supernet(seed: int = 0) -> SuperNetwork:
    torch.manual_seed(seed)
    return SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))


@pytest.fixture
def data() -> Data:
    return [(torch.randn(20, 1, 8, 8), torch.randint(10, (20,))) for _ in range(3)]


@pytest.mark.parametrize("teacher", ["maximal", "original"])
def test_loss_falls_and_a_seed_fixes_everything(data: Data, teacher: str) -> None:
    seen: list[Progress] = []
    nets = []
    for _ in range(2):
        nets.append(supernet())
        stages = [Stage(("depth",), 3, init_lr=0.05), Stage(("depth", "width"), 3, init_lr=0.05, reorg_weights=True)]
        Trainer(nets[-1], stages, Recipe(distillation=Distillation(teacher)), on_step=seen.append).fit(data)
    assert [p.step for p in seen[:18]] == list(range(18))
    assert {(p.stage, p.epoch) for p in seen} == {(e // 3, e) for e in range(6)}
    if teacher == "maximal":
        assert seen[17].loss < seen[0].loss
    assert all(torch.equal(a, b) for a, b in zip(*(n.state_dict().values() for n in nets), strict=True))
    assert not nets[0].training


def test_stage_of_depth_keeps_all_widths_full() -> None:
    space = supernet().space
    sampled = Stage(("depth",)).space(space)
    assert sampled.blocks == space.blocks
    assert all(len(choices) == 1 for choices in sampled.widths.values())
    assert all(len(c) == 2 for c in Stage(width_indicator=2).space(space).widths.values())


def test_nan_names_the_step_and_the_subnetwork(data: Data) -> None:
    data[1] = (data[1][0] * float("nan"), data[1][1])
    with pytest.raises(TrainingError, match=r"loss is nan at step 1, of sub-network \{'widths'"):
        Trainer(supernet(), [Stage()]).fit(data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_dims": ("depht",)}, "train_dims: 'depht' is not one of depth, width"),
        ({"epochs": 0}, "epochs: 0 is smaller than 1"),
        ({"init_lr": float("inf")}, "init_lr: inf is not a positive number"),
        ({"width_indicator": 0}, "width_indicator: 0 is smaller than 1"),
    ],
)
def test_settings_of_a_stage_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Stage(**settings)  # type: ignore[arg-type]


def test_empty_loader_and_unknown_teacher_are_errors() -> None:
    with pytest.raises(TrainingError, match="loader is empty"):
        Trainer(supernet(), [Stage()]).fit([])
    with pytest.raises(TrainingError, match="teacher: 'me' is not one of"):
        Distillation("me")


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
