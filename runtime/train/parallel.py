"""Data parallel training: every process has a part of each batch, and the same sub-networks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    # Defaults of its functions keep the process group that is there when it is imported, which tracing does: the group
    # would outlive `destroy_process_group`, and its threads abort some of the processes that end.
    import torch.distributed.nn

from bnas.runtime.errors import TrainingError

BUCKET = 2**23
"""Numbers that travel together."""


def world() -> int:
    """How many processes train together; 1 where no process group was made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process; 0 writes files and validates."""
    return dist.get_rank() if world() > 1 else 0


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients by their averages over all processes; those that are None stay so.

    All processes must have trained the same sub-networks, so that the same gradients are there.
    """
    if world() == 1:
        return
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket]).div_(world())
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


def _buckets(gradients: list[Tensor]) -> Iterable[list[Tensor]]:
    """Gradients of one type and device together, at most `BUCKET` numbers or a single one."""
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


def share_tensors(tensors: Iterable[Tensor]) -> None:
    """Give every process the tensors of process 0."""
    if world() > 1:
        for tensor in tensors:
            data = tensor.detach().contiguous()  # what travels must be dense; a channels_last tensor is copied back
            dist.broadcast(data, 0)
            tensor.detach().copy_(data)


def from_first(value: Any) -> Any:
    """The value that process 0 has; it must pickle, and comes from a process of the same training."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def from_all(value: Any) -> list[Any]:
    """The values of all processes, by rank, everywhere."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def averaged(values: Sequence[float]) -> list[float]:
    """The mean of each number over all processes, the same everywhere."""
    return [statistics.fmean(some) for some in zip(*from_all(list(values)), strict=True)]


def agree(value: Any, what: str) -> None:
    """Raise `TrainingError`, on every process, unless all have the same `value`."""
    values = from_all(value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise TrainingError(f"{what} of process {number} is {other}, and {values[0]} on process 0; they must agree")
