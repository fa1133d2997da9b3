"""How long a step takes, measured on the real data: nothing is different afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from bnas.passes import Elasticity
from bnas.runtime import Epochs, Recipe, Stage, SuperNetwork, Trainer, step_seconds, steps_within
from bnas.runtime.train import random_state
from bnas.runtime.train.timing import spread


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.stem(x))).mean((2, 3)))


class Loader:
    """Batches in an order of its own each time."""

    def __init__(self, batches: int = 6) -> None:
        self.generator, self.batches, self.drawn = torch.Generator().manual_seed(0), batches, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.batches):
            self.drawn += 1
            yield torch.randn(4, 1, 6, 6, generator=self.generator), torch.arange(4) % 3


class Ticks:
    """A clock on which a second passes at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def supernet() -> SuperNetwork:
    torch.manual_seed(0)
    return SuperNetwork.from_model(Net().eval(), torch.zeros(1, 1, 6, 6), Elasticity(min_width=4, divisor=4))


def test_nothing_is_different_after_a_step_was_timed() -> None:
    net, loader = supernet(), Loader()
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    trainer = Trainer(net, [Stage()], Recipe(rule="sandwich"), optimizer=optimizer)
    state, order = str(optimizer.state_dict()["state"]), random_state.capture(loader)
    assert step_seconds(trainer, loader, 0.01) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.model.state_dict().items())
    assert all(one.grad is None for one in net.parameters())
    assert random_state.capture(loader) == order
    assert str(optimizer.state_dict()["state"]) == state
    assert not net.training
    trainer.fit(loader)
    assert not all(torch.equal(tensor, before[name]) for name, tensor in net.model.state_dict().items())


def test_a_training_is_the_same_whether_it_was_timed_or_not() -> None:
    states = []
    for timed in (False, True):
        net, loader = supernet(), Loader()
        trainer = Trainer(net, [Stage(epochs=2)], Recipe())
        torch.manual_seed(3)
        if timed:
            step_seconds(trainer, loader, 0.01)
        trainer.fit(loader)
        states.append(net.model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(("batches", "seconds", "steps"), [(50, 10.0, 11), (50, 1.0, 4), (2, 10.0, 2), (1, 10.0, 1)])
def test_steps_are_taken_for_so_long_and_the_first_does_not_count(batches: int, seconds: float, steps: int) -> None:
    loader = Loader(batches)
    trainer = Trainer(supernet(), [Stage()], Recipe(memory_format="contiguous", num_bn_adaptation_samples=0))
    assert step_seconds(trainer, loader, seconds, Ticks()) == 1.0
    assert loader.drawn == steps


def test_so_many_steps_fit_into_a_time() -> None:
    trainer = Trainer(supernet(), [Stage()], Recipe())
    assert steps_within(100.0, trainer, Loader(), 3.0, Ticks()) == 100
    assert steps_within(0.2, trainer, Loader(), 3.0, Ticks()) == 1


def test_a_number_of_steps_is_trained_to_the_step() -> None:
    loader, seen = Loader(6), []
    epochs = Epochs.of(15, loader, accumulate=1)
    assert (epochs.stages, epochs.steps, epochs.train_steps, epochs.total) == ((3,), 5, 20, 3)
    recipe = Recipe(train_steps=epochs.train_steps, num_bn_adaptation_samples=0)
    Trainer(supernet(), [Stage(epochs=epochs.total)], recipe, on_step=seen.append).fit(loader)
    assert len(seen) == 15
    accumulated = Epochs.of(4, loader, accumulate=2)
    assert (accumulated.stages, accumulated.steps, accumulated.train_steps) == ((2,), 2, 16)


def test_a_single_sub_network_is_trained_in_the_shared_weights() -> None:
    net = supernet()
    small = net.space.minimal()
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    recipe = Recipe(weight_decay=0.0, learning_rate=0.5, num_bn_adaptation_samples=0)
    history = Trainer(net, [Stage(epochs=2)], recipe, subnet=small).fit(Loader(), list(Loader(2)))
    weight, kept = net.model.state_dict()["stem.weight"], small.widths["stem"]
    assert not torch.equal(weight[:kept], before["stem.weight"][:kept])
    assert torch.equal(weight[kept:], before["stem.weight"][kept:]), "entries that it does not have stay"
    assert list(history[-1].metrics) == ["subnet"]


@given(
    st.integers(1, 2000),
    st.integers(1, 400),
    st.lists(st.integers(1, 3), min_size=1, max_size=2),
)
def test_whole_epochs_lose_few_steps(steps: int, per_epoch: int, weights: list[int]) -> None:
    """Epochs of the same length: fewer steps are lost than a round of full epochs has, and than there are epochs."""
    assume(steps >= 2 * sum(weights))
    epochs, each = spread(steps, weights, per_epoch)
    assert 1 <= each <= per_epoch
    assert epochs[0] * weights[-1] == epochs[-1] * weights[0]
    taken = sum(epochs) * each
    turn = sum(weights) // math.gcd(*weights)
    rounds = math.ceil(steps / per_epoch / turn)
    assert steps - min(turn * per_epoch, rounds * turn) < taken <= steps
