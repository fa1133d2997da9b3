"""Several processes in one run: process 0 leads and writes files, the others do the parts that it orders."""

from __future__ import annotations

import datetime
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from bnas.passes.errors import BnasError
from bnas.runtime import ParallelError
from bnas.runtime.train import parallel

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

LONGEST = datetime.timedelta(days=7)
"""Longest wait for other processes: process 0 may measure latencies for hours. An ended process is noticed at once."""
PROMPT = 2.0
"""Seconds that process 0 waits for the final error message of another process."""
PATIENT = datetime.timedelta(minutes=10)
"""Longest time that another process waits for process 0, which may be busy, to read its error."""

# The process group.


def started_together() -> bool:
    """Whether torchrun (or a program that sets the same variables) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


@contextmanager
def gathered() -> Iterator[Store | None]:
    """Inside, there is the process group of torchrun's variables; yield a store for messages if the group breaks.

    An existing group is used and not destroyed; its store is unknown, so None is yielded.
    """
    if parallel.processes() > 1 or not started_together():
        yield None
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    whole, rank, size = next(rendezvous("env://"))
    store, group = PrefixStore("bnas-words", whole), PrefixStore("bnas-group", whole)
    dist.init_process_group(_backend(), store=group, rank=rank, world_size=size, timeout=LONGEST)
    try:
        yield store
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _backend() -> str:
    """Return the backend: gloo for values, NCCL for GPU tensors; each process of a machine has its own GPU."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if not (torch.cuda.is_available() and dist.is_nccl_available() and local < torch.cuda.device_count()):
        return "gloo"
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


# Orders of process 0 to the others.


@dataclass(frozen=True)
class Order:
    """Work that all processes do together: a method of the `Assistant`, with its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class End:
    """The last order: the run is finished."""

    failed: bool
    result: Any = None
    """The return value of `assist`."""


_leads = False
"""Whether this is process 0 of several, whose orders the others wait for."""
_joined = False
"""Whether all processes are working on the same order."""


def leads() -> bool:
    """Whether other processes wait for the orders of this one."""
    return _leads


def size() -> int:
    """Return the number of processes of this run."""
    return parallel.processes() if _leads else 1


def ask(name: str, **arguments: Any) -> None:
    """Order the other processes to call a method of their `Assistant`; does nothing in a run of one process."""
    if _leads:
        with parallel.apart(False):
            parallel.from_first(Order(name, arguments))


@contextmanager
def joint(name: str, **arguments: Any) -> Iterator[None]:
    """Inside, all processes work together on the order `name`."""
    global _joined
    if not _leads:
        yield
        return
    ask(name, **arguments)
    _joined = True
    with parallel.apart(False):
        yield
    _joined = False  # after an error the others are in the middle of the order


# Process 0.


@dataclass
class Lead:
    """Holds the final result of process 0."""

    result: Any = None
    """The value that `assist` returns in the other processes."""


@contextmanager
def leading(store: Store | None = None) -> Iterator[Lead]:
    """Inside, process 0 works alone and the others follow its orders; in a run of one process nothing changes.

    Raises:
        ParallelError: Another process failed; the error has its message.
    """
    global _leads, _joined
    lead = Lead()
    if parallel.world() == 1:
        yield lead
        return
    _leads = True
    try:
        with parallel.apart():
            yield lead
    except BaseException as error:
        _leads = False
        words = _last_words(store) if isinstance(error, ParallelError) else None
        _part(store, failed=True)
        if words is not None:
            raise ParallelError(words) from error
        raise
    else:
        _part(store, result=lead.result)
    finally:
        _leads = _joined = False


def _part(store: Store | None, *, failed: bool = False, result: Any = None) -> None:
    """Tell the other processes to end."""
    if not _joined:
        with suppress(ParallelError):
            parallel.from_first(End(failed, result))
    elif dist.is_initialized():  # they are in the middle of an order and will notice that this process ends
        dist.destroy_process_group()
    if store is not None:
        store.set("heard", "")


def _last_words(store: Store | None) -> str | None:
    """Return the error message of another process that failed, if it left one."""
    if store is None:
        return None
    end = time.monotonic() + PROMPT
    while not store.check(["failure"]):  # written before others can notice, unless it was killed
        if time.monotonic() > end:
            return None
        time.sleep(0.05)
    return str(store.get("failure").decode())


# The other processes.


def assists() -> bool:
    """Whether this is a process other than process 0."""
    return parallel.rank() > 0


def assist(make: Callable[[], object], store: Store | None = None) -> Any:
    """Follow the orders of process 0 until the run is finished; return `Lead.result` of process 0.

    Args:
        make: Creates the object whose methods are ordered, an `Assistant`; called before the first order.
        store: The store of `gathered`, through which process 0 gets the error of this process.

    Raises:
        ParallelError: Process 0 or another process failed.
        Exception: The error of this process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # process 0 shows the same warnings
        try:
            return _obeyed(make)
        except ParallelError:
            raise
        except Exception as error:
            if _heard(error, store):
                raise ParallelError("process 0 reported the reason") from error
            raise


def _obeyed(make: Callable[[], object]) -> Any:
    part: object = None
    while not isinstance(order := parallel.from_first(None), End):
        part = make() if part is None else part
        getattr(part, order.name)(**order.arguments)
    if order.failed:
        raise ParallelError("process 0 failed; see its own message")
    return order.result


def _heard(error: Exception, store: Store | None) -> bool:
    """Send the error to process 0, and wait until it has shown it before this process ends."""
    if store is None:
        return False
    text = str(error) if isinstance(error, BnasError) else "".join(traceback.format_exception(error)).strip()
    try:
        store.set("failure", f"process {parallel.rank()} failed: {text}")
        if dist.is_initialized():
            dist.destroy_process_group()  # the others notice that
        store.wait(["heard"], PATIENT)
    except RuntimeError:
        return False
    time.sleep(1)  # torchrun stops all processes as soon as one has ended
    return True
