"""Several processes on one run: process 0 leads it and writes; the others do their part where it asks them to."""

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
"""So long a process waits for the others: process 0 may measure latencies for hours. A process that ends is noticed."""
PROMPT = 2.0
"""Seconds: so long process 0 waits for the last words of another one."""
PATIENT = datetime.timedelta(minutes=10)
"""So long another process waits to be heard: process 0 may be busy by itself."""

# The process group.


def started_together() -> bool:
    """Whether torchrun, or what sets the same variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


@contextmanager
def gathered() -> Iterator[Store | None]:
    """The process group that torchrun's variables describe, and a store for what processes say whose group is broken.

    A group that exists already is used, and left; its store is not known.
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
    """Values travel by gloo, tensors of GPUs by NCCL; each process of a machine has a GPU of its own."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if not (torch.cuda.is_available() and dist.is_nccl_available() and local < torch.cuda.device_count()):
        return "gloo"
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


# What process 0 says to the others.


@dataclass(frozen=True)
class Order:
    """Something that all processes do together: a method of what assists, with its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class End:
    """The run is at its end."""

    failed: bool
    result: Any = None
    """What `assist` returns."""


_leads = False
"""This process is number 0 of several, and the others wait for its orders."""
_joined = False
"""All processes are at work on the same order."""


def leads() -> bool:
    """Whether other processes wait for the orders of this one."""
    return _leads


def size() -> int:
    """How many processes are at work on this run."""
    return parallel.processes() if _leads else 1


def ask(name: str, **arguments: Any) -> None:
    """Have the other processes begin with a method of what assists; nobody is there to ask in a run of one process."""
    if _leads:
        with parallel.apart(False):
            parallel.from_first(Order(name, arguments))


@contextmanager
def joint(name: str, **arguments: Any) -> Iterator[None]:
    """Inside, all processes work together: the others do what `ask` says."""
    global _joined
    if not _leads:
        yield
        return
    ask(name, **arguments)
    _joined = True
    with parallel.apart(False):
        yield
    _joined = False  # after an error the others are somewhere in the middle


# Process 0.


@dataclass
class Lead:
    """What process 0 has to say in the end."""

    result: Any = None
    """What the others return from `assist`."""


@contextmanager
def leading(store: Store | None = None) -> Iterator[Lead]:
    """Inside, process 0 works by itself, and the others do what it asks; in a run of one process nothing changes.

    Raises:
        ParallelError: another process failed; has its message.
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
    """Let the other processes end."""
    if not _joined:
        with suppress(ParallelError):
            parallel.from_first(End(failed, result))
    elif dist.is_initialized():  # they are in the middle of something, and notice that this process leaves
        dist.destroy_process_group()
    if store is not None:
        store.set("heard", "")


def _last_words(store: Store | None) -> str | None:
    """Why another process failed, if it says so."""
    if store is None:
        return None
    end = time.monotonic() + PROMPT
    while not store.check(["failure"]):  # it says so before others can notice, unless it was killed
        if time.monotonic() > end:
            return None
        time.sleep(0.05)
    return str(store.get("failure").decode())


# The other processes.


def assists() -> bool:
    """Whether this process is another one than the first."""
    return parallel.rank() > 0


def assist(make: Callable[[], object], store: Store | None = None) -> Any:
    """Do what process 0 asks for until the run is at its end; returns what `Lead.result` was there.

    Args:
        make: Gives what has the methods that are asked for; called before the first one is needed.
        store: Of `gathered`: an error is told to process 0, which tells it to the user.

    Raises:
        ParallelError: Process 0 failed, or another one.
        Exception: What this process failed with.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # process 0 warns of the same
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
    """Tell process 0 what happened, and give it the time to tell the user before this process ends."""
    if store is None:
        return False
    text = str(error) if isinstance(error, BnasError) else "".join(traceback.format_exception(error)).strip()
    try:
        store.set("failure", f"process {parallel.rank()} failed: {text}")
        if dist.is_initialized():
            dist.destroy_process_group()  # which the others notice
        store.wait(["heard"], PATIENT)
    except RuntimeError:
        return False
    time.sleep(1)  # torchrun stops all processes as soon as one has ended
    return True
