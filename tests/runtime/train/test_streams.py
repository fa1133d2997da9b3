"""Data that do not fit into memory: what a stream gives is what a list of the same batches gives."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import resume_cases
import torch
from resume_cases import train
from stream_cases import SAMPLES, counted, loader, write_shards
from torch import Tensor
from torch.utils.data import DataLoader
from training_cases import batches, plain, same, supernet, tensors

from bnas.runtime import Epochs, Evaluator, Progress, Recipe, Stage, Trainer, TrainingError
from bnas.runtime.evaluate.evaluation import Batch, accuracy
from bnas.runtime.evaluate.together import Bar, RacingError
from bnas.runtime.feed import is_stream
from bnas.runtime.train.batches import Batches
from bnas.runtime.train.share import Share

STAGES = [Stage(("depth",)), Stage(epochs=2, reorg_weights=True, bn_adapt=True)]
RECIPE = Recipe(memory_format="contiguous", num_bn_adaptation_samples=8, train_steps=SAMPLES)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards")


def trained(data: Any, validation: Any = None, recipe: Recipe = RECIPE) -> tuple[dict[str, Tensor], list[Any]]:
    net = supernet(dropout=0.4)
    torch.manual_seed(1)
    records = Trainer(net, STAGES, recipe).fit(data, validation)
    return tensors(net), [record.to_json() for record in records]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_a_stream_is_training_from_a_list(shards: Path, workers: int) -> None:
    stream = loader(shards, workers)
    assert is_stream(stream)
    whole = list(loader(shards, workers))
    assert sum(len(labels) for _, labels in whole) == SAMPLES
    recipe = RECIPE if not workers else replace(RECIPE, train_steps=4 * len(whole))
    weights, records = trained(stream, loader(shards), recipe)
    others, other_records = trained(whole, list(loader(shards)), recipe)
    assert same(weights, others)
    assert records == other_records
    assert len(records[0]["metrics"]) > 1
    moved = trained([(x + 0.01, y) for x, y in whole], None, recipe)[0]
    assert not same(weights, moved)


def labels_of(groups: Any) -> list[list[int]]:
    return [[int(y[0]) for _, y in group] for group in groups]


def test_an_epoch_is_what_comes_next() -> None:
    """Four batches of seven an epoch, in steps of two: no batch is left out, and none comes twice in a reading."""
    given = [(torch.zeros(2, 1), torch.full((2,), number)) for number in range(7)]
    stream = counted(given)[0]
    data = Batches(stream, accumulate=2, samples=8)
    assert (data.length, data.steps) == (4, 2)
    seen = [number for _ in range(6) for group in labels_of(data) for number in group]
    assert seen == list(islice(cycle(range(7)), 24))
    assert labels_of(Batches(given, 2, 8)) == labels_of(Batches(given, 2, 8)) == [[0, 1], [2, 3]]


class Endless:
    """A loader without a length or an end."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[Batch]:
        return cycle(batches(3))


def test_a_stream_without_an_end() -> None:
    data = Endless()
    weights, records = trained(data)
    assert len(records) == 3
    assert data.epochs[-1] == 0
    assert not same(weights, tensors(supernet(dropout=0.4)))


def test_what_a_stream_must_say() -> None:
    def fit(data: Any, **options: Any) -> Any:
        return Trainer(supernet(), [Stage()], plain(**options)).fit(data)

    with pytest.raises(
        TrainingError, match=r"no length, .* give the number of samples of an epoch \(Recipe\(train_steps=\.\.\.\)\)"
    ):
        fit(counted(batches())[0])
    with pytest.raises(TrainingError, match=r"the training loader gave 0 batches; give at least one batch"):
        fit(counted([])[0], train_steps=8)
    with pytest.raises(TrainingError, match="is an iterator, which can be read only once: give the object behind it"):
        fit(iter(batches()), train_steps=8)
    assert Batches(counted(batches())[0]).calibration(8, 0), "nobody asked for an epoch"
    assert Epochs.of(10, counted(batches())[0], [1, 4]) == Epochs((1, 4), 2, 16)


def test_processes_share_a_stream() -> None:
    """Each has its part of every batch of an epoch, and an epoch is as long as that of one process."""
    given = batches(5, 6)
    parts = [Batches(Share(counted(given)[0], rank, 2), samples=18) for rank in range(2)]
    assert [one.length for one in parts] == [3, 3]
    whole = Batches(counted(given)[0], samples=18)
    for _ in range(2):
        for (left,), (right,), (both,) in zip(*parts, whole, strict=True):
            assert len(left[1]) == len(right[1]) == 3
            assert torch.equal(torch.cat([left[0], right[0]]), both[0])


# Interrupted.


class Stop(Exception):
    """Interrupts a training in this process."""


def run(
    directory: Path, make: Callable[[], Any], stops: Sequence[int] = (), samples: int = SAMPLES
) -> dict[str, Tensor]:
    """Train, interrupted after the steps `stops`; each part has a loader and random numbers of its own."""
    recipe = replace(RECIPE, train_steps=samples)
    for number, stop in enumerate((*stops, None)):
        net = supernet(dropout=0.4)
        resume_cases.disturb(50 + number if (directory / "last").is_dir() else 1)

        def note(progress: Progress, stop: int | None = stop) -> None:
            if progress.step == stop:
                raise Stop

        trainer = Trainer(net, STAGES, recipe, directory=directory, checkpoint_every=2, on_step=note)
        try:
            trainer.fit(make(), resume=True)
        except Stop:
            continue
    return tensors(net)


@pytest.mark.parametrize("samples", [SAMPLES, 12, 28])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_it_ends_to_the_bit_where_it_would_have(
    tmp_path: Path, shards: Path, workers: int, samples: int
) -> None:
    def make() -> DataLoader[Any]:
        return loader(shards, workers, moved=True)

    whole = run(tmp_path / "whole", make, samples=samples)
    assert same(run(tmp_path / "parts", make, [1, 4, 7], samples), whole)
    other = run(tmp_path / "other", lambda: loader(shards, workers), [1, 4, 7], samples)
    assert not same(other, whole)


def test_killed_it_ends_to_the_bit_where_it_would_have(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(resume_cases.__file__).parent))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["resume_cases"])
    codes = []
    for name, kill in (("whole", None), ("killed", ("step", 7)), ("killed", ("write", 3)), ("killed", None)):
        process = context.Process(target=train, args=(tmp_path / name, kill, max(1, len(codes)), shards))
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes == [0, -signal.SIGKILL, -signal.SIGKILL, 0]
    files = [(tmp_path / name / "final.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]


def test_a_stream_of_other_data_is_noticed(tmp_path: Path) -> None:
    def make(count: int) -> DataLoader[Any]:
        first, *others = batches(10, 4)
        return counted([first, *((x[:count], y[:count]) for x, y in others)])[0]

    with pytest.raises(
        TrainingError, match=r"it returned 4 batches with 16 samples before, and now 4 with 13; resume with"
    ):
        run(tmp_path, iter([make(4), make(3)]).__next__, [4], 40)


# Memory, and evaluations.


def test_no_more_than_a_few_batches_are_in_memory() -> None:
    given = batches(40, 4)
    (data, stream), (validation, held_out) = counted(given), counted(given)
    Trainer(supernet(), STAGES, RECIPE).fit(data, validation)
    assert stream.most <= 2 + 2, "two of them are kept for BatchNorm statistics"
    assert held_out.most <= 2
    assert held_out.readings == 3 * 5, "each sub-network that is watched reads them, after each epoch"
    kept = list(data)
    assert stream.most >= len(kept) == 40, "what keeps them is noticed"


def test_evaluations_of_a_stream_are_those_of_a_list() -> None:
    net, given = supernet(), batches(12, 4)
    subnets = [net.space.sample(number) for number in range(4)]
    (calibration, first), (validation, second) = counted(given), counted(given)
    streamed, listed = Evaluator(net, calibration, validation), Evaluator(net, given, given)
    wanted = [listed.evaluate(one) for one in subnets]
    assert [streamed.evaluate(one) for one in subnets] == wanted
    assert streamed.evaluate_many(subnets) == listed.evaluate_many(subnets) == wanted
    assert max(first.most, second.most) <= 2
    assert (first.readings, second.readings) == (4 + 1, 4 + 1), "prepared and measured together"
    (validation, third) = counted(given)
    own = Evaluator(net, given, validation, lambda module, data: 1 - accuracy(module, data))
    missed = [1 - one["accuracy"] for one in wanted]
    assert [one["accuracy"] for one in own.evaluate_many(subnets)] == missed
    assert third.readings == 4, "a metric reads as it likes: each by itself"
    with pytest.raises(RacingError, match="which a stream does not allow: search without racing"):
        streamed.evaluate_many(subnets, {subnets[0]: Bar(0.5)})
