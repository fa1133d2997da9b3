"""Parts of an axis: slices and splits cut it, single entries and tensors of indices pin it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    items = _full(_entries(item), len(source))
    found = _Index(types, call.node.meta["value"].shape)
    out = found.read(source, items)
    for axis, taken in found.sliced:
        note_slice(types, call.args[0], axis, taken)
    types.rewrite(call, 1, "", tuple(found.written))
    return out


def note_slice(types: AxisTypes, source: Any, axis: Term, taken: Term) -> None:
    """Remember what a slice of a parameter or buffer leaves: nobody may read it."""
    if taken.size < axis.size and source not in types.following:
        types.slices.append((axis, taken))


@register_rule(operator.setitem)
def setitem(types: AxisTypes, call: Call) -> Axes:
    """What is written lines up with the whole axes; an axis that is written in part is pinned."""
    source, value = types.type(call.args[0]), call.args[2]
    items = _full(_entries(call.args[1]), len(source))
    mask = next((item for item in items if _is_mask(item)), None)
    if mask is not None and all(item == slice(None) or item is mask for item in items) and not _fills(types, value):
        raise RuleError("several values are written where a mask says")
    if mask is not None:
        _along_mask(types, source, items, mask)
        return source
    place = _Index(types, None).written_to(source, items)
    if types.is_tensor(value):
        types.broadcast(place, _without_ones(types.type(value), len(place)))
    return source


def _entries(item: Any) -> list[Any]:
    return list(item) if isinstance(item, tuple) else [item]


def _full(items: list[Any], axes: int) -> list[Any]:
    """The index with the ellipsis spelled out, and the axes after it."""
    places = [place for place, item in enumerate(items) if item is Ellipsis]
    taken = sum(_taken(item) for item in items if item is not Ellipsis)
    at = places[0] if places else len(items)
    return [*items[:at], *[slice(None)] * (axes - taken), *items[at + len(places) :]]


def _is_mask(item: Any) -> bool:
    return isinstance(item, Node) and item.meta["value"].dtype in (torch.bool, torch.uint8)


def _taken(item: Any) -> int:
    """Axes that an entry of an index stands for."""
    return item.meta["value"].ndim if _is_mask(item) else int(item is not None)


def _fills(types: AxisTypes, value: Any) -> bool:
    """Whether one number is written everywhere."""
    return not types.is_tensor(value) or all(axis.size == 1 for axis in types.type(value))


def _without_ones(axes: Axes, most: int) -> Axes:
    """The last `most` axes; those before must be of size 1."""
    if any(axis.size != 1 for axis in axes[: max(0, len(axes) - most)]):
        raise RuleError("more axes are written than there are")
    return axes[max(0, len(axes) - most) :]


def _along_mask(types: AxisTypes, source: Axes, items: list[Any], mask: Node) -> None:
    """One number is written wherever a mask says, which has some of the axes."""
    at = items.index(mask)
    for mine, its in zip(source[at:], types.type(mask), strict=False):
        types.unify(mine, its)
    others = (axis for axis, item in zip(source, items, strict=False) if item is not mask and item != slice(None))
    types.pin_axes(list(others), "a part of it is written into")


@dataclass
class _Index:
    """The axes of what an index takes out of a tensor."""

    types: AxisTypes
    shape: Sequence[int] | None
    """The shape of the result where it is known."""
    out: Axes = field(default_factory=list)
    written: list[Any] = field(default_factory=list)
    """The index in active sizes."""
    places: list[int] = field(default_factory=list)
    """Where tensors, lists and numbers of an index by tensors stand, among all entries."""
    sliced: list[tuple[Term, Term]] = field(default_factory=list)
    """Axes, each with what a slice takes of it."""
    before: int = 0
    """The axes of the result before the first of them."""

    def read(self, source: Axes, items: list[Any]) -> Axes:
        """A slice of step 1 cuts, all else pins."""
        return self._taken(source, items, self._slice)

    def written_to(self, source: Axes, items: list[Any]) -> Axes:
        """Every axis that is not taken whole is pinned."""
        return self._taken(source, items, self._part)

    def _taken(self, source: Axes, items: list[Any], cut: Callable[[Term, slice], Term]) -> Axes:
        axes = iter(source)
        by_tensors = any(isinstance(item, Node | list | tuple) for item in items)
        for position, item in enumerate(items):
            self.written.append(item)
            if item is None:
                self.out.append(K(1))
            elif isinstance(item, slice):
                self.out.append(cut(next(axes), item))
            elif isinstance(item, int) and not isinstance(item, bool) and not by_tensors:
                self.types.pin(next(axes), "one entry of it is read by number")
            elif isinstance(item, Node | list | tuple | int) and not isinstance(item, bool):
                self._by_numbers([next(axes) for _ in range(_taken(item))], position)
            else:
                raise RuleError(f"an index of type {type(item).__name__}")
        return self._with_indices(items) if by_tensors else self.out

    def _by_numbers(self, axes: Axes, position: int) -> None:
        self.types.pin_axes(axes, "entries of it are read by numbers")
        if not self.places:
            self.before = len(self.out)
        self.places.append(position)

    def _with_indices(self, items: list[Any]) -> Axes:
        """The axes of the indices stand together where these do, or before all others."""
        neighbours = self.places[-1] - self.places[0] + 1 == len(self.places)
        at = self.before if neighbours else 0
        tensors = [item for item in (items[place] for place in self.places) if isinstance(item, Node | list | tuple)]
        if not any(map(_is_mask, tensors)):
            own = self.types.broadcast(*map(self._axes_of, tensors))
        elif len(tensors) == 1 and self.shape is not None:
            self.types.pin_axes(self.types.type(tensors[0]), "it says which entries are read")
            own = [K(self.shape[at])]
        else:
            raise RuleError("an index by a mask and others")
        return [*self.out[:at], *own, *self.out[at:]]

    def _axes_of(self, index: Node | list[Any] | tuple[Any, ...]) -> Axes:
        if isinstance(index, Node):
            return self.types.type(index)
        if any(isinstance(entry, bool) or not isinstance(entry, int) for entry in index):
            raise RuleError("an index by a list of something else than numbers")
        return [K(len(index))]

    def _slice(self, axis: Term, item: slice) -> Term:
        term, self.written[-1] = _slice(self.types, axis, item)
        self.sliced.append((axis, term))
        return term

    def _part(self, axis: Term, item: slice) -> Term:
        if item == slice(None):
            return axis
        self.types.pin(axis, "a part of it is written into")
        return K(len(range(*item.indices(axis.size))))


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
    axis = out[dim]
    head, out[dim] = cut_out(types, axis, start % axis.size, length)
    note_slice(types, call.argument(0, "input"), axis, out[dim])
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


@register_rule(torch.index_select)
def index_select(types: AxisTypes, call: Call) -> Axes:
    """The axis is pinned, and all axes of the index."""
    axes, index = list(types.type(call.argument(0, "input"))), call.argument(2, "index")
    dim = call.argument(1, "dim") % len(axes)
    types.pin(axes[dim], "entries of it are read by numbers")
    types.pin_axes(types.type(index), "it holds numbers of entries")
    axes[dim] = K(types.output_shape(call)[dim])
    return axes


@register_rule(torch.gather, torch.take_along_dim)
def gather(types: AxisTypes, call: Call) -> Axes:
    """The axis is pinned; the others are those of the index where they have one size, else pinned."""
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
            types.pin_axes(axes, "entries of it are read by numbers")
        same = [axis for axis in axes[1:] if axis.size == axes[0].size and place != dim]
        for axis in same:
            types.unify(axes[0], axis)


@register_rule(torch.scatter, torch.scatter_add)
def scatter(types: AxisTypes, call: Call) -> Axes:
    """As `gather`, from the other side; the result is the first input's type."""
    inputs, values = types.type(call.argument(0, "input")), call.argument(3, "src", call.kwargs.get("value"))
    tensors = [types.type(values)] if types.is_tensor(values) else []
    _along(types, call.argument(1, "dim"), inputs, types.type(call.argument(2, "index")), *tensors)
    return inputs


@register_rule(torch.index_add, torch.index_copy, torch.index_fill)
def index_add(types: AxisTypes, call: Call) -> Axes:
    """Written along a pinned axis; the other axes are those of what is written."""
    inputs, values = types.type(call.argument(0, "input")), call.argument(3, "source", call.kwargs.get("value"))
    dim = call.argument(1, "dim") % len(inputs)
    types.pin(inputs[dim], "entries of it are written by numbers")
    types.pin_axes(types.type(call.argument(2, "index")), "it holds numbers of entries")
    for place, axis in enumerate(types.type(values) if types.is_tensor(values) and types.type(values) else ()):
        if place == dim:
            types.pin(axis, "entries of it are written by numbers")
        else:
            types.unify(inputs[place], axis)
    return inputs


@register_rule(torch.masked_scatter)
def masked_scatter(types: AxisTypes, call: Call) -> Axes:
    """Values are taken in their order: all is rigid."""
    for tensor in call.tensors():
        types.pin_axes(types.type(tensor), "values are written in their order where a mask says")
    return types.type(call.argument(0, "input"))
