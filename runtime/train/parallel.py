"""Data parallel training: every process trains the same sub-networks on its own part of each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bnas.passes.frontend.groups import release_group
from bnas.runtime.errors import ParallelError, TrainingError

release_group()

BUCKET = 2**23
"""Numbers in one message between processes."""

# The number of processes that work together, and the rank of this one.

_apart = False
"""Whether this process works alone for now, although there is a process group."""


@contextmanager
def apart(yes: bool = True) -> Iterator[None]:
    """Inside, this process works alone and waits for no other; with ``apart(False)``, it works with the others."""
    global _apart
    before, _apart = _apart, yes
    try:
        yield
    finally:
        _apart = before


def processes() -> int:
    """Return the size of the process group, also while this process works alone; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def world() -> int:
    """Return the number of processes that work together now."""
    return 1 if _apart else processes()


def rank() -> int:
    """Return the rank of this process. Process 0 writes files and validates."""
    return dist.get_rank() if world() > 1 else 0


@contextmanager
def _with_others() -> Iterator[None]:
    """Inside, PyTorch's error for a process that is gone becomes a `ParallelError`."""
    try:
        yield
    except RuntimeError as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ParallelError(f"another process ended or cannot be reached; see its own message ({first})") from error


# Gradients and losses.


def weighted(samples: int, losses: Sequence[float], device: torch.device) -> tuple[float, list[float]]:
    """Return this process's share of the samples of a step, and the losses as means over the samples of all processes.

    Args:
        samples: Number of samples of this process.
        losses: Mean losses over these samples.
        device: Device on which the processes exchange tensors.
    """
    if world() == 1:
        return 1.0, list(losses)
    own = torch.tensor([1.0, *losses], dtype=torch.float64, device=device) * samples
    with _with_others():
        dist.all_reduce(own)
    total, *sums = own.tolist()
    return samples / total, [one / total for one in sums]


def average_gradients(parameters: Iterable[Tensor], share: float | None = None) -> None:
    """Replace the gradients by their averages over all processes; gradients that are None stay None.

    All processes must have trained the same sub-networks, so that they have the same gradients. `share` is this
    process's share of the samples of the step; by default all processes have the same share.
    """
    if world() == 1:
        return
    share = 1 / world() if share is None else share
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket]).mul_(share)
        with _with_others():
            dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


def _buckets(gradients: list[Tensor]) -> Iterable[list[Tensor]]:
    """Group gradients by type and device, with at most `BUCKET` numbers in a group (or a single larger gradient)."""
    kinds: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault((gradient.dtype, gradient.device), []).append(gradient)
    for same in kinds.values():
        bucket: list[Tensor] = []
        for gradient in same:
            if bucket and sum(g.numel() for g in bucket) + gradient.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(gradient)
        yield bucket


def exchange(sizes: Sequence[int], device: torch.device, steps: int) -> None:
    """Send the gradients and losses of so many training steps between the processes, to measure the time."""
    parameters = [torch.empty(size, device=device) for size in sizes]
    for one in parameters:
        one.grad = torch.zeros_like(one)
    for _ in range(steps):
        share, _ = weighted(1, [0.0], device)
        average_gradients(parameters, share)


# Values and tensors that all processes are to have.


def share_tensors(tensors: Iterable[Tensor]) -> None:
    """Copy the tensors of process 0 to every process."""
    if world() > 1:
        for tensor in tensors:
            data = tensor.detach().contiguous()  # messages must be contiguous; a channels_last tensor is copied back
            with _with_others():
                dist.broadcast(data, 0)
            tensor.detach().copy_(data)


def from_first(value: Any) -> Any:
    """Return the value of process 0, which must be picklable. It comes from a process of the same training."""
    if world() == 1:
        return value
    values = [value]
    with _with_others():
        dist.broadcast_object_list(values, 0)
    return values[0]


def from_all(value: Any) -> list[Any]:
    """Return, in every process, the values of all processes by rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    with _with_others():
        dist.all_gather_object(values, value)
    return values


def agree(value: Any, what: str) -> None:
    """Raise `TrainingError`, on every process, unless all have the same `value`."""
    values = from_all(value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise TrainingError(
                f"{what} of process {number} is {other}, but {values[0]} on process 0; they must be equal"
            )
