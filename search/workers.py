"""Evaluation by other processes or machines, through any `concurrent.futures.Executor`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from .errors import MetricError, SearchError, WorkerError
from .evaluation import Measures, Outcome

if TYPE_CHECKING:
    from bnas.passes import Subnet
    from bnas.runtime.evaluate.together import Bar

RETRIES = 2
"""Number of further attempts for a candidate whose worker died."""

LOOK = 2.0
"""Seconds between two checks whether the executor still exists."""

MADE = 4
"""Number of evaluators that a process keeps for later calls of `Remote`, the most recently used ones."""


@dataclass(frozen=True)
class Remote:
    """An evaluator that each worker creates for itself, once; only its recipe is sent.

    ``Remote(make_evaluator, "folder")`` stands for ``make_evaluator("folder")``: a function of a module that the
    workers can import, and arguments that can be pickled and hashed.
    """

    make: Callable[..., Any]
    arguments: tuple[Hashable, ...]

    def __init__(self, make: Callable[..., Any], *arguments: Hashable) -> None:
        object.__setattr__(self, "make", make)
        object.__setattr__(self, "arguments", arguments)

    def evaluate_many(self, subnets: Sequence[Subnet], bars: Mapping[Subnet, Bar] | None = None) -> list[Any]:
        """Return values or an error for each sub-network, from the evaluator of this process.

        Raises:
            WorkerError: The evaluator cannot be created in this process, whatever the sub-network is.
        """
        return list(Measures(self._here(), bars=bars).given(subnets))

    def __call__(self, subnet: Subnet) -> Any:
        """Call the object of this process, as the measure of a single objective.

        Raises:
            WorkerError: as `evaluate_many`.
        """
        return self._here()(subnet)

    def _here(self) -> Any:
        try:
            return _made(self)
        except Exception as error:
            name = f"{self.make.__module__}.{self.make.__qualname__}"
            raise WorkerError(
                f"a worker on {socket.gethostname()} cannot create the evaluator by {name}{self.arguments}: "
                f"{type(error).__name__}: {error}; fix the cause and resume the search (no evaluation is lost)"
            ) from error


@lru_cache(maxsize=MADE)
def _made(remote: Remote) -> Any:
    return remote.make(*remote.arguments)


class Workers:
    """Evaluate sub-networks on an executor, and retry those whose worker died.

    A pool of processes cannot be used any more once one of its processes has died. Give a function that creates a pool,
    so that bnas can create a new one. The rest of the generation is then evaluated one at a time, to find the
    sub-network that kills workers.
    """

    def __init__(self, executor: Executor | Callable[[], Executor], chunk: int = 1) -> None:
        """Set up workers.

        Args:
            executor: An executor, which stays open; or a function that creates one, which `close` shuts down.
            chunk: Number of sub-networks that are sent together; more than 1 helps if evaluating together is cheaper.

        Raises:
            SearchError: `chunk` is below 1.
        """
        if chunk < 1:
            raise SearchError(f"chunk {chunk}: must be a whole number, at least 1")
        self._chunk = chunk
        self._make = None if isinstance(executor, Executor) else executor
        self._executor = executor if isinstance(executor, Executor) else None
        self._broken, self._last = self._executor is None, ""

    def close(self) -> None:
        """Shut the executor down if bnas created it; the next search creates another one."""
        if self._make is not None and self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor, self._broken = None, True

    def __call__(self, measures: Measures, subnets: Sequence[Subnet]) -> Iterator[tuple[int, Outcome]]:
        """Yield the position and outcome of each sub-network as soon as it is known."""
        left = dict(enumerate(subnets))
        if left:
            self._mend()
        for places, outcomes in self._together(measures, dict(left)):
            for place, outcome in zip(places, outcomes, strict=True):
                del left[place]
                yield place, outcome
        for place, subnet in left.items():
            yield place, self._alone(measures, subnet)

    def _together(self, measures: Measures, left: dict[int, Subnet]) -> Iterator[tuple[list[int], list[Outcome]]]:
        """Yield the outcomes of the sub-networks whose worker survived."""
        places = iter(list(left))
        futures: dict[Future[list[Outcome]], list[int]] = {}
        for chunk in iter(lambda: list(islice(places, self._chunk)), []):
            with self._noticed():
                futures[self._open.submit(measures, [left[place] for place in chunk])] = chunk
        with self._noticed():
            for future in self._ended(futures):
                outcomes: list[Outcome] = []
                with self._noticed():
                    outcomes = future.result()
                if outcomes:
                    yield futures[future], outcomes

    def _ended(self, futures: Iterable[Future[list[Outcome]]]) -> Iterator[Future[list[Outcome]]]:
        """Yield each future when it finishes.

        Futures of a Dask client never finish if they were submitted after the scheduler had disappeared. An executor
        can report this by an attribute `gone`.

        Raises:
            BrokenExecutor: The executor reports that it is gone.
        """
        left = set(futures)
        while left:
            done, left = wait(left, LOOK, FIRST_COMPLETED)
            yield from done
            if left and not done and getattr(self._open, "gone", False):
                raise BrokenExecutor("the connection to the scheduler was lost")

    @property
    def _open(self) -> Executor:
        assert self._executor is not None
        return self._executor

    def _alone(self, measures: Measures, subnet: Subnet) -> Outcome:
        for _ in range(1 + RETRIES):
            self._mend()
            with self._noticed():
                return next(self._ended([self._open.submit(measures, [subnet])])).result()[0]
        return Outcome({}, f"no worker returned it in {1 + RETRIES} attempts: {self._last}")

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        """Record a failure of a worker, which can be retried; raise all other errors."""
        try:
            yield
        except (MetricError, WorkerError):
            raise
        except Exception as error:
            self._broken |= isinstance(error, BrokenExecutor | CancelledError)
            self._last = f"{type(error).__name__}: {error}"

    def _mend(self) -> None:
        """Create a new executor if this one is broken."""
        if not self._broken:
            return
        if self._make is None:
            raise WorkerError(
                "a worker died and broke its executor. Give a function that makes the executor, so that bnas can make "
                f"a new one, and run the search again (no evaluation is lost): {self._last}"
            )
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor, self._broken = self._make(), False
