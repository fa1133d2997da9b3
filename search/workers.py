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
"""How often a candidate whose worker died is tried again."""

LOOK = 2.0
"""Seconds after which a wait looks whether the executor is still there."""

MADE = 4
"""So many evaluations that `Remote` made stay with a process: those that were asked for last."""


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
        """Values, or an error, for each sub-network, by what was made here.

        Raises:
            WorkerError: it cannot be made here, which says nothing about a sub-network.
        """
        return list(Measures(self._here(), bars=bars).given(subnets))

    def __call__(self, subnet: Subnet) -> Any:
        """What was made here, called: a measure of a single objective.

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
            executor: an executor, which is left open; or a function that makes one, which is shut down by `close`.
            chunk: so many sub-networks are sent together; more than 1 pays where evaluating together is cheaper.

        Raises:
            SearchError: the chunk is empty.
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
        """Yield each place and its outcome as it comes in."""
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
        """The outcomes of those whose worker lived."""
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
        """Each one when it ends.

        What is given to a client of Dask while it looks for a scheduler that is gone never ends: such an executor has
        an attribute `gone`.

        Raises:
            BrokenExecutor: the executor is gone.
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
        """Take note of what is the worker's fault; what no worker can mend is raised."""
        try:
            yield
        except (MetricError, WorkerError):
            raise
        except Exception as error:
            self._broken |= isinstance(error, BrokenExecutor | CancelledError)
            self._last = f"{type(error).__name__}: {error}"

    def _mend(self) -> None:
        """Make another executor where this one is broken."""
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
