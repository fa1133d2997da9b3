"""Entries picked and written by tensors of indices."""

from __future__ import annotations

import torch

from bnas.passes.axes.terms import K
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.errors import RuleError
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import Value, same_size

from .calls import Call
from .indexing import filled, setitem_onnx
from .record import Operator, Sample, Trait


def index_select_axes(types: AxisTypes, call: Call) -> Axes:
    """The axis is pinned, and all axes of the index."""
    axes, index = list(types.type(call.argument(0, "input"))), call.argument(2, "index")
    dim = call.argument(1, "dim") % len(axes)
    types.pin(axes[dim], "its entries are read by index")
    types.pin_axes(types.type(index), "it holds indices")
    axes[dim] = K(types.output_shape(call)[dim])
    return axes


def gather_axes(types: AxisTypes, call: Call) -> Axes:
    """The axis is pinned. Another axis equals that of the index if both have the same size, else it is pinned."""
    swapped = call.op is torch.take_along_dim
    source, index = call.argument(0, "input"), call.argument(1 if swapped else 2, "indices" if swapped else "index")
    dim = call.argument(2 if swapped else 1, "dim")
    if dim is None:
        raise RuleError("no axis is given")
    _along(types, dim, types.type(source), types.type(index))
    shape = types.output_shape(call)
    return [axis if axis.size == n else K(n) for axis, n in zip(types.type(index), shape, strict=True)]


def _along(types: AxisTypes, dim: int, *tensors: Axes) -> None:
    """Numbers of entries along `dim`: it is pinned; the other axes are one where they have one size, else pinned."""
    dim %= len(tensors[0])
    for place, axes in enumerate(zip(*tensors, strict=True)):
        if place == dim or len({axis.size for axis in axes}) > 1:
            types.pin_axes(axes, "its entries are read by index")
        same = [axis for axis in axes[1:] if axis.size == axes[0].size and place != dim]
        for axis in same:
            types.unify(axes[0], axis)


def scatter_axes(types: AxisTypes, call: Call) -> Axes:
    """Like `gather`, but the entries are written; the result has the type of the first input."""
    inputs, values = types.type(call.argument(0, "input")), call.argument(3, "src", call.kwargs.get("value"))
    tensors = [types.type(values)] if types.is_tensor(values) else []
    _along(types, call.argument(1, "dim"), inputs, types.type(call.argument(2, "index")), *tensors)
    return inputs


def index_add_axes(types: AxisTypes, call: Call) -> Axes:
    """The written axis is pinned; the other axes equal those of the written values."""
    inputs, values = types.type(call.argument(0, "input")), call.argument(3, "source", call.kwargs.get("value"))
    dim = call.argument(1, "dim") % len(inputs)
    types.pin(inputs[dim], "its entries are written by index")
    types.pin_axes(types.type(call.argument(2, "index")), "it holds indices")
    for place, axis in enumerate(types.type(values) if types.is_tensor(values) and types.type(values) else ()):
        if place == dim:
            types.pin(axis, "its entries are written by index")
        else:
            types.unify(inputs[place], axis)
    return inputs


def masked_scatter_axes(types: AxisTypes, call: Call) -> Axes:
    """Everything is rigid, because values are taken in their order."""
    for tensor in call.tensors():
        types.pin_axes(types.type(tensor), "values are written in their order, where a mask is true")
    return types.type(call.argument(0, "input"))


def gather_onnx(site: Site) -> str:
    """Entries of an axis, with an index for each place of the other axes."""
    return site.emit("GatherElements", site.x, site.value(2, "index"), axis=site.arg(1, "dim"))


def take_along_onnx(site: Site) -> str:
    """Like `gather_onnx`, with broadcast indices, or of all entries as one row."""
    index, axis = site.value(1, "indices"), site.arg(2, "dim")
    if axis is None:
        row, places = (site.emit("Reshape", one, site.ints([-1])) for one in (site.x, index))
        return site.emit("Gather", row, places)
    axis %= site.x.tensor.ndim
    pairs = enumerate(zip(site.x.sizes, index.sizes, strict=True))
    if not all(same_size(*pair) for place, pair in pairs if place != axis):
        raise site.refuse("broadcasts its indices")
    return site.emit("GatherElements", site.x, index, axis=axis)


def scatter_onnx(site: Site) -> str:
    """Write entries of an axis, or add to them, with an index for each place."""
    index = site.value(2, "index")
    source, reduce = site.arg(3, "src", site.arg(3, "value")), site.call.kwargs.get("reduce")
    if reduce not in (None, "add"):
        raise site.refuse(f"reduces by {reduce!r}")
    adds = reduce == "add" or site.call.op is torch.scatter_add
    if isinstance(source, Value) and not all(same_size(*pair) for pair in zip(source.sizes, index.sizes, strict=True)):
        raise site.refuse("has indices for a part of its source only")
    new = filled(site, source, index, site.result.dtype)
    return site.emit("ScatterElements", site.x, index, new, axis=site.arg(1, "dim"), reduction="add" if adds else None)


def index_write_onnx(site: Site) -> str:
    """Add to slices of an axis, or write or fill them."""
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


def index_put_onnx(site: Site) -> str:
    """``x[indices] = values`` as a function."""
    if site.arg(3, "accumulate", False):
        raise site.refuse("adds to what the indices pick")
    return str(setitem_onnx(site.at("index_put", site.x, tuple(site.arg(1, "indices")), site.arg(2, "values"))))


def masked_select_onnx(site: Site) -> str:
    """The entries that a mask picks."""
    mask = filled(site, site.value(1, "mask"), site.x, torch.bool)
    return site.emit(
        "Compress", site.emit("Reshape", site.x, site.ints([-1])), site.emit("Reshape", mask, site.ints([-1]))
    )


def index_select_onnx(site: Site) -> str:
    """Chosen entries of an axis."""
    return site.emit("Gather", site.x, site.value(2, "index"), axis=site.arg(1, "dim"))


RECORDS = (
    Operator(
        torch.index_select,
        axes=index_select_axes,
        onnx=index_select_onnx,
        samples=(
            Sample(lambda x: torch.index_select(x, 2, torch.tensor([2, 0]))),
            Sample(lambda x: torch.index_select(x, 1, torch.tensor([2, 0])), rigid="read by index"),
        ),
    ),
    Operator(
        torch.gather,
        axes=gather_axes,
        onnx=gather_onnx,
        samples=(
            Sample(lambda x: torch.gather(x, 2, (x > 0).long())),
            Sample(lambda x: torch.gather(x, 1, (x > 0).long()), rigid="read by index"),
        ),
    ),
    Operator(
        torch.take_along_dim,
        axes=gather_axes,
        onnx=take_along_onnx,
        samples=(Sample(lambda x: torch.take_along_dim(x, (x > 0).long(), 2)),),
    ),
    Operator(
        torch.scatter,
        axes=scatter_axes,
        onnx=scatter_onnx,
        samples=(
            Sample(lambda x: torch.scatter(x, 3, (x > 0).long(), 0.5)),
            Sample(lambda x: torch.scatter(x, 1, (x > 0).long(), 0.5), rigid="read by index"),
        ),
    ),
    Operator(
        torch.scatter_add,
        axes=scatter_axes,
        onnx=scatter_onnx,
        samples=(Sample(lambda x: x.scatter_add(3, (x[..., :1] > 0).long(), x[..., :1])),),
    ),
    Operator(
        torch.index_add,
        axes=index_add_axes,
        onnx=index_write_onnx,
        samples=(Sample(lambda x: x.index_add(2, torch.tensor([0, 1]), x[:, :, :2])),),
    ),
    Operator(
        torch.index_copy,
        axes=index_add_axes,
        onnx=index_write_onnx,
        samples=(Sample(lambda x: x.index_copy(2, torch.tensor([0, 1]), x[:, :, :2].cos())),),
    ),
    Operator(
        torch.index_fill,
        axes=index_add_axes,
        onnx=index_write_onnx,
        samples=(Sample(lambda x: x.index_fill(2, torch.tensor([0, 1]), 0.5)),),
    ),
    Operator(
        torch.masked_scatter,
        axes=masked_scatter_axes,
        samples=(Sample(lambda x: x.masked_scatter(x > 0, x.cos()), rigid="in their order"),),
    ),
    Operator(
        torch.index_put,
        onnx=index_put_onnx,
        samples=(Sample(lambda x: x.index_put((torch.tensor([0]),), x[:1].cos()), rigid="index_put"),),
    ),
    Operator(
        torch.masked_select,
        traits={Trait.PICKS},
        onnx=masked_select_onnx,
        samples=(
            Sample(
                lambda x: x + 0 * x.masked_select(x > -1000).sum(), rigid="masked_select|opaque", onnx="opaque method"
            ),
        ),
    ),
)
