"""Operators that move entries without changing them: views, concatenation, slices, padding, permutation."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call
from bnas.passes.errors import RuleError
from bnas.passes.terms import Cat, K, Prod, Term


@register_rule(torch.flatten, torch.squeeze, torch.unsqueeze)
def flatten(types: AxisTypes, call: Call) -> Axes:
    """Row-major regrouping; no constant depends on a width."""
    return regroup(types, types.type(call.argument(0, "input")), types.output_shape(call))


@register_rule(torch.reshape)
def reshape(types: AxisTypes, call: Call) -> Axes:
    """Row-major regrouping; constants at elastic axes become active sizes."""
    out = regroup(types, types.type(call.argument(0, "input")), types.output_shape(call))
    packed = len(call.args) == 2 and isinstance(call.args[1], list | tuple)
    sizes = list(call.args[1]) if packed else list(call.args[1:]) or list(call.kwargs.get("shape", ()))
    if len(sizes) != len(out):
        raise RuleError("a view that is not given by its sizes")
    value = [term if isinstance(size, int) and size != -1 else size for size, term in zip(sizes, out, strict=True)]
    if packed or not call.args[1:]:
        types.rewrite(call, 1, "shape", value)
    for position, entry in enumerate([] if packed else value, start=1):
        if isinstance(entry, Term):
            types.rewrite(call, position, "", entry)
    return out


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
            if i >= len(before) and j >= len(after):
                raise RuleError(f"a view from {before} to {after}")
        yield range(start, i), after[first:j]


@register_rule(torch.cat)
def cat(types: AxisTypes, call: Call) -> Axes:
    """The other axes are one each; the concatenated axis holds the parts in order."""
    parts = [types.type(part) for part in call.argument(0, "tensors")]
    dim = call.argument(1, "dim", 0) % len(parts[0])
    for part in parts[1:]:
        for axis, (left, right) in enumerate(zip(parts[0], part, strict=True)):
            if axis != dim:
                types.unify(left, right)
    return [Cat(tuple(p[dim] for p in parts)) if axis == dim else term for axis, term in enumerate(parts[0])]


@register_rule(operator.getitem)
def getitem(types: AxisTypes, call: Call) -> Any:
    """An item of a tuple; or a slice: step 1 cuts, anything else pins the axis."""
    source = types.values[call.args[0]]
    if not isinstance(source, list):
        return source[call.args[1]]
    items = list(call.args[1]) if isinstance(call.args[1], tuple) else [call.args[1]]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(source) + 1 - len([i for i in items if i is not None]))
    axes, out = iter(source), []
    for item in items:
        if item is None:
            out.append(K(1))
        elif isinstance(item, int):
            types.pin(next(axes), "one entry of it is read by number")
        elif isinstance(item, slice):
            out.append(_slice(types, next(axes), item))
        else:
            raise RuleError(f"an index of type {type(item).__name__}")
    return [*out, *axes]


def _slice(types: AxisTypes, axis: Any, item: slice) -> Any:
    if item == slice(None):
        return axis
    if any(not isinstance(v, int | None) for v in (item.start, item.stop, item.step)):
        raise RuleError("a slice by a size that carries the batch")
    chosen = range(*item.indices(axis.size))
    types.pin(axis, "a slice of it is read by numbers")
    return K(len(chosen))


@register_rule(F.pad)
def pad(types: AxisTypes, call: Call) -> Axes:
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


@register_rule(torch.permute, torch.transpose)
def permute(types: AxisTypes, call: Call) -> Axes:
    """The order is read off a dummy with distinct sizes."""
    inputs = types.type(call.argument(0, "input"))
    dummy = torch.empty([*range(2, len(inputs) + 2)], device="meta")
    moved = getattr(dummy, "permute" if call.op is torch.permute else "transpose")(*call.args[1:], **call.kwargs)
    return [inputs[n - 2] for n in moved.shape]
