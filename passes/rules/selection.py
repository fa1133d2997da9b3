"""Parts of an axis: slices and splits cut it, single entries and tensors of indices pin it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call, Dynamic
from bnas.passes.errors import RuleError
from bnas.passes.terms import Cat, K, Term, symbols


@register_rule(operator.getitem)
def getitem(types: AxisTypes, call: Call) -> Any:
    """An item of a tuple or dict; or of a tensor: a slice of step 1 cuts, an index pins."""
    source, item = types.values[call.args[0]], call.args[1]
    if not isinstance(source, list):
        return source[item]
    items = _full(list(item) if isinstance(item, tuple) else [item], len(source))
    if any(isinstance(i, Node) for i in items):
        return _by_tensors(types, call, source, items)
    axes, out, written = iter(source), list[Term](), list[Any]()
    for entry in items:
        written.append(entry)
        if entry is None:
            out.append(K(1))
        elif isinstance(entry, int):
            types.pin(next(axes), "one entry of it is read by number")
        elif isinstance(entry, slice):
            term, written[-1] = _slice(types, next(axes), entry)
            out.append(term)
        else:
            raise RuleError(f"an index of type {type(entry).__name__}")
    types.rewrite(call, 1, "", tuple(written))
    return [*out, *axes]


def _full(items: list[Any], axes: int) -> list[Any]:
    """The index with the ellipsis spelled out."""
    places = [place for place, item in enumerate(items) if item is Ellipsis]
    for at in places[:1]:
        taken = sum(_taken(item) for item in items) - 1
        items[at : at + 1] = [slice(None)] * (axes - taken)
    return items


def _taken(item: Any) -> int:
    """Axes that an entry of an index stands for."""
    boolean = isinstance(item, Node) and item.meta["value"].dtype == torch.bool
    return item.meta["value"].ndim if boolean else int(item is not None)


def _by_tensors(types: AxisTypes, call: Call, source: Axes, items: list[Any]) -> Axes:
    """One tensor of whole numbers among plain slices: its axes stand where the axis was, which is pinned."""
    others = [item for item in items if not isinstance(item, Node)]
    index = next(item for item in items if isinstance(item, Node))
    plain = all(item == slice(None) for item in others if isinstance(item, slice))
    if len(others) != len(items) - 1 or not plain or not all(isinstance(item, slice) for item in others):
        raise RuleError("an index of several tensors, or of tensors and others")
    if index.meta["value"].dtype == torch.bool:
        raise RuleError("an index by truth values")
    place = items.index(index)
    types.pin(source[place], "entries of it are read by numbers")
    return [*source[:place], *types.type(index), *source[place + 1 :]]


def _slice(types: AxisTypes, axis: Term, item: slice) -> tuple[Term, slice]:
    """What the slice keeps of the axis, and the slice in active sizes."""
    if item == slice(None):
        return axis, item
    chosen = range(*item.indices(axis.size))
    if any(isinstance(v, Dynamic) for v in (item.start, item.stop, item.step)):
        types.pin(axis, "its size follows the input: a slice of it ends where an input says")
        return K(len(chosen)), item
    if chosen.step != 1 or not any(symbols(axis)):
        types.pin(axis, "a slice of it is read by numbers")
        return K(len(chosen)), item
    head, middle = cut_out(types, axis, chosen.start, len(chosen))
    return middle, slice(head, Cat((head, middle)), None)


def cut_out(types: AxisTypes, axis: Term, start: int, length: int) -> tuple[Term, Term]:
    """What stands before the run of `length` entries from `start`, and the run itself."""
    head, rest = types.cut(axis, start)
    middle, _ = types.cut(rest, length)
    return head, middle


@register_rule(torch.narrow)
def narrow(types: AxisTypes, call: Call) -> Axes:
    """A slice by start and length."""
    out = list(types.type(call.argument(0, "input")))
    dim = call.argument(1, "dim") % len(out)
    start, length = call.argument(2, "start"), call.argument(3, "length")
    if isinstance(start, Node):
        raise RuleError("a slice by a tensor")
    if isinstance(start, Dynamic) or isinstance(length, Dynamic):
        types.pin(out[dim], "its size follows the input: a slice of it ends where an input says")
        out[dim] = K(int(length))
        return out
    head, out[dim] = cut_out(types, out[dim], start % out[dim].size, length)
    types.rewrite(call, 2, "start", head)
    types.rewrite(call, 3, "length", out[dim])
    return out


@register_rule(torch.select)
def select(types: AxisTypes, call: Call) -> Axes:
    """One entry by number: its axis is pinned and gone."""
    out = list(types.type(call.argument(0, "input")))
    types.pin(out.pop(call.argument(1, "dim") % len(out)), "one entry of it is read by number")
    return out


@register_rule(torch.unbind)
def unbind(types: AxisTypes, call: Call) -> tuple[Axes, ...]:
    """All entries one by one: their axis is pinned and gone."""
    out = list(types.type(call.argument(0, "input")))
    axis = out.pop(call.argument(1, "dim", 0) % len(out))
    types.pin(axis, "its entries are read one by one")
    return (out,) * axis.size


@register_rule(torch.chunk, torch.split, torch.tensor_split, torch.split_with_sizes)
def split(types: AxisTypes, call: Call) -> tuple[Axes, ...]:
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


@register_rule(torch.index_select, torch.gather, torch.take_along_dim)
def index_select(types: AxisTypes, call: Call) -> Axes:
    """The axis is pinned, and all axes of the index."""
    axes, position = types.type(call.argument(0, "input")), 2 if call.op is torch.take_along_dim else 1
    index = call.argument(3 - position, "index")
    dim = call.argument(position, "dim") % len(axes)
    types.pin(axes[dim], "entries of it are read by numbers")
    types.pin_axes(types.type(index), "it holds numbers of entries")
    if call.op is not torch.index_select:
        types.pin_axes(axes, "entries of it are read by numbers")
    return [K(types.output_shape(call)[dim]) if axis == dim else term for axis, term in enumerate(axes)]
