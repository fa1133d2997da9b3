"""Lowering of indexing, and of what takes tensors apart or puts them together."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .lowering_site import Site, Source, Value, batch_multiple, register_lowering

END = torch.iinfo(torch.int64).max
"""Where a slice ends that takes all."""


@register_lowering(operator.getitem)
def getitem(site: Site) -> str:
    """Integers, slices, ``None``, ``...`` and at most one vector of indices."""
    index = site.call.args[1]
    source, axis, added, dropped = site.name(site.x), 0, list[int](), list[int]()
    picks = list(_spelled_out(site, index if isinstance(index, tuple) else (index,)))
    source = _sliced(site, source, [pick for pick in picks if pick is not None])
    for pick in picks:
        if pick is None:
            added.append(axis - len(dropped) + len(added))
            continue
        if isinstance(pick, int):
            dropped.append(axis)
        elif not isinstance(pick, slice):
            source = site.emit("Gather", source, _indices(site, pick), axis=axis)
        axis += 1
    source = site.emit("Squeeze", source, site.ints(dropped)) if dropped else source
    return site.emit("Unsqueeze", source, site.ints(added)) if added else source


def _spelled_out(site: Site, index: Sequence[Any]) -> Iterator[Any]:
    """What is done with each axis: a pick for each, and ``None`` where a new one is put in."""
    vectors = [pick for pick in index if isinstance(pick, Value | Tensor | list)]
    if len(vectors) > 1 or any(isinstance(pick, bool) for pick in index):
        raise site.refuse("is indexed with a bool or with more than one vector")
    taken = sum(pick is not None and pick is not Ellipsis for pick in index)
    rest = [slice(None)] * (site.x.tensor.ndim - taken)
    for pick in index:
        if pick is Ellipsis:
            yield from rest
            rest = []
        else:
            yield pick
    yield from rest


def _sliced(site: Site, source: str, picks: Sequence[Any]) -> str:
    """`source` cut where a pick is an integer or a slice that does not take all."""
    axes: list[tuple[int, int, int, int]] = []
    for axis, pick in enumerate(picks):
        if isinstance(pick, int):
            axes.append((axis, pick, END if pick == -1 else pick + 1, 1))
        elif isinstance(pick, slice):
            start, step = pick.start or 0, pick.step or 1
            stop = END if pick.stop is None or pick.stop == site.x.tensor.shape[axis] else pick.stop
            if (start, stop, step) != (0, END, 1):
                axes.append((axis, start, stop, step))
    return cut(site, source, axes)


def cut(site: Site, source: Source, axes: Sequence[tuple[int, int, int, int]]) -> str:
    """`source` with axes cut to (axis, start, stop, step)."""
    if not axes:
        return site.name(source)
    which, starts, stops, steps = (site.ints(numbers) for numbers in zip(*axes, strict=True))
    return site.emit("Slice", source, starts, stops, which, steps)


def _indices(site: Site, pick: Any) -> Source:
    """Integer indices; how many a mask picks is not known without running the model, so it never gets here."""
    return pick if isinstance(pick, Value) else torch.as_tensor(pick)


@register_lowering(torch.select)
def select(site: Site) -> str:
    """One entry of an axis, which disappears."""
    axis, place = site.arg(1, "dim") % site.x.tensor.ndim, site.arg(2, "index")
    one = cut(site, site.x, [(axis, place, END if place == -1 else place + 1, 1)])
    return site.emit("Squeeze", one, site.ints([axis]))


@register_lowering(torch.narrow)
def narrow(site: Site) -> str:
    """A run of entries of an axis."""
    axis, start, length = site.arg(1, "dim") % site.x.tensor.ndim, site.arg(2, "start"), site.arg(3, "length")
    if start < 0:
        start += site.x.tensor.shape[axis]
    stop = END if start + length == site.x.tensor.shape[axis] else start + length
    return cut(site, site.x, [(axis, start, stop, 1)])


@register_lowering(torch.index_select)
def index_select(site: Site) -> str:
    """Chosen entries of an axis."""
    return site.emit("Gather", site.x, site.value(2, "index"), axis=site.arg(1, "dim"))


@register_lowering(F.embedding)
def embedding(site: Site) -> str:
    """Rows of a table."""
    if site.arg(3, "max_norm") is not None:
        raise site.refuse("scales the rows that it reads (max_norm)")
    return site.emit("Gather", site.value(1, "weight"), site.x, axis=0)


@register_lowering(torch.cat)
def concatenate(site: Site) -> str:
    """One behind the other along an axis, in the dtype of the result."""
    parts = [site.operand(one, site.result.dtype) for one in site.arg(0, "tensors")]
    return site.emit("Concat", *parts, axis=site.arg(1, "dim", 0))


@register_lowering(torch.stack)
def stack(site: Site) -> str:
    """One behind the other along a new axis."""
    axis = site.arg(1, "dim", 0) % site.result.ndim
    place = site.ints([axis])
    parts = [site.emit("Unsqueeze", site.operand(one, site.result.dtype), place) for one in site.arg(0, "tensors")]
    return site.emit("Concat", *parts, axis=axis)


@register_lowering(torch.chunk, torch.split, torch.tensor_split, torch.split_with_sizes)
def split(site: Site) -> tuple[str, ...]:
    """Parts of the sizes that PyTorch gives them."""
    axis = site.arg(2, "dim", 0)
    return _split(site, axis, [part.shape[axis] for part in site.result])


def _split(site: Site, axis: int, sizes: Sequence[int]) -> tuple[str, ...]:
    source: Value = site.arg(0, "input") or site.arg(0, "tensor")  # torch.split calls it otherwise than all others
    if len(sizes) > 1 and batch_multiple(source.tensor.shape[axis]):
        raise site.refuse("takes the batch apart, whose size is not fixed")
    if len(sizes) == 1:
        return (site.name(source),)
    return site.emit_many("Split", [source, site.ints(sizes)], len(sizes), axis=axis)


@register_lowering(torch.unbind)
def unbind(site: Site) -> tuple[str, ...]:
    """The entries of an axis, which disappears."""
    axis = site.arg(1, "dim", 0)
    place = site.ints([axis])
    return tuple(site.emit("Squeeze", part, place) for part in _split(site, axis, [1] * len(site.result)))


@register_lowering(torch.roll)
def roll(site: Site) -> str:
    """Shifted along axes; what leaves at one end comes in at the other."""
    shifts, axes = site.arg(1, "shifts"), site.arg(2, "dims")
    shifts, axes = ([one] if isinstance(one, int) else list(one or ()) for one in (shifts, axes))
    if not axes:
        raise site.refuse("rolls all axes as one")
    source = site.name(site.x)
    for shift, axis in zip(shifts, axes, strict=True):
        start = -shift % site.x.tensor.shape[axis]
        if start:
            parts = [cut(site, source, [(axis, start, END, 1)]), cut(site, source, [(axis, 0, start, 1)])]
            source = site.emit("Concat", *parts, axis=axis)
    return source
