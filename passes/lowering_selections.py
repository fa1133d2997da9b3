"""Lowering of slices, and of what takes tensors apart or puts them together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .lowering_site import Site, Source, register_lowering
from .lowering_sizes import AnySize, Size, same_size

END = torch.iinfo(torch.int64).max
"""Where a slice ends that takes all."""

Cut = tuple[int, AnySize, AnySize, AnySize]
"""An axis, where a slice of it starts and stops, and its step."""


def cut(site: Site, source: Source, axes: Sequence[Cut]) -> str:
    """`source` with axes cut to (axis, start, stop, step)."""
    if not axes:
        return site.name(source)
    which, starts, stops, steps = (site.ints(numbers) for numbers in zip(*axes, strict=True))
    return site.emit("Slice", source, starts, stops, which, steps)


def picked(site: Site, source: Source, axis: int, place: AnySize) -> str:
    """`source` with one entry left of an axis, which stays."""
    if isinstance(place, Size):  # a slice that ends at -1 + 1 would be empty
        return site.emit("Gather", source, site.ints([place]), axis=axis)
    return cut(site, source, [(axis, place, END if place == -1 else place + 1, 1)])


@register_lowering(torch.select)
def select(site: Site) -> str:
    """One entry of an axis, which disappears."""
    axis = site.arg(1, "dim") % site.x.tensor.ndim
    return site.emit("Squeeze", picked(site, site.x, axis, site.arg(2, "index")), site.ints([axis]))


@register_lowering(torch.narrow)
def narrow(site: Site) -> str:
    """A run of entries of an axis."""
    axis, start, length = site.arg(1, "dim") % site.x.tensor.ndim, site.arg(2, "start"), site.arg(3, "length")
    size = site.x.sizes[axis]
    if not isinstance(start, Size) and start < 0:
        start = site.calculated("Add", start, size)
    stop = site.calculated("Add", start, length)
    return cut(site, site.x, [(axis, start, END if same_size(stop, size) else stop, 1)])


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
    asked = site.arg(1, "split_size_or_sections", site.arg(1, "split_size", site.arg(1, "split_sizes")))
    if isinstance(asked, list | tuple) and site.call.op is not torch.tensor_split:
        return _split(site, site.arg(2, "dim", 0), asked)
    axis = site.arg(2, "dim", 0)
    pairs = zip(site.result, site.twin, strict=True)
    if all(part.shape[axis] == other.shape[axis] for part, other in pairs):
        return _split(site, axis, [part.shape[axis] for part in site.result])
    if site.call.op is not torch.chunk:
        raise site.refuse("takes an axis apart whose size is not fixed")
    return site.emit_many("Split", [_whole(site)], len(site.result), axis=axis, num_outputs=len(site.result))


def _whole(site: Site) -> Source:
    found: Source = site.arg(0, "input") or site.arg(0, "tensor")  # torch.split calls it otherwise than all others
    return found


def _split(site: Site, axis: int, sizes: Sequence[AnySize]) -> tuple[str, ...]:
    if len(sizes) == 1:
        return (site.name(_whole(site)),)
    return site.emit_many("Split", [_whole(site), site.ints(sizes)], len(sizes), axis=axis)


@register_lowering(torch.unbind)
def unbind(site: Site) -> tuple[str, ...]:
    """The entries of an axis, which disappears."""
    axis = site.arg(1, "dim", 0)
    place = site.ints([axis])
    return tuple(site.emit("Squeeze", part, place) for part in _split(site, axis, [1] * len(site.result)))


@register_lowering(torch.roll)
def roll(site: Site) -> str:
    """Shifted along axes; what leaves at one end comes in at the other. Without axes all entries are one row."""
    shifts, axes = site.arg(1, "shifts"), site.arg(2, "dims")
    shifts, axes = ([one] if isinstance(one, int | Size) else list(one or ()) for one in (shifts, axes))
    if not axes:
        row = site.emit("Reshape", site.x, site.ints([-1]))
        return site.emit("Reshape", _rolled(site, row, 0, shifts[0], site.product(site.x.sizes)), site.shape(site.x))
    source = site.name(site.x)
    for shift, axis in zip(shifts, axes, strict=True):
        source = _rolled(site, source, axis, shift, site.x.sizes[axis])
    return source


def _rolled(site: Site, source: str, axis: int, shift: AnySize, size: AnySize) -> str:
    start = site.calculated("Mod", site.calculated("Sub", 0, shift), size)
    if isinstance(start, int) and start == 0:
        return source
    parts = [cut(site, source, [(axis, start, END, 1)]), cut(site, source, [(axis, 0, start, 1)])]
    return site.emit("Concat", *parts, axis=axis)


@register_lowering(torch.flip)
def flip(site: Site) -> str:
    """Axes in the reverse order of their entries."""
    axes = [axis % site.x.tensor.ndim for axis in site.call.listed(1, "dims")]
    return cut(site, site.x, [(axis, -1, -END, -1) for axis in axes])
