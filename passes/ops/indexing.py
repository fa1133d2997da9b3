"""``x[...]`` and ``x[...] = y``: integers, slices, new axes, vectors of indices, and masks."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bnas.passes.axes.terms import Cat, K, Term, symbols
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.errors import RuleError
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.steps import SampleError
from bnas.passes.onnx.values import AnySize, Size, Source, Value, same_size
from bnas.passes.onnx.writes import scattered

from .arithmetic import pointwise_axes
from .calls import Call, Dynamic
from .parts import END, Cut, cut, cut_out, note_slice, picked
from .record import Operator, Sample, Spelled, Trait
from .zeros import keeps, made


def getitem_axes(types: AxisTypes, call: Call) -> Any:
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


def setitem_axes(types: AxisTypes, call: Call) -> Axes:
    """The written value is aligned with the axes that are taken whole; an axis that is written in part is pinned."""
    source, value = types.type(call.args[0]), call.args[2]
    items = _full(_entries(call.args[1]), len(source))
    mask = next((item for item in items if _is_mask(item)), None)
    if mask is not None and all(item == slice(None) or item is mask for item in items) and not _fills(types, value):
        raise RuleError("several values are written where a mask is true")
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
    """Number of axes that an entry of an index consumes."""
    return item.meta["value"].ndim if _is_mask(item) else int(item is not None)


def _fills(types: AxisTypes, value: Any) -> bool:
    """Whether a single number is written to all places."""
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
    types.pin_axes(list(others), "a part of it is overwritten")


@dataclass
class _Index:
    """The axes of the result of an index."""

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
        """A slice with step 1 cuts the axis; any other index pins it."""
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
                self.types.pin(next(axes), "one of its entries is read by index")
            elif isinstance(item, Node | list | tuple | int) and not isinstance(item, bool):
                self._by_numbers([next(axes) for _ in range(_taken(item))], position)
            else:
                raise RuleError(f"an index of type {type(item).__name__}")
        return self._with_indices(items) if by_tensors else self.out

    def _by_numbers(self, axes: Axes, position: int) -> None:
        self.types.pin_axes(axes, "its entries are read by index")
        if not self.places:
            self.before = len(self.out)
        self.places.append(position)

    def _with_indices(self, items: list[Any]) -> Axes:
        """Place the axes of the indices: together where the indices are adjacent, else before all other axes."""
        neighbours = self.places[-1] - self.places[0] + 1 == len(self.places)
        at = self.before if neighbours else 0
        tensors = [item for item in (items[place] for place in self.places) if isinstance(item, Node | list | tuple)]
        if not any(map(_is_mask, tensors)):
            own = self.types.broadcast(*map(self._axes_of, tensors))
        elif len(tensors) == 1 and self.shape is not None:
            self.types.pin_axes(self.types.type(tensors[0]), "it selects the entries that are read")
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
        self.types.pin(axis, "a part of it is overwritten")
        return K(len(range(*item.indices(axis.size))))


def _slice(types: AxisTypes, axis: Term, item: slice) -> tuple[Term, slice]:
    """Return the part of the axis that the slice keeps, and the slice in active sizes."""
    if item == slice(None):
        return axis, item
    chosen = range(*item.indices(axis.size))
    if any(isinstance(v, Dynamic) for v in (item.start, item.stop, item.step)):
        types.pin(axis, "its size follows the input: an input gives the end of a slice")
        return K(len(chosen)), item
    if chosen.step != 1 or not any(symbols(axis)):
        types.pin(axis, "a slice of it is read by index")
        return K(len(chosen)), item
    head, middle = cut_out(types, axis, chosen.start, len(chosen))
    return middle, slice(head, Cat((head, middle)), None)


def getitem_onnx(site: Site) -> str:
    """All indices of PyTorch, but at most one mask that depends on the inputs."""
    index = site.call.args[1]
    if is_mask(index) and not index.constant:
        return _masked(site, site.x, index)
    picks = list(_spelled_out(site, index if isinstance(index, tuple) else (index,)))
    if sum(map(_is_vector, picks)) < 2:
        return _one_by_one(site, picks)
    # PyTorch takes entries out and puts new axes in first; vectors are broadcast against one another afterwards.
    plain = _one_by_one(site, [slice(None) if _is_vector(pick) else pick for pick in picks])
    dims = iter(site.x.sizes)
    both = [(pick, 1 if pick is None else next(dims)) for pick in picks]
    return _gathered(site, plain, [(pick, size) for pick, size in both if not _is_single_place(pick)])


def _one_by_one(site: Site, picks: Sequence[Any]) -> str:
    """Picks of which one at most is a vector."""
    source, axis, added, dropped = site.name(site.x), 0, list[int](), list[int]()
    source = _sliced(site, source, [pick for pick in picks if pick is not None])
    for pick in picks:
        if pick is None:
            added.append(axis - len(dropped) + len(added))
            continue
        if isinstance(pick, int | Size):
            dropped.append(axis)
        elif not isinstance(pick, slice):
            source = site.emit("Gather", source, pick, axis=axis)
            axis += pick.tensor.ndim - 1 if isinstance(pick, Value) else pick.ndim - 1
        axis += 1
    source = site.emit("Squeeze", source, site.ints(dropped)) if dropped else source
    return site.emit("Unsqueeze", source, site.ints(added)) if added else source


def is_mask(index: Any) -> bool:
    """Whether an index is a tensor of bools."""
    return isinstance(index, Value) and index.tensor.dtype == torch.bool


def _masked(site: Site, x: Value, mask: Value) -> str:
    """The entries, or rows, that a mask picks."""
    dims = mask.tensor.ndim
    rows = site.emit("Reshape", x, site.ints([-1, *x.sizes[dims:]])) if dims > 1 else site.name(x)
    return site.emit("Compress", rows, site.emit("Reshape", mask, site.ints([-1])), axis=0)


def _spelled_out(site: Site, index: Sequence[Any]) -> Iterator[Any]:
    """Return a pick for each axis, and ``None`` for each new axis."""
    if any(isinstance(pick, bool) for pick in index):
        raise site.refuse("is indexed with a bool")
    plain = [one for pick in index for one in _vectors(site, pick)]
    taken = sum(pick is not None and pick is not Ellipsis for pick in plain)
    rest = [slice(None)] * (site.x.tensor.ndim - taken)
    for pick in plain:
        if pick is Ellipsis:
            yield from rest
            rest = []
        else:
            yield pick
    yield from rest


def _vectors(site: Site, pick: Any) -> list[Any]:
    """A pick as integers: a list becomes a tensor, and a mask as many vectors as it has axes."""
    if isinstance(pick, list):
        pick = torch.as_tensor(pick)
    known = pick.tensor if isinstance(pick, Value) and pick.constant else pick
    if isinstance(known, Tensor) and known.dtype == torch.bool:
        return list(known.nonzero(as_tuple=True))
    if is_mask(pick):
        raise site.refuse("is indexed with a mask among other indices")
    return [pick]


def _is_single_place(pick: Any) -> bool:
    """Whether a pick is one entry of an axis."""
    single = (isinstance(pick, Value) and not pick.tensor.ndim) or (isinstance(pick, Tensor) and not pick.ndim)
    return single or isinstance(pick, int | Size)


def _is_vector(pick: Any) -> bool:
    return isinstance(pick, Value | Tensor) and not _is_single_place(pick)


def _gathered(site: Site, source: str, picks: Sequence[tuple[Any, AnySize]]) -> str:
    """Several vectors: merge the indexed axes, whose sizes are known, into one axis with one index."""
    axes = [axis for axis, (pick, _) in enumerate(picks) if _is_vector(pick)]
    others = [axis for axis in range(len(picks)) if axis not in axes]
    turned = site.transpose(source, [*axes, *others])
    behind = [site.emit("Shape", turned, start=len(axes))] if others else []
    flat = site.emit("Reshape", turned, site.emit("Concat", site.ints([-1]), *behind, axis=0))
    found = site.emit("Gather", flat, _one_index(site, [picks[axis] for axis in axes]), axis=0)
    if axes != list(range(axes[0], axes[-1] + 1)):
        return found
    count = site.result.ndim - len(others)
    before = sum(axis < axes[0] for axis in others)
    order = [*range(count, count + before), *range(count), *range(count + before, site.result.ndim)]
    return site.transpose(found, order)


def _one_index(site: Site, picks: Sequence[tuple[Any, AnySize]]) -> str:
    """Combine indices into several axes to one index into the merged axis."""
    total = ""
    for pick, size in picks:
        index = site.operand(_known(pick), torch.int64)
        index = site.emit("Mod", index, site.scalar(size))  # what is counted from the end
        total = site.emit("Add", site.emit("Mul", total, site.scalar(size)), index) if total else index
    return total


def _known(pick: Source) -> Any:
    return Value(pick, "index") if isinstance(pick, Tensor) else pick


def _cuts(site: Site, sizes: Sequence[AnySize], picks: Sequence[Any]) -> list[Cut]:
    """Return the slices that take only a part of their axis."""
    axes: list[Cut] = []
    for axis, pick in enumerate(picks):
        if isinstance(pick, int):
            axes.append((axis, pick, END if pick == -1 else pick + 1, 1))
        elif isinstance(pick, slice):
            start, step = pick.start or 0, pick.step or 1
            _check_not_cut_off(site, sizes[axis], pick.stop)
            stop = END if pick.stop is None or same_size(pick.stop, sizes[axis]) else pick.stop
            if (start, stop, step) != (0, END, 1):
                axes.append((axis, start, stop, step))
    return axes


def _check_not_cut_off(site: Site, size: AnySize, stop: Any) -> None:
    """Refuse a slice that takes the whole axis of the example, but not of the tried sizes: it would fix the size."""
    example = site.builder.examples.get(size.pair) if isinstance(size, Size) else None
    if example is not None and isinstance(stop, int) and example < stop < size.sample:  # type: ignore[union-attr]
        raise SampleError(f"{site.scope}: cuts an axis of {size.pair} off at {stop}")  # type: ignore[union-attr]


def _sliced(site: Site, source: str, picks: Sequence[Any]) -> str:
    """`source` cut where a pick is an integer or a slice that does not take all."""
    source = cut(site, source, _cuts(site, site.x.sizes, picks))
    for axis, pick in enumerate(picks):
        source = picked(site, source, axis, pick) if isinstance(pick, Size) else source
    return source


def setitem_onnx(site: Site) -> str:
    """The first argument with the entries that an index picks replaced."""
    x, index, new = site.x, site.call.args[1], site.call.args[2]
    if isinstance(new, Value) and _is_same_view(x, index, new):
        return site.name(x)  # ``x[i] += y`` writes into the view first, and then the view into its place
    if is_mask(index) and _is_single(new):
        return _chosen(site, index, new)
    if is_mask(index) and not index.constant:
        places = site.positions(x)
        positions = site.like(x, _masked(site, places, index), torch.int64)
        value = site.emit("Expand", site.operand(new, x.tensor.dtype), site.emit("Shape", positions.name))
        return scattered(site, x, positions, value)
    return replaced(site, index, new) or _scattered(site, index, new)


def _is_same_view(x: Value, index: Any, new: Value) -> bool:
    if new.memory is not x.memory or len(new.steps) != len(x.steps) + 1 or new.version != x.version:
        return False
    last = new.steps[-1].call
    return last.op is operator.getitem and bool(_comparable(last.args[1]) == _comparable(index))


def _comparable(index: Any) -> Any:
    return [id(one) if isinstance(one, Tensor) else one for one in (index if isinstance(index, tuple) else (index,))]


def _is_single(new: Any) -> bool:
    return not isinstance(new, Value) or new.tensor.numel() == 1


def _chosen(site: Site, mask: Value, new: Any) -> str:
    """One number where a mask of the first axes is true."""
    x, behind = site.x, site.x.tensor.ndim - mask.tensor.ndim
    name = site.name(mask)
    if behind:
        name = site.emit("Unsqueeze", name, site.ints(range(mask.tensor.ndim, x.tensor.ndim)))
    number = site.operand(new, x.tensor.dtype)
    if isinstance(new, Value) and new.tensor.ndim:
        number = site.emit("Reshape", number, site.ints([1]))
    return site.emit("Where", name, number, x)


def replaced(site: Site, index: Any, new: Any) -> str | None:
    """The first argument with a run of entries of one axis replaced: before, the new, behind; else ``None``."""
    if any(isinstance(pick, Value | Tensor | list) for pick in (index if isinstance(index, tuple) else (index,))):
        return None
    x, at = site.x, site.derived(operator.getitem, site.x, index)
    picks = list(_spelled_out(at, index if isinstance(index, tuple) else (index,)))
    cuts = _cuts(site, x.sizes, picks)
    if None in picks or len(cuts) > 1 or any(isinstance(pick, Size) for pick in picks):
        return None
    if not cuts:
        return filled(site, new, x, x.tensor.dtype)
    axis, start, stop, step = cuts[0]
    if step != 1:
        return None
    if not at.result.numel() and not at.twin.numel():
        return site.name(x)  # as ``x[-shift:-0]`` of windows that are not shifted
    target = Value(at.result, str(getitem_onnx(at)), twin=at.twin)
    middle = filled(site, new, target, x.tensor.dtype)
    if isinstance(picks[axis], int):
        middle = site.emit("Unsqueeze", middle, site.ints([axis]))
    before = [] if start == 0 else [cut(site, x, [(axis, 0, start, 1)])]
    behind = [] if stop == END else [_behind(site, axis, start, stop)]
    return site.emit("Concat", *before, middle, *behind, axis=axis)


def _behind(site: Site, axis: int, start: Any, stop: Any) -> str:
    """The entries behind a run. An inner run, ``x[2:-2]``, may be empty; then `stop` is before `start`."""
    inner = isinstance(start, int) and isinstance(stop, int) and start > 0 > stop
    rest = cut(site, site.x, [(axis, start, END, 1)]) if inner else site.x
    return cut(site, rest, [(axis, stop, END, 1)])


def filled(site: Site, new: Any, target: Value, dtype: torch.dtype) -> str:
    """`new` as `dtype`, broadcast to the shape of `target`."""
    name = site.operand(new, dtype)
    if not isinstance(new, Value):
        return site.emit("Expand", name, site.shape(target))
    extra = new.tensor.ndim - target.tensor.ndim
    if extra > 0:
        name = site.emit("Squeeze", name, site.ints(range(extra)))
    same = extra == 0 and all(same_size(*pair) for pair in zip(new.sizes, target.sizes, strict=True))
    return name if same else site.emit("Expand", name, site.shape(target))


def _scattered(site: Site, index: Any, new: Any) -> str:
    x, positions = site.x, site.lowered(operator.getitem, site.positions(site.x), index)
    return scattered(site, x, positions, filled(site, new, positions, x.tensor.dtype))


def fill_onnx(site: Site) -> str:
    """New content, in the shape and dtype of the old."""
    new = 0 if site.call.op == "zero" else site.arg(1, "src", site.arg(1, "value"))
    return filled(site, new, site.x, site.result.dtype)


def _with_row(x: Tensor) -> Tensor:
    """An example: a row of a copy is written."""
    out = x.clone()
    out[:, :, 0] = 1.0
    return out


def _with_parts(x: Tensor) -> Tensor:
    """An example: parts of a copy are written from another tensor."""
    out = x.clone()
    out[:, :, 1:] = x[:, :, :3].cos()
    out[x > 0.5] = 0.5
    return out


def _slice_in_python(self: Any, dim: int, start: Any, end: Any, step: int) -> Spelled:
    end = None if isinstance(end, int) and end == sys.maxsize else end
    start = None if isinstance(start, int) and start == 0 else start
    part = slice(start, end, None if step == 1 else step)
    before, after = (dim, 0) if dim >= 0 else (0, -dim - 1)
    places = ((slice(None),) * before, (Ellipsis,) * (dim < 0), (part,), (slice(None),) * after)
    return Tensor.__getitem__, (self, sum(places, ())), {}


def _index_in_python(self: Any, indices: Any) -> Spelled:
    return Tensor.__getitem__, (self, tuple(slice(None) if one is None else one for one in indices)), {}


RECORDS = (
    Operator(torch.fill, axes=pointwise_axes, onnx=fill_onnx, samples=(Sample(lambda x: x + x.clone().fill_(2)),)),
    Operator(
        "zero", axes=pointwise_axes, zeros=made, onnx=fill_onnx, samples=(Sample(lambda x: x + x.clone().zero_()),)
    ),
    Operator("copy", axes=pointwise_axes, onnx=fill_onnx, samples=(Sample(lambda x: x.clone().copy_(x[:, :1])),)),
    Operator(
        operator.getitem,
        spellings=("__getitem__",),
        aten={"slice": _slice_in_python, "index": _index_in_python},
        axes=getitem_axes,
        traits={Trait.PICKS},
        zeros=keeps,
        onnx=getitem_onnx,
        samples=(
            Sample(lambda x: x[:, 2:] * x[:, :6]),
            Sample(lambda x: x[:, :, torch.tensor([1, 0])]),
            Sample(lambda x: x[:, ..., None, 1:3]),
            Sample(lambda x: x[:, :, [0, -1]]),
            Sample(lambda x: x[:, 1:2] * x[:, 3, None], rigid="read by index"),
            Sample(lambda x: x[:, ::2], rigid="read by index"),
        ),
    ),
    Operator(
        operator.setitem,
        spellings=("__setitem__",),
        in_place=(operator.setitem,),
        axes=setitem_axes,
        onnx=setitem_onnx,
        samples=(Sample(_with_row), Sample(_with_parts)),
    ),
)
