"""Share one loader between processes: each gets a part of every batch, and together they get the whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from bnas.runtime.evaluate.evaluation import Batch, Loader
from bnas.runtime.nested import batch_size, samples_of

from . import parallel, random_state


def shared_out(loader: Loader, processes: int | None = None) -> Loader:
    """Return this process's part of a loader that all processes created in the same way; alone, the loader itself.

    A loader with a `DistributedSampler` is returned unchanged. `processes` is by default the number of processes that
    work together.
    """
    count = parallel.world() if processes is None else processes
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    if count == 1 or any(isinstance(one, DistributedSampler) for one in samplers):
        return loader
    return Share(loader, parallel.rank(), count)


def bounds(size: int, rank: int, processes: int) -> tuple[int, int]:
    """Return start and end of a process's part of a batch. The sizes of the parts differ by at most one.

    If a part would have fewer than two samples, every process gets the whole batch: the average gradient is the same,
    and BatchNorm needs two samples.
    """
    if size < 2 * processes:
        return 0, size
    least, more = divmod(size, processes)
    begin = rank * least + min(rank, more)
    return begin, begin + least + (rank < more)


class Share:
    """One process's part of every batch of a loader.

    All processes must create the loader in the same way and start each epoch with the same random numbers (`Batches`
    does this). The order of samples is then the same in all processes, and the same as in a single-process training.
    Random numbers of transforms and dropout differ between processes. For a `DataLoader` with a data set of known size,
    each process loads only its own samples; every other loader is iterated completely by each process. A batch that
    cannot be divided (`samples_of`) is used by all processes, so the average gradient stays the same.

    All other attributes are those of the loader.
    """

    def __init__(self, whole: Loader, rank: int, processes: int) -> None:
        self.whole, self.rank, self.processes = whole, rank, processes
        self._numbers = torch.Generator()
        self._own = _loading_own(whole, self) if _is_plain(whole) else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["whole"], name)

    def __len__(self) -> int:
        return len(self.whole)  # type: ignore[arg-type]  # raises TypeError if the loader has no length

    def __iter__(self) -> Iterator[Batch]:
        seed = self._next_seed()
        if self._own is None:
            return self._cut(seed)
        self._numbers.manual_seed((seed + self.rank) % 2**63)
        return iter(self._own)

    def _next_seed(self) -> int:
        """Return the seed that the loader will draw next; it is the same in all processes."""
        generator, source = torch.Generator(), getattr(self.whole, "generator", None)
        given = isinstance(source, torch.Generator) and source.device.type == "cpu"
        generator.set_state(source.get_state() if given else torch.get_rng_state())  # type: ignore[union-attr]
        return _drawn(generator)

    def places(self) -> Iterator[Sequence[int]]:
        """Yield the indices of this process's samples in each batch of an epoch."""
        loader: Any = self.whole
        seed = self._next_seed()
        if self.rank > 0:
            seed = _drawn(loader.generator)  # the number that the loader draws for its workers, of process 0
        batches = list(islice(loader.batch_sampler, len(loader)))  # now: later draws differ between processes
        if self.rank > 0:
            random_state.part_ways(self.rank, seed)
        for batch in batches:
            begin, end = bounds(len(batch), self.rank, self.processes)
            yield batch[begin:end]

    def _cut(self, seed: int) -> Iterator[Batch]:
        """Iterate over the whole loader, with a separate stream of random numbers, and take a part of each batch."""
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
    """Draw a number in the way a `DataLoader` draws the seed of its workers."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


def _is_plain(loader: Any) -> bool:
    """Whether `loader` is a `DataLoader` whose sampler gives indices into a data set."""
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
"""Arguments of a `DataLoader` that do not depend on which samples it loads."""


def _loading_own(loader: Any, share: Share) -> DataLoader[Any]:
    """Return a `DataLoader` like `loader` that loads only this process's samples."""
    options = {name: getattr(loader, name) for name in WORKING}
    generator = share._numbers if share.rank > 0 else loader.generator
    return DataLoader(loader.dataset, batch_sampler=_Places(share), generator=generator, **options)  # type: ignore[arg-type]


def _part(batch: Any, rank: int, processes: int) -> Any:
    """Return a process's part of a batch; the whole batch if it cannot be divided."""
    part = samples_of(batch, slice(*bounds(batch_size(batch), rank, processes)))
    return batch if part is None else part
