"""The batches of an epoch: grouped into steps, cut at a number of samples, and again from the middle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from bnas.runtime.errors import TrainingError
from bnas.runtime.evaluate.evaluation import Batch, Loader, first_samples
from bnas.runtime.nested import batch_size

from . import random_state


class Batches:
    """The training data, epoch by epoch.

    Args:
        loader: batches of (inputs, targets); inputs are a tensor, or a tuple or dict of them. One with ``state_dict``
            and ``load_state_dict`` (torchdata's StatefulDataLoader) goes on by itself where it was.
        accumulate: batches of one step of the optimizer.
        samples: end an epoch after so many samples (whole batches); all if None.

    Raises:
        TrainingError: the loader is empty or has no length.
    """

    def __init__(self, loader: Loader, accumulate: int = 1, samples: int | None = None) -> None:
        try:
            self.length = len(loader)
        except TypeError:
            raise TrainingError("the training loader has no length; steps and rates are planned by it") from None
        if not self.length:
            raise TrainingError("the training loader is empty")
        self.loader, self.accumulate = loader, accumulate
        self._stateful: Any = loader if hasattr(loader, "load_state_dict") else None
        if samples is not None:
            size = batch_size(self.first())
            self.length = min(self.length, -(-samples // size))
        self.epoch = 0
        self.taken = 0
        """Steps of this epoch so far."""
        self._start: dict[str, Any] | None = None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.length // self.accumulate)

    def first(self) -> Batch:
        """The first batch, drawn without a trace; not in the middle of an epoch."""
        with random_state.undisturbed(self.loader), self._put_back():
            return next(iter(self.loader))

    def calibration(self, samples: int, seed: int) -> list[Batch]:
        """The first batches of `samples` samples, drawn without a trace; not in the middle of an epoch.

        They are those of the first epoch of a loader whose generators start at `seed`.
        """
        with random_state.undisturbed(self.loader, seed), self._put_back():
            _set_epoch(self.loader, 0)
            return first_samples(self.loader, samples)

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        """A loader that knows its place is there again after."""
        place = self._stateful and self._stateful.state_dict()
        try:
            yield
        finally:
            if self._stateful is not None:
                self._stateful.load_state_dict(place)

    def __iter__(self) -> Iterator[list[Batch]]:
        """The steps that are left of this epoch, each a list of batches.

        Raises:
            TrainingError: the loader gives fewer batches than its length.
        """
        batches = self._skipped() if self.taken else self._begun()
        while self.taken < self.steps:
            wanted = min(self.accumulate, self.length - self.taken * self.accumulate)
            group = list(islice(batches, wanted))
            if len(group) < wanted:
                seen = self.taken * self.accumulate + len(group)
                raise TrainingError(f"the training loader gave {seen} batches; its length says {len(self.loader)}")
            self.taken += 1
            yield group
        self.epoch, self.taken = self.epoch + 1, 0

    def _begun(self) -> Iterator[Batch]:
        """The epoch from its beginning."""
        self._start = random_state.capture(self.loader)
        _set_epoch(self.loader, self.epoch)
        return iter(self.loader)

    def _skipped(self) -> Iterator[Batch]:
        """The epoch from its middle: what was taken is drawn again from where the epoch began."""
        if self._stateful is not None:
            return iter(self.loader)
        now, start = random_state.capture(self.loader), self._start
        assert start is not None
        random_state.restore(self.loader, start)
        _set_epoch(self.loader, self.epoch)
        batches = iter(self.loader)
        for _ in islice(batches, self.taken * self.accumulate):
            pass
        random_state.restore(self.loader, now)
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Where the data is, with the states of all generators, for a JSON file."""
        now, place = random_state.capture(self.loader), self._stateful and self._stateful.state_dict()
        return {"epoch": self.epoch, "taken": self.taken, "start": self._start, "now": now, "loader": place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was asked for."""
        self.epoch, self.taken, self._start = state["epoch"], state["taken"], state["start"]
        if self._stateful is not None:
            self._stateful.load_state_dict(state["loader"])
            if not self.taken and self.length < len(self.loader):
                iter(self.loader)  # what is left of an epoch that was cut; the next iteration begins anew
        random_state.restore(self.loader, state["now"])


def _set_epoch(loader: Loader, epoch: int) -> None:
    """A DistributedSampler shuffles by the number of the epoch."""
    sampler: Any = getattr(loader, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
