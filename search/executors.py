"""Settings of parallel evaluation: processes of this machine, or the workers of a Dask scheduler."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import suppress
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from bnas.passes.settings import Count, settings

from .errors import SearchError, WorkerError
from .workers import Workers

LEAVING = 10.0
"""Seconds to wait for a scheduler to close the connection."""


@settings(SearchError, kw_only=True)
class ExecutorSettings:
    """Settings of the processes that evaluate sub-networks, `processes` or `dask`; they do not change the result.

    Raises:
        SearchError: names every setting that is out of its bounds.
    """

    processes: Count | None = None
    """Processes of this machine, which share its cores."""
    dask: Annotated[str | None, Field(validate_default=True)] = None
    """Address of a Dask scheduler, such as "tcp://10.0.0.1:8786" (`bnas[dask]`). Its workers need bnas, and see the
    folder of the run and the files of its configuration under the same names."""
    chunk: Count = 5
    """Number of sub-networks sent together; more than 1 is faster, since equal layers are computed once."""

    @field_validator("dask")
    @classmethod
    def _one_kind(cls, dask: str | None, known: ValidationInfo) -> str | None:
        if "processes" in known.data and (dask is None) == (known.data["processes"] is None):
            raise ValueError("give either processes or dask")
        if dask is not None and "://" not in dask:
            raise ValueError("must be the address of a scheduler, such as tcp://10.0.0.1:8786")
        return dask

    def workers(self) -> Workers:
        """Return workers for `bnas.search.SearchSettings`; they create the executor at first use, and if it breaks."""
        return Workers(self._made, self.chunk)

    def _made(self) -> Executor:
        if self.dask is not None:
            return _DaskPool(self.dask)
        assert self.processes is not None
        threads = max(1, (os.cpu_count() or 1) // self.processes)
        context = multiprocessing.get_context("spawn")  # a copy of a process with threads may hang
        return ProcessPoolExecutor(self.processes, context, _begin, (threads,))


def _begin(threads: int) -> None:
    """Initialise a worker process."""
    import torch

    torch.set_num_threads(threads)


class _DaskPool(Executor):
    """The workers of a scheduler; the connection ends with `shutdown`."""

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise WorkerError("Dask is not installed: pip install 'bnas[dask]'") from error
        try:
            connect: Any = Client
            self._client = connect(address, set_as_default=False)
        except (OSError, ValueError) as error:
            raise WorkerError(
                f"no Dask scheduler can be reached at {address} ({error}); start it, then resume the search"
            ) from error
        self._pool: Executor = self._client.get_executor(retries=0)

    @property
    def gone(self) -> bool:
        """Whether the client has given up reaching the scheduler. Futures that it got meanwhile never finish."""
        return bool(self._client.status == "closed")

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a call, as for any `concurrent.futures.Executor`."""
        return self._pool.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Disconnect; the scheduler drops the tasks of this client and keeps its workers for other clients."""
        if wait and not cancel_futures:
            self._pool.shutdown()
        with suppress(TimeoutError, asyncio.TimeoutError):  # one class from Python 3.11 on
            self._client.close(timeout=LEAVING)
