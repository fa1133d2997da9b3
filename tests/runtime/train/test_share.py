"""A loader that several processes share: their parts make the batches that one process would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from bnas.runtime.evaluate.evaluation import Loader
from bnas.runtime.train import random_state
from bnas.runtime.train.batches import Batches
from bnas.runtime.train.share import Share, bounds, shared_out


class Noisy(Dataset[Any]):
    """Samples are their numbers; targets are noise, as of an augmentation."""

    def __init__(self, size: int = 21) -> None:
        self.size, self.drawn = size, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        self.drawn += 1
        return torch.tensor([float(place)]), torch.rand(())


class Lazy:
    """Makes its batches of random numbers as it goes."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        for size in (6, 5, 3):
            numbers = torch.randperm(100)[:size].float()[:, None]
            yield {"x": numbers, "labels": numbers[:, 0].long(), "mask": torch.ones(2, 2)}


LOADERS: dict[str, Callable[[], Any]] = {
    "plain": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "own generator": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "workers": lambda: DataLoader(Noisy(), 4, shuffle=True, num_workers=1),
    "list": lambda: [(torch.arange(5.0)[:, None], torch.zeros(5)), (torch.arange(3.0)[:, None], torch.zeros(3))],
    "lazy": Lazy,
}


def epochs(loader: Loader, count: int = 2) -> list[list[Any]]:
    """Inputs and targets of some epochs, from generators at a fixed seed."""
    random_state.begin_at(5)
    batches = Batches(loader)
    found = []
    for _ in range(count):
        found.append([one for (one,) in batches])
        random_state.begin_at(7)  # what processes agree on before an epoch
    return found


def inputs(batch: Any) -> list[float]:
    """The samples of a batch, which are numbers."""
    return list((batch["x"] if isinstance(batch, dict) else batch[0]).flatten().tolist())


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("processes", [2, 3])
def test_parts_are_the_batches_of_one_process(name: str, processes: int) -> None:
    whole = epochs(LOADERS[name]())
    parts = [epochs(Share(LOADERS[name](), rank, processes)) for rank in range(processes)]
    for epoch, batches in enumerate(whole):
        for number, batch in enumerate(batches):
            found = [inputs(part[epoch][number]) for part in parts]
            together = [one for some in found for one in some]
            assert together == inputs(batch) or found == [inputs(batch)] * processes


def test_each_process_loads_its_own_samples_with_noise_of_its_own() -> None:
    sets = [Noisy(16), Noisy(16)]
    found = [epochs(Share(DataLoader(one, 8, shuffle=True), rank, 2), 1)[0] for rank, one in enumerate(sets)]
    assert [one.drawn for one in sets] == [8, 8]
    noise = [set(torch.cat([batch[1] for batch in batches]).tolist()) for batches in found]
    assert not noise[0] & noise[1]


@pytest.mark.parametrize(
    ("size", "processes", "expected"),
    [
        (7, 3, [(0, 3), (3, 5), (5, 7)]),
        (8, 2, [(0, 4), (4, 8)]),
        (3, 2, [(0, 3), (0, 3)]),
        (1, 2, [(0, 1), (0, 1)]),
    ],
)
def test_sizes_differ_by_one_and_small_batches_stay_whole(
    size: int, processes: int, expected: list[tuple[int, int]]
) -> None:
    assert [bounds(size, rank, processes) for rank in range(processes)] == expected


def test_what_is_not_of_the_samples_stays_whole() -> None:
    (first, *_), *_ = epochs(Share(Lazy(), 1, 2))
    assert {name: len(one) for name, one in first.items()} == {"x": 3, "labels": 3, "mask": 2}


def test_targets_that_cannot_be_divided_are_used_by_all_processes() -> None:
    """With a part of the characters of all texts, a process would train on the texts of another one."""
    batch = (torch.arange(4.0)[:, None], {"text": torch.arange(9), "lengths": torch.tensor([3, 2, 2, 2])})
    for rank in range(2):
        ((first,),) = epochs(Share([batch], rank, 2), 1)
        assert [len(first[0]), len(first[1]["text"]), len(first[1]["lengths"])] == [4, 9, 4]


def test_loader_of_one_process_or_with_a_part_already_is_left_alone() -> None:
    loader = DataLoader(Noisy(), 4)
    assert shared_out(loader) is loader
    own = DataLoader(Noisy(), 4, sampler=DistributedSampler(Noisy(), num_replicas=2, rank=1))
    assert shared_out(own, 2) is own
    assert isinstance(shared_out(loader, 2), Share)


@pytest.mark.parametrize("before", [1, 2, 3])
def test_epoch_goes_on_with_another_number_of_processes(before: int) -> None:
    def made(rank: int, processes: int) -> Batches:
        random_state.begin_at(5)
        loader = LOADERS["plain"]()
        return Batches(loader if processes == 1 else Share(loader, rank, processes), samples=20)

    states = []
    for rank in range(before):
        batches = made(rank, before)
        steps = iter(batches)
        next(steps), next(steps)
        states.append(batches.state_dict())
    whole = [inputs(one) for (one,) in made(0, 1)]
    resumed = made(0, 1)
    resumed.load_states(states)
    assert [inputs(one) for (one,) in resumed] == whole[2:]
