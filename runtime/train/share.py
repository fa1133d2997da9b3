"""One loader for several processes: each has its part of every batch, and together they have what one would have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from bnas.runtime.evaluate.evaluation import Batch, Loader
from bnas.runtime.nested import as_batch, batch_size, map_tensors

from . import parallel, random_state


def shared_out(loader: Loader, processes: int | None = None) -> Loader:
    """The part of this process in a loader that all processes made alike; the loader itself where one works alone.

    A loader with a `DistributedSampler` is such a part already. `processes` is by default how many work together.
    """
    count = parallel.world() if processes is None else processes
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    if count == 1 or any(isinstance(one, DistributedSampler) for one in samplers):
        return loader
    return Share(loader, parallel.rank(), count)


def bounds(size: int, rank: int, processes: int) -> tuple[int, int]:
    """Where the part of a process begins and ends in a batch; sizes of parts differ by one at most.

    Where some process would have fewer than two samples, all have the whole batch: their average is the same, and
    BatchNorm needs two.
    """
    if size < 2 * processes:
        return 0, size
    least, more = divmod(size, processes)
    begin = rank * least + min(rank, more)
    return begin, begin + least + (rank < more)


class Share:
    """The part of one process in every batch of a loader.

    All processes must make the loader alike, and start each epoch from the same random numbers (`Batches` sees to
    that). The order of the samples is then the same for all, and that of one process without others. What transforms
    and dropout draw differs between processes. Of a `DataLoader` with a data set of known size, a process loads its own
    samples only; any other loader is iterated whole by each process.

    Attributes that are not explained here are those of the loader.
    """

    def __init__(self, whole: Loader, rank: int, processes: int) -> None:
        self.whole, self.rank, self.processes = whole, rank, processes
        self._numbers = torch.Generator()
        self._own = _loading_own(whole, self) if _is_plain(whole) else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["whole"], name)

    def __len__(self) -> int:
        return len(self.whole)  # type: ignore[arg-type]  # TypeError, as of any loader without a length

    def __iter__(self) -> Iterator[Batch]:
        seed = self._next_seed()
        if self._own is None:
            return self._cut(seed)
        self._numbers.manual_seed((seed + self.rank) % 2**63)
        return iter(self._own)

    def _next_seed(self) -> int:
        """The number that the loader is going to draw next: the same on all processes."""
        generator, source = torch.Generator(), getattr(self.whole, "generator", None)
        given = isinstance(source, torch.Generator) and source.device.type == "cpu"
        generator.set_state(source.get_state() if given else torch.get_rng_state())  # type: ignore[union-attr]
        return _drawn(generator)

    def places(self) -> Iterator[Sequence[int]]:
        """The samples of this process in each batch of an epoch."""
        loader: Any = self.whole
        seed = self._next_seed()
        if self.rank > 0:
            seed = _drawn(loader.generator)  # what the loader itself draws for its workers, on process 0
        batches = list(islice(loader.batch_sampler, len(loader)))  # at once: later draws are of this process alone
        if self.rank > 0:
            random_state.part_ways(self.rank, seed)
        for batch in batches:
            begin, end = bounds(len(batch), self.rank, self.processes)
            yield batch[begin:end]

    def _cut(self, seed: int) -> Iterator[Batch]:
        """The batches of the whole loader, cut: it draws from random numbers that nothing else draws from."""
        numbers = random_state.Numbers()
        if self.rank > 0:
            random_state.part_ways(self.rank, seed)
        with numbers.used():
            batches = iter(self.whole)
        while True:
            with numbers.used():
                batch = next(batches, numbers)
            if batch is numbers:
                return
            yield _part(batch, self.rank, self.processes)


def _drawn(generator: torch.Generator | None) -> int:
    """As a `DataLoader` draws the seed of its workers."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


def _is_plain(loader: Any) -> bool:
    """Whether it is a `DataLoader` that asks a data set for the samples that a sampler names."""
    known = type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset)
    return known and loader.batch_sampler is not None


class _Places:
    """The batch sampler of one process."""

    def __init__(self, share: Share) -> None:
        self.share = share

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[Sequence[int]]:
        return self.share.places()


WORKING = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
    "prefetch_factor", "persistent_workers",
)  # fmt: skip
"""How a `DataLoader` loads samples, whichever those are."""


def _loading_own(loader: Any, share: Share) -> DataLoader[Any]:
    """The same loader with the samples of this process."""
    options = {name: getattr(loader, name) for name in WORKING}
    generator = share._numbers if share.rank > 0 else loader.generator
    return DataLoader(loader.dataset, batch_sampler=_Places(share), generator=generator, **options)  # type: ignore[arg-type]


def _part(batch: Any, rank: int, processes: int) -> Any:
    """The part of a process in a batch: of all tensors that have its samples along their first axis."""
    pair = batch if isinstance(batch, dict) else as_batch(batch)
    size = batch_size(batch)
    begin, end = bounds(size, rank, processes)
    return map_tensors(pair, lambda one: one[begin:end] if one.ndim and len(one) == size else one)
