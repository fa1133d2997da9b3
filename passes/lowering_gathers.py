"""Lowering of what picks entries by tensors of indices, writes by them, and orders entries."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .lowering_builder import onnx_type
from .lowering_indexing import filled, setitem
from .lowering_site import Site, Value, register_lowering
from .lowering_sizes import Size, same_size


@register_lowering(torch.gather)
def gather(site: Site) -> str:
    """Entries of an axis, of which every other place has its own."""
    return site.emit("GatherElements", site.x, site.value(2, "index"), axis=site.arg(1, "dim"))


@register_lowering(torch.take_along_dim)
def take_along(site: Site) -> str:
    """The same, broadcast in all other axes, or of all entries as one row."""
    index, axis = site.value(1, "indices"), site.arg(2, "dim")
    if axis is None:
        row, places = (site.emit("Reshape", one, site.ints([-1])) for one in (site.x, index))
        return site.emit("Gather", row, places)
    axis %= site.x.tensor.ndim
    pairs = enumerate(zip(site.x.sizes, index.sizes, strict=True))
    if not all(same_size(*pair) for place, pair in pairs if place != axis):
        raise site.refuse("broadcasts its indices")
    return site.emit("GatherElements", site.x, index, axis=axis)


@register_lowering(torch.scatter, torch.scatter_add)
def scatter(site: Site) -> str:
    """Entries of an axis written, or added to, where each has its own place."""
    index = site.value(2, "index")
    source, reduce = site.arg(3, "src", site.arg(3, "value")), site.call.kwargs.get("reduce")
    if reduce not in (None, "add"):
        raise site.refuse(f"reduces by {reduce!r}")
    adds = reduce == "add" or site.call.op is torch.scatter_add
    if isinstance(source, Value) and not all(same_size(*pair) for pair in zip(source.sizes, index.sizes, strict=True)):
        raise site.refuse("has indices for a part of its source only")
    new = filled(site, source, index, site.result.dtype)
    return site.emit("ScatterElements", site.x, index, new, axis=site.arg(1, "dim"), reduction="add" if adds else None)


@register_lowering(torch.index_add, torch.index_copy, torch.index_fill)
def index_write(site: Site) -> str:
    """Slices of an axis added to, written or filled."""
    axis, index = site.arg(1, "dim") % site.x.tensor.ndim, site.value(2, "index")
    source, dtype = site.arg(3, "source", site.arg(3, "value")), site.result.dtype
    sizes = list(site.x.sizes)
    sizes[axis] = site.product(index.sizes)
    column = site.emit("Reshape", index, site.ints([-1] + [1] * (site.x.tensor.ndim - axis - 1)))
    places = site.emit("Expand", column, site.ints(sizes))
    new = site.operand(source, dtype)
    if site.call.op is torch.index_fill:
        new = site.emit("Expand", new, site.ints(sizes))
    alpha, adds = site.call.kwargs.get("alpha", 1), site.call.op is torch.index_add
    new = site.emit("Mul", new, site.operand(alpha, dtype)) if alpha != 1 else new
    return site.emit("ScatterElements", site.x, places, new, axis=axis, reduction="add" if adds else None)


@register_lowering(torch.index_put)
def index_put(site: Site) -> str:
    """``x[indices] = values`` as a function."""
    if site.arg(3, "accumulate", False):
        raise site.refuse("adds to what the indices pick")
    return str(setitem(site.at("index_put", site.x, tuple(site.arg(1, "indices")), site.arg(2, "values"))))


@register_lowering(torch.masked_select)
def masked_select(site: Site) -> str:
    """The entries that a mask picks."""
    mask = filled(site, site.value(1, "mask"), site.x, torch.bool)
    return site.emit(
        "Compress", site.emit("Reshape", site.x, site.ints([-1])), site.emit("Reshape", mask, site.ints([-1]))
    )


@register_lowering(torch.topk)
def topk(site: Site) -> tuple[str, ...]:
    """The largest or smallest entries of an axis, and where they are."""
    return _ordered(site, site.arg(1, "k"), site.arg(2, "dim", -1), bool(site.arg(3, "largest", True)))


@register_lowering(torch.sort)
def sort(site: Site) -> tuple[str, ...]:
    """All entries of an axis in order, and where they were."""
    axis = site.arg(1, "dim", -1)
    return _ordered(site, site.x.sizes[axis], axis, bool(site.arg(2, "descending", False)))


@register_lowering(torch.argsort)
def argsort(site: Site) -> str:
    """Where the entries of an axis are, in order."""
    axis = site.arg(1, "dim", -1)
    return _ordered(site, site.x.sizes[axis], axis, bool(site.arg(2, "descending", False)))[1]


def _ordered(site: Site, count: int | Size, axis: int, largest: bool) -> tuple[str, ...]:
    return site.emit_many("TopK", [site.x, site.ints([count])], 2, axis=axis, largest=int(largest))


@register_lowering(F.one_hot)
def one_hot(site: Site) -> str:
    """A one where the class is, along a new last axis."""
    column = site.emit("Unsqueeze", site.x, site.ints([-1]))
    same = site.emit(
        "Equal", site.emit("Cast", column, to=onnx_type(torch.int64, "")), site.range(site.arg(1, "num_classes"))
    )
    return site.emit("Cast", same, to=onnx_type(torch.int64, site.scope))


@register_lowering(torch.repeat_interleave)
def repeat_interleave(site: Site) -> str:
    """Every entry of an axis several times, one behind the other."""
    times, axis, source = site.arg(1, "repeats"), site.arg(2, "dim"), site.name(site.x)
    if isinstance(times, Value):
        raise site.refuse("repeats each entry by a number of its own")
    size = site.product(site.x.sizes) if axis is None else site.x.sizes[axis]
    source = site.emit("Reshape", source, site.ints([-1])) if axis is None else source
    places = site.emit("Div", site.range(site.calculated("Mul", size, times)), site.scalar(times))
    return site.emit("Gather", source, places, axis=axis or 0)


@register_lowering("unfold")
def unfold(site: Site) -> str:
    """Windows of an axis, each along a new last axis."""
    dims = site.x.tensor.ndim
    axis, size, step = site.arg(1, "dimension") % dims, site.arg(2, "size"), site.arg(3, "step")
    count = site.calculated("FloorDiv", site.calculated("Sub", site.x.sizes[axis], size), step)
    starts = site.emit("Mul", site.range(site.calculated("Add", count, 1)), site.scalar(step))
    places = site.emit("Add", site.emit("Unsqueeze", starts, site.ints([1])), site.range(size))
    found = site.emit("Gather", site.x, places, axis=axis)
    return site.transpose(found, [*range(axis + 1), *range(axis + 2, dims + 1), axis + 1])


@register_lowering(torch.cumsum)
def cumsum(site: Site) -> str:
    """Sums of all entries of an axis up to each."""
    return site.emit("CumSum", site.operand(site.x, site.result.dtype), site.name(torch.tensor(site.arg(1, "dim"))))
