"""Entries that a mask picks and that go where the same mask is set: ``a[mask] = b[mask]``.

How many entries a mask picks depends on values, so no graph can hold ``b[mask]`` alone. Put back by the same mask, the
entries are a choice between two tensors, ``torch.where(mask, b, a)``, whose sizes are known. Loops that keep the least
distances so far, as PointNet++ samples its points, are written this way.
"""

from __future__ import annotations

import dis
from collections.abc import Callable
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from .places import user_frame


class Picks:
    """The picked entries that the next statement puts back; `hot` says whether a tensor depends on the inputs."""

    def __init__(self, hot: Callable[[Tensor], bool]) -> None:
        self.hot = hot
        self._found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def taken(self, func: Any, args: tuple[Any, ...]) -> Tensor | None:
        """Return a stand-in for ``source[mask]`` where an assignment to entries follows; else None."""
        if func is not Tensor.__getitem__ or not self._is_mask(args[1]):
            return None
        frame, (source, mask) = user_frame(), args
        if frame is None or not _is_put(frame.f_code, frame.f_lasti):
            return None
        picked = torch.empty((0, *source.shape[mask.ndim :]), dtype=source.dtype, device="meta")
        self._found[id(picked)] = (picked, source, mask)
        return picked

    def put(self, func: Any, args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return mask, source and target of ``target[mask] = source[mask]``; None for any other call."""
        if func is not Tensor.__setitem__ or id(args[2]) not in self._found:
            return None
        _, source, mask = self._found.pop(id(args[2]))
        return (mask, source, args[0]) if mask is args[1] else None

    def _is_mask(self, index: Any) -> bool:
        return isinstance(index, Tensor) and index.dtype == torch.bool and self.hot(index)


def choose(mask: Tensor, source: Tensor, target: Tensor) -> None:
    """Put the entries of `source` into `target` where `mask`, of their first axes, is set."""
    for _ in range(target.ndim - mask.ndim):
        mask = mask.unsqueeze(-1)
    target.copy_(torch.where(mask, source, target))


@lru_cache(maxsize=1024)
def _is_put(code: CodeType, last: int) -> bool:
    """Whether the value that the instruction at `last` gives is assigned to entries, once these are named."""
    behind = (one.opname for one in dis.get_instructions(code) if one.offset > last)
    return next((name for name in behind if not name.startswith(("LOAD_", "CACHE", "EXTENDED_"))), "") == "STORE_SUBSCR"
