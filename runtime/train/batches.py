"""The batches of an epoch: grouped into steps, limited to a number of samples, and resumable in the middle.

A *reading* is one pass through a loader. An epoch is a reading or, if its samples are limited, the beginning of one. An
epoch of a stream takes the next samples: when a reading ends, the next one begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from bnas.runtime.errors import CheckpointError, TrainingError
from bnas.runtime.evaluate.evaluation import Batch, Loader, first_samples
from bnas.runtime.feed import FILL, drawn, is_stream, length_of
from bnas.runtime.nested import batch_size

from . import parallel, random_state
from .share import Share

SOURCE = "the training data"
SAME = "resume with the data that the training started with, or start again in another folder"


class Batches:
    """The training data, epoch by epoch.

    Args:
        loader: Batches of (inputs, targets); inputs are a tensor, or a tuple or dict of tensors. A loader with
            ``state_dict`` and ``load_state_dict`` (torchdata's StatefulDataLoader) restores its position itself.
        accumulate: Number of batches in an optimizer step.
        samples: Number of samples after which an epoch ends (in whole batches); None for all.

    Raises:
        TrainingError: The loader is empty, or is an iterator.
    """

    def __init__(self, loader: Loader, accumulate: int = 1, samples: int | None = None) -> None:
        if isinstance(loader, Iterator):
            raise TrainingError(
                "the training loader is an iterator, which can be read only once: give the object behind it, such as "
                "a DataLoader, a list of batches, or a class with __iter__"
            )
        self.loader, self.accumulate, self.stream = loader, accumulate, is_stream(loader)
        self._stateful: Any = loader if hasattr(loader, "load_state_dict") else None
        self._whole = loader.whole if isinstance(loader, Share) else loader
        """What all processes draw alike."""
        known = length_of(loader)
        if known == 0:
            raise TrainingError(f"the training loader is empty; {FILL}")
        if samples is not None:
            wanted = -(-samples // batch_size(self._first_of(self._whole)))
            known = wanted if known is None or self.stream else min(known, wanted)
        self._length = known
        self.epoch = 0
        self.taken = 0
        """Steps of this epoch so far."""
        self._reading: Iterator[Batch] | None = None
        self._readings = 0
        """Readings before this one."""
        self._read = 0
        """Batches of this reading so far."""
        self._samples: int | None = 0
        """Samples of them; None where a checkpoint does not say."""
        self._start: dict[str, Any] | None = None

    @property
    def length(self) -> int:
        """Number of batches in an epoch.

        Raises:
            TrainingError: The loader has no length, and the number of samples is not set.
        """
        if self._length is None:
            raise TrainingError(
                "the training loader has no length, and steps and learning rates depend on it: give the number of "
                "samples of an epoch (Recipe(train_steps=...)), or a loader with __len__"
            )
        return self._length

    @property
    def steps(self) -> int:
        """Number of steps in an epoch; raises `TrainingError` if `length` does."""
        return -(-self.length // self.accumulate)

    @property
    def longest(self) -> int | None:
        """Largest possible number of steps in an epoch; None for a stream without a length."""
        return None if self._length is None else self.steps

    def first(self) -> Batch:
        """Return the first batch and restore all random states. Do not call it in the middle of an epoch."""
        return self._first_of(self.loader)

    def _first_of(self, loader: Loader) -> Batch:
        with random_state.undisturbed(self.loader), self._put_back():
            for batch in drawn(loader, SOURCE):
                return batch  # type: ignore[no-any-return]
        raise self._too_few(0)

    def calibration(self, samples: int, seed: int) -> list[Batch]:
        """Return the first batches with `samples` samples and restore all random states; not in the middle of an epoch.

        They are the first batches of a loader whose generators start at `seed`. All processes get the whole batches, of
        which each trains on a part.
        """
        with random_state.undisturbed(self.loader, seed), self._put_back():
            _set_epoch(self.loader, 0)
            return first_samples(self._whole, samples, SOURCE)

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        """Afterwards, a loader that knows its position is where it was."""
        place = self._stateful and self._stateful.state_dict()
        try:
            yield
        finally:
            if self._stateful is not None:
                self._stateful.load_state_dict(place)

    def __iter__(self) -> Iterator[list[Batch]]:
        """Iterate over the remaining steps of this epoch; each step is a list of batches.

        Raises:
            TrainingError: The loader returns fewer batches than its length, or a stream returns none.
        """
        batches = self._batches()
        while self.taken < self.steps:
            wanted = min(self.accumulate, self.length - self.taken * self.accumulate)
            group = list(islice(batches, wanted))
            if len(group) < wanted:
                raise self._too_few(self._read)
            self.taken += 1
            yield group
        self.epoch, self.taken = self.epoch + 1, 0
        if not self.stream:
            self._end_reading()

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches from the current position on; a stream is read repeatedly."""
        while True:
            if self._reading is None:
                self._reading = self._skipped() if self._read else self._begun()
            for batch in self._reading:
                self._read += 1
                self._samples = None if self._samples is None else self._samples + batch_size(batch)
                yield batch
            if not self.stream or not self._read:
                return
            self._end_reading()

    def _end_reading(self) -> None:
        self._reading, self._readings, self._read, self._samples = None, self._readings + 1, 0, 0

    def _too_few(self, seen: int) -> TrainingError:
        if (known := length_of(self.loader)) is None:
            return TrainingError(f"the training loader gave {seen} batches; {FILL}")
        told = "its __len__ must return the number of batches that it gives"
        return TrainingError(f"the training loader gave {seen} batches; its length says {known}: {told}")

    def _begun(self) -> Iterator[Batch]:
        """Begin a reading. Processes that share batches draw them with the same random numbers."""
        if isinstance(self.loader, Share):
            first = parallel.from_first(random_state.capture(self.loader))
            random_state.restore(self.loader, {**first, "cuda": []})
        self._start = random_state.capture(self.loader)
        _set_epoch(self.loader, self._readings)
        return drawn(self.loader, SOURCE)

    def _skipped(self) -> Iterator[Batch]:
        """Continue a reading in its middle: batches that were taken already are drawn again and skipped."""
        seen = self._read
        if self._stateful is not None:
            return drawn(self.loader, SOURCE, seen)
        now, start = random_state.capture(self.loader), self._start
        assert start is not None
        random_state.restore(self.loader, start)
        _set_epoch(self.loader, self._readings)
        batches = drawn(self.loader, SOURCE)
        samples = [batch_size(batch) for batch in islice(batches, seen)]
        if len(samples) != seen or self._samples not in (None, sum(samples)):
            raise TrainingError(
                f"the training loader has changed: in epoch {self._readings} it returned {seen} batches with "
                f"{self._samples} samples before, and now {len(samples)} with {sum(samples)}; {SAME}"
            )
        self._samples = sum(samples)
        random_state.restore(self.loader, now)
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data and the states of all generators, for a JSON file."""
        now, place = random_state.capture(self.loader), self._stateful and self._stateful.state_dict()
        return {
            "epoch": self.epoch,
            "taken": self.taken,
            "readings": self._readings,
            "read": self._read,
            "samples": self._samples,
            "sizes": self._sizes,
            "start": self._start,
            "now": now,
            "loader": place,
        }

    @property
    def _sizes(self) -> dict[str, int]:
        """Return the sizes of the loader: samples of its data, batches, samples of a batch."""
        sizes = {
            "samples": length_of(getattr(self.loader, "dataset", None)),
            "batches": length_of(self.loader),
            "batch_size": getattr(self.loader, "batch_size", None),
        }
        return {name: size for name, size in sizes.items() if isinstance(size, int)}

    def check_same(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Refuse to resume with a loader of another size: no uninterrupted training has such a result.

        Raises:
            CheckpointError: The loader has another size than when the `states` of all processes were saved.
        """
        for name, size in states[min(parallel.rank(), len(states) - 1)].get("sizes", {}).items():
            now = self._sizes.get(name, "unknown")
            if now != size:
                told = f"{name.replace('_', ' ')}: {size} when it was saved, {now} now"
                raise CheckpointError(f"the training loader has changed ({told}); {SAME}")

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue at the position that all processes saved with `state_dict`.

        The number of processes may have changed. Each process then draws the same batches as before and takes a
        different part of them.
        """
        rank = parallel.rank()
        if len(states) == parallel.world():
            self.load_state_dict(states[rank])
            return
        self.load_state_dict({**states[0], "samples": None})
        if rank > 0:
            random_state.part_ways(rank)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of `state_dict`."""
        self.epoch, self.taken, self._start = state["epoch"], state["taken"], state["start"]
        self._readings = state.get("readings", self.epoch)
        self._read = state.get("read", self.taken * self.accumulate)
        self._samples, self._reading = state.get("samples"), None
        if self._stateful is not None:
            self._stateful.load_state_dict(state["loader"])
            if not self.taken and not self.stream and self.length < (length_of(self.loader) or 0):
                iter(self.loader)  # the rest of a reading after a limited epoch; the next iteration starts a new one
        random_state.restore(self.loader, state["now"])


def _set_epoch(loader: Loader, reading: int) -> None:
    """Set the epoch of a `DistributedSampler` or of a streamed data set, which shuffle by the number of the epoch."""
    for part in ("sampler", "dataset"):
        told: Any = getattr(loader, part, None)
        if hasattr(told, "set_epoch"):
            told.set_epoch(reading)
