"""Operators that move or repeat whole entries: other orders of axes, expansion, repetition, rolling."""

from __future__ import annotations

from typing import Any

import torch

from bnas.passes.axes.terms import K, Prod, Sym, Term
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.errors import RuleError
from bnas.passes.frontend.functions import BATCH
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import AnySize, Size, Value, same_size

from .calls import Call, Dynamic
from .numbers import shape_read
from .parts import END, cut
from .record import AtenRule, Operator, Sample, Trait
from .views import rewrite_sizes
from .zeros import keeps


def permute_axes(types: AxisTypes, call: Call) -> Axes:
    """The order is read off a dummy with distinct sizes."""
    inputs = types.type(call.argument(0, "input"))
    dummy = torch.empty([*range(2, len(inputs) + 2)], device="meta")
    kwargs = {name: value for name, value in call.kwargs.items() if name != "input"}
    moved = getattr(dummy, call.op.__name__)(*call.args[1:], **kwargs)  # type: ignore[union-attr]
    return [inputs[n - 2] for n in moved.shape]


def attribute_axes(types: AxisTypes, call: Call) -> Any:
    """``x.T``, ``x.mT``, ``x.data`` and the parts of a complex ``x``; an attribute of what an opaque step gives."""
    source, name = types.values[call.args[0]], call.args[1]
    if isinstance(source, dict):
        return source[name]
    inputs = types.type(call.args[0])
    if name in ("T", "H"):
        return inputs[::-1]
    if name in ("mT", "mH"):
        return [*inputs[:-2], inputs[-1], inputs[-2]]
    if name in ("data", "real", "imag"):
        return inputs
    raise RuleError(f"attribute {name}")


def expand_axes(types: AxisTypes, call: Call) -> Axes:
    """Axes of size 1 are repeated; the number of repetitions adapts to the readers, so such an axis is elastic."""
    inputs, shape, sizes = types.type(call.args[0]), types.output_shape(call), call.listed(1, "size")
    new = len(shape) - len(inputs)
    out: Axes = []
    for axis, size in enumerate(shape):
        known = inputs[axis - new] if axis >= new else None
        if known is not None and isinstance(sizes[axis], Dynamic):
            types.pin(known, "it is expanded to a size that follows the input")
        out.append(known if known is not None and known.size == size else _repeated(sizes[axis], size, call))
    value = [-1 if axis >= new and inputs[axis - new] is term else term for axis, term in enumerate(out)]
    value = [size if isinstance(size, Dynamic) else term for size, term in zip(sizes, value, strict=True)]
    rewrite_sizes(types, call, "size", value)
    return out


def _repeated(stated: Any, size: int, call: Call) -> Term:
    rigid = isinstance(stated, Dynamic) or size % BATCH == 0 or size == 1
    return K(size, "a size of the input gives the number of repeats") if rigid else Sym(size, call.node.name)


def expand_as_axes(types: AxisTypes, call: Call) -> Axes:
    """The axes of the other tensor; an axis that has another size than 1 in both tensors is one axis."""
    inputs, other = types.type(call.args[0]), types.type(call.args[1])
    for mine, theirs in zip(reversed(inputs), reversed(other), strict=False):
        if mine.size != 1:
            types.unify(mine, theirs)
    return other


def repeat_axes(types: AxisTypes, call: Call) -> Axes:
    """Copies of the whole axis one after another."""
    inputs, shape = types.type(call.args[0]), types.output_shape(call)
    padded = [*[K(1)] * (len(shape) - len(inputs)), *inputs]
    times = [size // term.size for size, term in zip(shape, padded, strict=True)]
    return [term if n == 1 else Prod((K(n), term)) for n, term in zip(times, padded, strict=True)]


def repeat_interleave_axes(types: AxisTypes, call: Call) -> Axes:
    """Copies of each entry one after another."""
    out, times, dim = list(types.type(call.argument(0, "input"))), call.argument(1, "repeats"), call.argument(2, "dim")
    if not isinstance(times, int) or dim is None:
        raise RuleError("repeated by a tensor, or flattened")
    out[dim] = Prod((out[dim], K(times)))
    return out


def roll_axes(types: AxisTypes, call: Call) -> Axes:
    """The moved axes are pinned."""
    inputs = types.type(call.argument(0, "input"))
    dims = call.argument(2, "dims") if call.op is torch.roll else call.argument(1, "dims")
    dims = range(len(inputs)) if dims is None else [dims] if isinstance(dims, int) else dims
    types.pin_axes([inputs[dim] for dim in dims], "its entries are moved to other places")
    return inputs


def permute_onnx(site: Site) -> str:
    """Axes in another order, given as one tuple or one by one."""
    return site.transpose(site.x, [axis % site.x.tensor.ndim for axis in site.call.listed(1, "dims")])


def transpose_onnx(site: Site) -> str:
    """Two axes exchanged."""
    dims = site.x.tensor.ndim
    first = site.arg(1, "dim0", site.arg(1, "axis0")) % dims
    second = site.arg(2, "dim1", site.arg(2, "axis1")) % dims
    return swapped(site, first, second)


def transposed_matrix_onnx(site: Site) -> str:
    """The two axes of a matrix exchanged."""
    return swapped(site, 0, 1) if site.x.tensor.ndim == 2 else site.name(site.x)


def attribute_onnx(site: Site) -> str:
    """``x.T``, ``x.mT`` and ``x.data``; sizes and dtypes are not tensors and never get here."""
    name, dims = site.call.args[1], site.x.tensor.ndim
    if name == "data":
        return site.name(site.x)
    if name in ("T", "mT") and dims >= 2:
        return swapped(site, dims - 2, dims - 1) if name == "mT" else site.transpose(site.x, [*reversed(range(dims))])
    raise site.refuse(f"reads {name!r}, which has no lowering rule")


def swapped(site: Site, first: int, second: int) -> str:
    """The first argument with two axes exchanged."""
    order = list(range(site.x.tensor.ndim))
    order[first], order[second] = order[second], order[first]
    return site.transpose(site.x, order)


def movedim_onnx(site: Site) -> str:
    """Axes moved to other places; a tensor whose sizes are the numbers of its axes shows the order."""
    numbered = torch.empty(tuple(range(site.x.tensor.ndim)), device="meta")
    moved = torch.movedim(numbered, site.arg(1, "source"), site.arg(2, "destination"))
    return site.transpose(site.x, list(moved.shape))


def expand_onnx(site: Site) -> str:
    """Repeated along axes of size one and along new axes in front."""
    new = site.result.ndim - site.x.tensor.ndim
    sizes, asked = site.made, _sizes_of_expand(site)
    for axis, size in enumerate(sizes):
        given = site.x.sizes[axis - new] if axis >= new else None
        if given is not None and same_size(given, size):
            sizes[axis] = 1  # ONNX keeps an axis that is expanded to 1 as it is
        elif isinstance(asked[axis], Size):
            sizes[axis] = asked[axis]
    return site.emit("Expand", site.x, site.ints(sizes))


def _sizes_of_expand(site: Site) -> list[AnySize]:
    if site.call.op == "expand_as":
        return site.value(1, "other").sizes
    return site.call.listed(1, "size", "shape")


def repeat_onnx(site: Site) -> str:
    """Copies one after another, along each axis."""
    times = site.call.listed(1, "repeats", "dims")
    dims = site.x.tensor.ndim
    times = [1] * (dims - len(times)) + times
    new = len(times) - dims
    source = site.emit("Unsqueeze", site.x, site.ints(range(new))) if new else site.name(site.x)
    return site.emit("Tile", source, site.ints(times))


def roll_onnx(site: Site) -> str:
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


def flip_onnx(site: Site) -> str:
    """Axes in the reverse order of their entries."""
    axes = [axis % site.x.tensor.ndim for axis in site.call.listed(1, "dims")]
    return cut(site, site.x, [(axis, -1, -END, -1) for axis in axes])


def repeat_interleave_onnx(site: Site) -> str:
    """Every entry of an axis several times in a row."""
    times, axis, source = site.arg(1, "repeats"), site.arg(2, "dim"), site.name(site.x)
    if isinstance(times, Value):
        raise site.refuse("repeats each entry by a number of its own")
    size = site.product(site.x.sizes) if axis is None else site.x.sizes[axis]
    source = site.emit("Reshape", source, site.ints([-1])) if axis is None else source
    places = site.emit("Div", site.range(site.calculated("Mul", size, times)), site.scalar(times))
    return site.emit("Gather", source, places, axis=axis or 0)


def _read(name: str) -> AtenRule:
    """An attribute of a tensor."""
    return lambda self: (getattr, (self, name), {})


RECORDS = (
    Operator(
        torch.permute,
        traits={Trait.PERMUTATION},
        axes=permute_axes,
        zeros=keeps,
        onnx=permute_onnx,
        samples=(
            Sample(lambda x: x.permute(0, 1, 3, 2)),
            Sample(lambda x: torch.permute(x, (0, 3, 1, 2)).permute(0, 2, 3, 1)),
        ),
    ),
    Operator(
        torch.transpose,
        spellings=(torch.swapaxes, torch.swapdims, "swapaxes", "swapdims"),
        traits={Trait.PERMUTATION},
        axes=permute_axes,
        zeros=keeps,
        onnx=transpose_onnx,
        samples=(Sample(lambda x: x.transpose(2, 3)), Sample(lambda x: torch.swapaxes(x, 1, 2).swapdims(1, 2))),
    ),
    Operator(
        torch.movedim,
        spellings=(torch.moveaxis, "moveaxis"),
        traits={Trait.PERMUTATION},
        axes=permute_axes,
        zeros=keeps,
        onnx=movedim_onnx,
        samples=(Sample(lambda x: torch.movedim(x, 1, 3).movedim(3, 1)), Sample(lambda x: x.moveaxis(2, 3))),
    ),
    Operator(
        torch.t,
        traits={Trait.PERMUTATION},
        axes=permute_axes,
        zeros=keeps,
        onnx=transposed_matrix_onnx,
        samples=(
            Sample(lambda x, w: torch.einsum("bchw,dc->bdhw", x, w.t()), weights=((8, 5),)),
            Sample(lambda x: x.mean((2, 3)).t().t()),
        ),
    ),
    Operator(torch.adjoint, axes=permute_axes, zeros=keeps, samples=(Sample(lambda x: torch.adjoint(x)),)),
    Operator(
        getattr,
        aten={"mT": _read("mT"), "mH": _read("mH"), "numpy_T": _read("T"), "matrix_H": _read("H")},
        axes=attribute_axes,
        zeros=keeps,
        onnx=attribute_onnx,
        number=shape_read,
        samples=(
            Sample(lambda x: x.mT),
            Sample(lambda x, w: x.mean((2, 3)) @ w.T, weights=((5, 8),)),
            Sample(lambda x: x.data),
        ),
    ),
    Operator(
        "expand",
        axes=expand_axes,
        zeros=keeps,
        onnx=expand_onnx,
        samples=(
            Sample(lambda x: x + x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 6)),
            Sample(lambda x: x[:, :, None].expand(x.shape[0], 8, 2, 4, 6).flatten(1, 2)),
        ),
    ),
    Operator(
        torch.broadcast_to,
        axes=expand_axes,
        zeros=keeps,
        onnx=expand_onnx,
        samples=(Sample(lambda x: torch.broadcast_to(x[:, :, :1], (x.shape[0], 8, 4, 6)) * x),),
    ),
    Operator(
        "expand_as",
        axes=expand_as_axes,
        zeros=keeps,
        onnx=expand_onnx,
        samples=(Sample(lambda x: x[:, :, :1].expand_as(x) * x),),
    ),
    Operator(
        "repeat", axes=repeat_axes, zeros=keeps, onnx=repeat_onnx, samples=(Sample(lambda x: x.repeat(1, 3, 1, 1)),)
    ),
    Operator(
        torch.tile,
        axes=repeat_axes,
        zeros=keeps,
        onnx=repeat_onnx,
        samples=(Sample(lambda x: torch.tile(x, (1, 3, 1, 1))), Sample(lambda x: x.tile(2))),
    ),
    Operator(
        torch.repeat_interleave,
        axes=repeat_interleave_axes,
        zeros=keeps,
        onnx=repeat_interleave_onnx,
        samples=(
            Sample(lambda x: x.repeat_interleave(2, 1)),
            Sample(lambda x, w: x * w.repeat_interleave(2)[:, None, None], weights=((4,),), rigid="flattened"),
        ),
    ),
    Operator(
        torch.roll,
        axes=roll_axes,
        onnx=roll_onnx,
        samples=(Sample(lambda x: torch.roll(x, 2, 2)), Sample(lambda x: x.roll(2, 1), rigid="moved to other places")),
    ),
    Operator(
        torch.flip,
        axes=roll_axes,
        onnx=flip_onnx,
        samples=(Sample(lambda x: torch.flip(x, (2, -1))), Sample(lambda x: x.flip(1), rigid="moved to other places")),
    ),
)
