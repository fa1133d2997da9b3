"""Views: the same entries in the same order, with other axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from bnas.passes.axes.terms import K, Prod, Term, symbols
from bnas.passes.axes.types import Axes, AxisTypes, SizeOf
from bnas.passes.errors import RuleError
from bnas.passes.onnx.builder import through_reshapes
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import AnySize, Size

from .calls import Call, Dynamic
from .record import Layer, Operator, Sample, Target, Trait
from .zeros import keeps


def flatten_axes(types: AxisTypes, call: Call) -> Axes:
    """Row-major regrouping; no constant depends on a width."""
    return regroup(types, types.type(call.argument(0, "input")), types.output_shape(call))


def reshape_axes(types: AxisTypes, call: Call) -> Axes:
    """Row-major regrouping; constants at elastic axes become active sizes."""
    if isinstance(call.argument(1, "dtype"), torch.dtype):
        raise RuleError("a view as another number type")
    out = regroup(types, types.type(call.argument(0, "input")), types.output_shape(call))
    sizes = call.listed(1, "shape")
    if len(sizes) != len(out):
        raise RuleError("a view that is not given by its sizes")
    merged = _merged(types.shape(call.argument(0, "input")), types.output_shape(call))
    rewrite_sizes(types, call, "shape", _sizes(types, sizes, out, merged))
    return out


def rewrite_sizes(types: AxisTypes, call: Call, name: str, value: Sequence[Any]) -> None:
    """State such sizes anew; terms are active sizes."""
    if isinstance(call.argument(1, name), list | tuple):
        types.rewrite(call, 1, name, list(value))
        return
    for position, entry in enumerate(value, start=1):
        types.rewrite(call, position, "", entry)


def _sizes(
    types: AxisTypes, sizes: Sequence[Any], out: Axes, merged: Mapping[int, tuple[int, ...]] = MappingProxyType({})
) -> list[Any]:
    """The sizes of a view as terms; an elastic one that follows an input is left open, and what was open is said.

    `merged` has the axes of the input that an axis of the result holds: where that was open, its size is theirs.
    """
    value = [size if isinstance(size, Dynamic) or size == -1 else term for size, term in zip(sizes, out, strict=True)]
    unsaid = [p for p, size in enumerate(sizes) if isinstance(size, Dynamic) and any(symbols(out[p]))]
    closed = list(sizes).index(-1) if -1 in sizes else None
    fixed = closed is None or types.is_fixed(out[closed])
    if unsaid and (fixed or closed in merged):
        value[unsaid.pop(0)] = -1
        if closed is not None:
            value[closed] = out[closed] if fixed else SizeOf(merged[closed])
    types.pin_axes([out[p] for p in unsaid], "a view gives it a size that follows the input")
    return value


def _merged(before: Sequence[int], after: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return, for each axis of a view that consists of whole input axes, these axes."""
    found, place = dict[int, tuple[int, ...]](), 0
    for inputs, sizes in _blocks(list(before), list(after)):
        if len(sizes) == 1 and inputs:
            found[place] = tuple(inputs)
        place += len(sizes)
    return found


def regroup(types: AxisTypes, axes: Axes, shape: Sequence[int]) -> Axes:
    """The type after a row-major view to `shape`: minimal blocks of equal product, joined and split again."""
    out: Axes = []
    for inputs, sizes in _blocks([axis.size for axis in axes], list(shape)):
        block = axes[inputs.start : inputs.stop]
        if len(block) == len(sizes) == 1:
            out += block
            continue
        rest: Term = Prod(tuple(block)) if block else K(1)
        split: Axes = []
        for size in reversed(sizes[1:]):
            rest, last = types.factor(rest, size)
            split.append(last)
        out += [rest, *reversed(split)] if sizes else []
    return out


def _blocks(before: list[int], after: list[int]) -> Iterator[tuple[range, list[int]]]:
    """Minimal runs of input axes and output sizes with the same product."""
    if math.prod(before) != math.prod(after) or 0 in before:
        raise RuleError(f"a view from {before} to {after}")
    i = j = 0
    while i < len(before) or j < len(after):
        start, first, left, right = i, j, 1, 1
        while True:
            if left <= right and i < len(before) and (left < right or j >= len(after) or i == start):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, j = right * after[j], j + 1
            if left == right and (i > start or j > first):
                break
        yield range(start, i), after[first:j]


def unflatten_axes(types: AxisTypes, call: Call) -> Axes:
    """One axis becomes several; the sizes become active ones."""
    inputs, shape = types.type(call.argument(0, "input")), types.output_shape(call)
    dim, extra = call.argument(1, "dim") % len(inputs), len(shape) - len(inputs)
    out = regroup(types, inputs, shape)
    types.rewrite(call, 2, "sizes", _sizes(types, call.argument(2, "sizes"), out[dim : dim + extra + 1]))
    return out


def view_as_axes(types: AxisTypes, call: Call) -> Axes:
    """Row-major regrouping to the axes of another tensor."""
    out = regroup(types, types.type(call.args[0]), types.output_shape(call))
    for mine, other in zip(out, types.type(call.args[1]), strict=True):
        types.unify(mine, other)
    return out


def reshape_onnx(site: Site) -> str:
    """To the shape that PyTorch gives the result; a dynamic axis in it stays dynamic wherever it is.

    So ``squeeze()`` keeps the batch, where PyTorch drops it if it happens to be 1.
    """
    given, made, name = site.x.tensor, site.result, site.name(site.x)
    if given.dtype != made.dtype:
        raise site.refuse(f"shows the memory of {given.dtype} as {made.dtype}")
    rows = site.call.op is torch.flatten and given.ndim > made.ndim == 2 and made.shape[0] == given.shape[0]
    if rows and through_reshapes(site.builder.producer, name) == name:
        return site.emit("Flatten", name, axis=1)
    sizes = site.made
    if site.call.op is torch.reshape:
        sizes = _asked(site, sizes)
    elif site.call.op in ("view_as", "reshape_as"):
        sizes = site.value(1, "other").sizes
    elif site.call.op in (torch.squeeze, torch.unsqueeze) and sum(isinstance(size, Size) for size in sizes) > 1:
        return _axes_of_one(site)
    return site.reshape(site.x, sizes)


def _asked(site: Site, made: Sequence[AnySize]) -> list[AnySize]:
    """The sizes that the call names, with their places in the graph; ``-1`` is the size that it stands for."""
    asked = site.call.listed(1, "shape", "size")
    return [one if isinstance(one, Size) else size for one, size in zip(asked, made, strict=True)]


def _axes_of_one(site: Site) -> str:
    """Axes of size one inserted or removed while several other axes are dynamic."""
    if site.call.op is torch.unsqueeze:
        return site.emit("Unsqueeze", site.x, site.ints([site.arg(1, "dim") % site.result.ndim]))
    given = site.arg(1, "dim")
    dims = range(site.x.tensor.ndim) if given is None else [given] if isinstance(given, int) else given
    sizes = site.x.sizes
    gone = [axis % len(sizes) for axis in dims if sizes[axis] == 1]
    return site.emit("Squeeze", site.x, site.ints(gone)) if gone else site.name(site.x)


def _view(op: Target, **facts: Any) -> Operator:
    """The record of a view of all entries in their order."""
    return Operator(op, traits={Trait.SAME_ENTRIES}, zeros=keeps, onnx=reshape_onnx, **facts)


RECORDS = (
    _view(
        torch.flatten,
        layers={nn.Flatten: Layer(settings=("start_dim", "end_dim"))},
        axes=flatten_axes,
        samples=(
            Sample(lambda x: x.flatten(1)),
            Sample(lambda x: torch.flatten(x, 2)),
            Sample(lambda x, layer: layer(x), layer=lambda: nn.Flatten(2)),
        ),
    ),
    _view(
        torch.squeeze,
        axes=flatten_axes,
        samples=(
            Sample(lambda x: x[:, :, :1].squeeze(2)),
            Sample(lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(2)),
        ),
    ),
    _view(
        torch.unsqueeze,
        axes=flatten_axes,
        samples=(Sample(lambda x: x.unsqueeze(2)), Sample(lambda x: torch.unsqueeze(x, -1))),
    ),
    _view(
        torch.reshape,
        spellings=("view", "reshape"),
        axes=reshape_axes,
        samples=(
            Sample(lambda x: x.reshape(x.shape[0], 8, -1)),
            Sample(lambda x: x.view(x.size(0), 4, 2, 24).view(x.size(0), -1, 24)),
            Sample(lambda x: x.reshape(x.size(0) * 8, 4, -1).view(x.size(0), 8, -1)),
            Sample(lambda x: x.reshape((x.size(0) * 8, -1, 6)).view((x.size(0), 8, 4, -1))),
            Sample(lambda x: x.reshape(x.size(0) * 8, -1).view(x.size(0), 8, -1)),
            Sample(lambda x: torch.reshape(x, (-1, 8, 24))),
        ),
    ),
    _view(
        torch.unflatten,
        axes=unflatten_axes,
        samples=(
            Sample(lambda x: x.unflatten(1, (4, 2)).flatten(1, 2)),
            Sample(lambda x, layer: layer(x).flatten(1, 2), layer=lambda: nn.Unflatten(1, (4, 2))),
        ),
    ),
    _view(
        "view_as",
        axes=view_as_axes,
        samples=(Sample(lambda x: x.flatten(2).view_as(x)),),
    ),
    _view(
        "reshape_as",
        axes=view_as_axes,
        samples=(Sample(lambda x: x.flatten(1).reshape_as(x)),),
    ),
)
