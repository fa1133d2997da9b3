"""Streams: data that are read from a folder of shards, or made on the way, and that nobody knows the length of."""

from __future__ import annotations

import io
import random
import tarfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from training_cases import batches

from bnas.runtime.evaluate.evaluation import Batch

SAMPLES = 20
"""Of all shards together."""


def write_shards(folder: Path, count: int = 4) -> Path:
    """Tar files of samples as webdataset has them: ``000.npy`` is an image, ``000.cls`` its class."""
    folder.mkdir()
    ((images, labels),) = batches(1, SAMPLES)
    for shard in range(count):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(shard, SAMPLES, count):
                image = io.BytesIO()
                np.save(image, images[number].numpy())
                for name, data in (
                    (f"{number:03}.npy", image.getvalue()),
                    (f"{number:03}.cls", b"%d" % labels[number]),
                ):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    return folder


class Shards(IterableDataset[Any]):
    """The samples of all shards; each worker reads its own. With `moved` images are moved at random."""

    def __init__(self, folder: Path, moved: bool = False) -> None:
        self.paths, self.moved, self.epoch = sorted(folder.glob("*.tar")), moved, 0

    def set_epoch(self, epoch: int) -> None:
        """The order of the shards is that of this reading."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        order = random.Random(self.epoch).sample(self.paths, len(self.paths)) if self.moved else self.paths
        for path in order[number::workers]:
            with tarfile.open(path) as tar:
                while (entry := tar.next()) is not None:
                    image = torch.from_numpy(np.load(io.BytesIO(_content(tar, entry))))
                    label = int(_content(tar, tar.next()))
                    yield image + (torch.rand(()) + np.random.rand() + random.random() if self.moved else 0), label


def _content(tar: tarfile.TarFile, entry: Any) -> bytes:
    file = tar.extractfile(entry)
    assert file is not None
    return file.read()


def loader(folder: Path, workers: int = 0, moved: bool = False) -> DataLoader[Any]:
    """Batches of four samples; it takes no number from the generator that dropout takes its numbers from."""
    return DataLoader(Shards(folder, moved), 4, num_workers=workers, generator=torch.Generator().manual_seed(3))


class Counted(IterableDataset[Any]):
    """Gives batches one after another, and counts how many of them are in memory."""

    def __init__(self, given: Sequence[Batch]) -> None:
        self.given, self.alive, self.most, self.readings = given, 0, 0, 0

    def __iter__(self) -> Iterator[Batch]:
        self.readings += 1
        for inputs, targets in self.given:
            made = inputs.clone()
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(made, self._gone)
            yield made, targets
            del made

    def _gone(self) -> None:
        self.alive -= 1


def counted(given: Sequence[Batch]) -> tuple[DataLoader[Any], Counted]:
    """A loader of such a stream, and the stream."""
    stream = Counted(given)
    return DataLoader(stream, batch_size=None), stream
