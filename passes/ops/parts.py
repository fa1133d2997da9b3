"""Parts of an axis, and axes of parts: slices, splits, concatenation and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from bnas.passes.axes.terms import Cat, K, Term
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.errors import RuleError
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import AnySize, Size, Source, same_size

from .calls import Call, Dynamic
from .convolutions import PAD_MODES
from .record import Operator, Sample, Target, Trait
from .zeros import keeps, parted


def stack_axes(types: AxisTypes, call: Call) -> Axes:
    """All axes are one each; a rigid axis is added."""
    parts = [types.type(part) for part in call.argument(0, "tensors")]
    for part in parts[1:]:
        for left, right in zip(parts[0], part, strict=True):
            types.unify(left, right)
    out = list(parts[0])
    out.insert(call.argument(1, "dim", 0) % (len(out) + 1), K(len(parts)))
    return out


def cat_axes(types: AxisTypes, call: Call) -> Axes:
    """The other axes are one each; the concatenated axis holds the parts in order."""
    parts = [types.type(part) for part in call.argument(0, "tensors")]
    dim = _joined(call, [len(part) for part in parts])
    for part in parts[1:]:
        for axis, (left, right) in enumerate(zip(parts[0], part, strict=True)):
            if axis != dim:
                types.unify(left, right)
    return [Cat(tuple(p[dim] for p in parts)) if axis == dim else term for axis, term in enumerate(parts[0])]


ALONG: dict[Target, int] = {torch.vstack: 0, torch.hstack: 1, torch.column_stack: 1, torch.dstack: 2}
"""The axis of concatenations that have it in their name."""


def _joined(call: Call, ranks: Sequence[int]) -> int:
    """The axis of a concatenation of tensors of these ranks."""
    dim: int = ALONG[call.op] if call.op in ALONG else call.argument(1, "dim", 0)
    if call.op in ALONG and min(ranks) <= max(dim, 1):
        raise RuleError(f"it adds axes to tensors that have only {min(ranks)}")
    return dim % max(ranks)


def pad_axes(types: AxisTypes, call: Call) -> Axes:
    """Constant padding of an elastic axis is a concatenation with rigid runs; a negative or other one pins."""
    out, padding = list(types.type(call.argument(0, "input"))), list(call.argument(1, "pad"))
    mode = call.argument(2, "mode", "constant")
    for axis, (before, after) in enumerate(zip(padding[::2], padding[1::2], strict=True)):
        position = len(out) - 1 - axis
        if before == after == 0:
            continue
        if mode != "constant" or before < 0 or after < 0:
            types.pin(out[position], "it is padded with its own values, or cropped")
            out[position] = K(out[position].size + before + after)
        else:
            out[position] = Cat((K(before), out[position], K(after)))
    return out


def narrow_axes(types: AxisTypes, call: Call) -> Axes:
    """A slice by start and length."""
    out = list(types.type(call.argument(0, "input")))
    dim = call.argument(1, "dim") % len(out)
    start, length = call.argument(2, "start"), call.argument(3, "length")
    if isinstance(start, Node):
        raise RuleError("a slice by a tensor")
    if isinstance(start, Dynamic) or isinstance(length, Dynamic):
        types.pin(out[dim], "its size follows the input: an input gives the end of a slice")
        out[dim] = K(int(length))
        return out
    axis = out[dim]
    head, out[dim] = cut_out(types, axis, start % axis.size, length)
    note_slice(types, call.argument(0, "input"), axis, out[dim])
    types.rewrite(call, 2, "start", head)
    types.rewrite(call, 3, "length", out[dim])
    return out


def select_axes(types: AxisTypes, call: Call) -> Axes:
    """One entry by number; its axis is pinned and removed."""
    out = list(types.type(call.argument(0, "input")))
    types.pin(out.pop(call.argument(1, "dim") % len(out)), "one of its entries is read by index")
    return out


def unbind_axes(types: AxisTypes, call: Call) -> tuple[Axes, ...]:
    """All entries one by one; their axis is pinned and removed."""
    out = list(types.type(call.argument(0, "input")))
    axis = out.pop(call.argument(1, "dim", 0) % len(out))
    types.pin(axis, "its entries are read one by one")
    return (out,) * axis.size


def split_axes(types: AxisTypes, call: Call) -> tuple[Axes, ...]:
    """The axis is cut; smaller sub-networks split it at explicit active sizes."""
    source, name = call.argument(0, "tensor", call.kwargs.get("input")), "dim"
    axes = types.type(source)
    dim = call.argument(2, name, 0) % len(axes)
    sizes = call.argument(1, "split_size_or_sections", call.kwargs.get("chunks"))
    if any(isinstance(size, Dynamic) for size in (sizes if isinstance(sizes, list | tuple) else [sizes])):
        types.pin(axes[dim], "it is split into parts whose sizes follow the input")
    rest, parts = axes[dim], list[Term]()
    for value in call.node.meta["value"][:-1]:
        part, rest = types.cut(rest, value.shape[dim])
        parts.append(part)
    parts.append(rest)
    types.replace(call, torch.split, parts, dim)
    return tuple([part if axis == dim else term for axis, term in enumerate(axes)] for part in parts)


def cut_out(types: AxisTypes, axis: Term, start: int, length: int) -> tuple[Term, Term]:
    """Return the entries before the run of `length` entries from `start`, and the run itself."""
    head, rest = types.cut(axis, start)
    middle, _ = types.cut(rest, length)
    return head, middle


def note_slice(types: AxisTypes, source: Any, axis: Term, taken: Term) -> None:
    """Remember what a slice of a parameter or buffer leaves: nobody may read it."""
    if taken.size < axis.size and source not in types.following:
        types.slices.append((axis, taken))


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


def select_onnx(site: Site) -> str:
    """One entry of an axis; the axis is removed."""
    axis = site.arg(1, "dim") % site.x.tensor.ndim
    return site.emit("Squeeze", picked(site, site.x, axis, site.arg(2, "index")), site.ints([axis]))


def narrow_onnx(site: Site) -> str:
    """A run of entries of an axis."""
    axis, start, length = site.arg(1, "dim") % site.x.tensor.ndim, site.arg(2, "start"), site.arg(3, "length")
    size = site.x.sizes[axis]
    if not isinstance(start, Size) and start < 0:
        start = site.calculated("Add", start, size)
    stop = site.calculated("Add", start, length)
    return cut(site, site.x, [(axis, start, END if same_size(stop, size) else stop, 1)])


def concatenate_onnx(site: Site) -> str:
    """Tensors one after another along an axis, in the dtype of the result."""
    parts = [site.operand(one, site.result.dtype) for one in site.arg(0, "tensors")]
    try:
        axis = _joined(site.call, [one.tensor.ndim for one in site.arg(0, "tensors")])
    except RuleError as error:
        raise site.refuse(str(error)) from error
    return site.emit("Concat", *parts, axis=axis)


def stack_onnx(site: Site) -> str:
    """Tensors one after another along a new axis."""
    axis = site.arg(1, "dim", 0) % site.result.ndim
    place = site.ints([axis])
    parts = [site.emit("Unsqueeze", site.operand(one, site.result.dtype), place) for one in site.arg(0, "tensors")]
    return site.emit("Concat", *parts, axis=axis)


def split_onnx(site: Site) -> tuple[str, ...]:
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


def unbind_onnx(site: Site) -> tuple[str, ...]:
    """The entries of an axis; the axis is removed."""
    axis = site.arg(1, "dim", 0)
    place = site.ints([axis])
    return tuple(site.emit("Squeeze", part, place) for part in _split(site, axis, [1] * len(site.result)))


def pad_onnx(site: Site) -> str:
    """Any number of axes with a constant, or with values from the tensor; negative widths cut."""
    dims, widths = site.x.tensor.ndim, list(site.arg(1, "pad"))
    mode = site.arg(2, "mode", "constant")
    # PyTorch begins with the last axis, and names each axis' two ends one after the other.
    pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    pairs = [(0, 0)] * (dims - len(pairs)) + pairs
    if any(isinstance(width, Size) for width in widths):
        return _dynamic(site, [*(first for first, _ in pairs), *(last for _, last in pairs)], mode)
    cuts = [(axis, max(-first, 0), last if last < 0 else END, 1) for axis, (first, last) in enumerate(pairs)]
    source = cut(site, site.x, [one for one in cuts if one[1:3] != (0, END)])
    added = [max(first, 0) for first, _ in pairs] + [max(last, 0) for _, last in pairs]
    if not any(added):
        return source
    if mode != "constant":
        return site.emit("Pad", source, site.ints(added), mode=PAD_MODES[mode])
    value = site.arg(3, "value")
    return site.emit("Pad", source, site.ints(added), site.operand(value or 0, site.result.dtype))


def _dynamic(site: Site, widths: list[AnySize], mode: str) -> str:
    """Widths that follow the inputs, some of which may be negative."""
    number = site.operand(site.arg(3, "value") or 0, site.result.dtype) if mode == "constant" else None
    kind = mode if mode == "constant" else PAD_MODES[mode]
    return site.emit("Pad", site.x, site.ints(widths), number, mode=kind)


RECORDS = (
    Operator(
        torch.stack,
        traits={Trait.JOIN},
        axes=stack_axes,
        zeros=keeps,
        onnx=stack_onnx,
        samples=(Sample(lambda x: torch.stack([x, x.exp()], 2)), Sample(lambda x: torch.stack((x, x), -1))),
    ),
    Operator(
        torch.cat,
        spellings=(torch.concat, torch.concatenate),
        traits={Trait.JOIN},
        axes=cat_axes,
        zeros=keeps,
        onnx=concatenate_onnx,
        samples=(Sample(lambda x: torch.cat([x, x.exp(), x], 1)), Sample(lambda x: torch.cat((x, x), dim=-1))),
    ),
    *(
        Operator(
            op,
            traits={Trait.JOIN},
            axes=cat_axes,
            zeros=keeps,
            onnx=concatenate_onnx,
            samples=(Sample(lambda x, op=op: op((x, x.exp()))),),
        )
        for op in ALONG
    ),
    Operator(
        F.pad,
        spellings=(torch._C._nn.pad,),
        axes=pad_axes,
        onnx=pad_onnx,
        samples=(
            Sample(lambda x: F.pad(x, (1, 0, 0, 2, 3, 1), value=0.5)),
            Sample(lambda x: F.pad(x, (1, 2, 0, 3), "reflect")),
            Sample(lambda x: F.pad(x, (-1, 2))),
            Sample(lambda x: F.pad(x.flatten(2).mT, (1, 1), "reflect").mT, rigid="own values"),
        ),
    ),
    Operator(
        torch.narrow,
        axes=narrow_axes,
        zeros=keeps,
        onnx=narrow_onnx,
        samples=(Sample(lambda x: x.narrow(1, 2, 6) * x.narrow(1, 0, 6)), Sample(lambda x: torch.narrow(x, 2, 1, 2))),
    ),
    Operator(
        torch.select,
        axes=select_axes,
        zeros=keeps,
        onnx=select_onnx,
        samples=(
            Sample(lambda x: x.select(2, 1)),
            Sample(lambda x: torch.select(x, 1, 3)[:, None], rigid="read by index"),
        ),
    ),
    Operator(
        torch.unbind,
        axes=unbind_axes,
        zeros=parted,
        onnx=unbind_onnx,
        samples=(
            Sample(lambda x: x.unbind(2)[1]),
            Sample(lambda x: torch.stack(torch.unbind(x, 1)[:3], 1), rigid="one by one"),
        ),
    ),
    Operator(
        torch.chunk,
        axes=split_axes,
        zeros=parted,
        onnx=split_onnx,
        samples=(Sample(lambda x: x.chunk(2, 1)[0] * torch.chunk(x, 2, 1)[1]),),
    ),
    Operator(
        torch.split,
        spellings=("split", "split_with_sizes"),
        axes=split_axes,
        zeros=parted,
        onnx=split_onnx,
        samples=(Sample(lambda x: x.split([2, 6], 1)[1]), Sample(lambda x: torch.split(x, 4, 1))),
    ),
    Operator(
        torch.tensor_split,
        axes=split_axes,
        zeros=parted,
        onnx=split_onnx,
        samples=(Sample(lambda x: x.tensor_split(2, 1)[1]),),
    ),
    Operator(
        torch.split_with_sizes,
        axes=split_axes,
        zeros=parted,
        onnx=split_onnx,
        samples=(Sample(lambda x: torch.split_with_sizes(x, [6, 2], 1)[0]),),
    ),
)
