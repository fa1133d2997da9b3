"""Views, concatenation and padding: entries are grouped anew, in their order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call, Dynamic
from bnas.passes.errors import RuleError
from bnas.passes.terms import Cat, K, Prod, Term, symbols


@register_rule(torch.flatten, torch.squeeze, torch.unsqueeze)
def flatten(types: AxisTypes, call: Call) -> Axes:
    """Row-major regrouping; no constant depends on a width."""
    return regroup(types, types.type(call.argument(0, "input")), types.output_shape(call))


@register_rule(torch.reshape)
def reshape(types: AxisTypes, call: Call) -> Axes:
    """Row-major regrouping; constants at elastic axes become active sizes."""
    if isinstance(call.argument(1, "dtype"), torch.dtype):
        raise RuleError("a view as another number type")
    out = regroup(types, types.type(call.argument(0, "input")), types.output_shape(call))
    sizes = call.listed(1, "shape")
    if len(sizes) != len(out):
        raise RuleError("a view that is not given by its sizes")
    rewrite_sizes(types, call, "shape", _sizes(types, sizes, out))
    return out


def rewrite_sizes(types: AxisTypes, call: Call, name: str, value: Sequence[Any]) -> None:
    """State such sizes anew; terms are active sizes."""
    if isinstance(call.argument(1, name), list | tuple):
        types.rewrite(call, 1, name, list(value))
        return
    for position, entry in enumerate(value, start=1):
        types.rewrite(call, position, "", entry)


def _sizes(types: AxisTypes, sizes: Sequence[Any], out: Axes) -> list[Any]:
    """The sizes of a view as terms; an elastic one that follows an input is left open, and what was open is said."""
    value = [size if isinstance(size, Dynamic) or size == -1 else term for size, term in zip(sizes, out, strict=True)]
    unsaid = [p for p, size in enumerate(sizes) if isinstance(size, Dynamic) and any(symbols(out[p]))]
    closed = list(sizes).index(-1) if -1 in sizes else None
    if unsaid and (closed is None or types.is_fixed(out[closed])):
        value[unsaid.pop(0)] = -1
        if closed is not None:
            value[closed] = out[closed]
    types.pin_axes([out[p] for p in unsaid], "a view gives it a size that follows the input")
    return value


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


@register_rule(torch.unflatten)
def unflatten(types: AxisTypes, call: Call) -> Axes:
    """One axis becomes several; the sizes become active ones."""
    inputs, shape = types.type(call.argument(0, "input")), types.output_shape(call)
    dim, extra = call.argument(1, "dim") % len(inputs), len(shape) - len(inputs)
    out = regroup(types, inputs, shape)
    types.rewrite(call, 2, "sizes", _sizes(types, call.argument(2, "sizes"), out[dim : dim + extra + 1]))
    return out


@register_rule("view_as", "reshape_as")
def view_as(types: AxisTypes, call: Call) -> Axes:
    """Row-major regrouping to the axes of another tensor."""
    out = regroup(types, types.type(call.args[0]), types.output_shape(call))
    for mine, other in zip(out, types.type(call.args[1]), strict=True):
        types.unify(mine, other)
    return out


@register_rule(torch.stack)
def stack(types: AxisTypes, call: Call) -> Axes:
    """All axes are one each; a rigid axis is added."""
    parts = [types.type(part) for part in call.argument(0, "tensors")]
    for part in parts[1:]:
        for left, right in zip(parts[0], part, strict=True):
            types.unify(left, right)
    out = list(parts[0])
    out.insert(call.argument(1, "dim", 0) % (len(out) + 1), K(len(parts)))
    return out


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
