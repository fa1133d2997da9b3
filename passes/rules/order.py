"""Operators that move or repeat entries: permutation, expansion, repetition, rolling, pixel shuffle."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, Moved, register_rule
from bnas.passes.calls import Call, Dynamic
from bnas.passes.errors import RuleError
from bnas.passes.frontend.on_meta import BATCH
from bnas.passes.terms import K, Perm, Prod, Sym, Term

from .shape import rewrite_sizes


@register_rule(torch.permute, torch.transpose, torch.movedim, torch.t, torch.adjoint)
def permute(types: AxisTypes, call: Call) -> Axes:
    """The order is read off a dummy with distinct sizes."""
    inputs = types.type(call.argument(0, "input"))
    dummy = torch.empty([*range(2, len(inputs) + 2)], device="meta")
    kwargs = {name: value for name, value in call.kwargs.items() if name != "input"}
    moved = getattr(dummy, call.op.__name__)(*call.args[1:], **kwargs)  # type: ignore[union-attr]
    return [inputs[n - 2] for n in moved.shape]


@register_rule(getattr)
def attribute(types: AxisTypes, call: Call) -> Any:
    """``x.T``, ``x.mT`` and ``x.data``; an attribute of an object that an opaque step gives."""
    source, name = types.values[call.args[0]], call.args[1]
    if isinstance(source, dict):
        return source[name]
    inputs = types.type(call.args[0])
    if name in ("T", "H"):
        return inputs[::-1]
    if name in ("mT", "mH"):
        return [*inputs[:-2], inputs[-1], inputs[-2]]
    if name in ("data", "real"):
        return inputs
    raise RuleError(f"attribute {name}")


@register_rule("expand", torch.broadcast_to)
def expand(types: AxisTypes, call: Call) -> Axes:
    """Entries of size 1 are repeated: as often as whoever reads them wants, so that axis is elastic."""
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
    return K(size, "it is repeated as often as a size of the input says") if rigid else Sym(size, call.node.name)


@register_rule("expand_as")
def expand_as(types: AxisTypes, call: Call) -> Axes:
    """The axes of the other tensor, those that are not of size 1 in both being one."""
    inputs, other = types.type(call.args[0]), types.type(call.args[1])
    for mine, theirs in zip(reversed(inputs), reversed(other), strict=False):
        if mine.size != 1:
            types.unify(mine, theirs)
    return other


@register_rule("repeat", torch.tile)
def repeat(types: AxisTypes, call: Call) -> Axes:
    """Copies of the whole axis one after another."""
    inputs, shape = types.type(call.args[0]), types.output_shape(call)
    padded = [*[K(1)] * (len(shape) - len(inputs)), *inputs]
    times = [size // term.size for size, term in zip(shape, padded, strict=True)]
    return [term if n == 1 else Prod((K(n), term)) for n, term in zip(times, padded, strict=True)]


@register_rule(torch.repeat_interleave)
def repeat_interleave(types: AxisTypes, call: Call) -> Axes:
    """Copies of each entry one after another."""
    out, times, dim = list(types.type(call.argument(0, "input"))), call.argument(1, "repeats"), call.argument(2, "dim")
    if not isinstance(times, int) or dim is None:
        raise RuleError("repeated by a tensor, or flattened")
    out[dim] = Prod((out[dim], K(times)))
    return out


@register_rule(torch.roll, torch.flip)
def roll(types: AxisTypes, call: Call) -> Axes:
    """The moved axes are pinned."""
    inputs = types.type(call.argument(0, "input"))
    dims = call.argument(2, "dims") if call.op is torch.roll else call.argument(1, "dims")
    dims = range(len(inputs)) if dims is None else [dims] if isinstance(dims, int) else dims
    types.pin_axes([inputs[dim] for dim in dims], "its entries are moved by numbers")
    return inputs


@register_rule(F.channel_shuffle)
def channel_shuffle(types: AxisTypes, call: Call) -> Axes:
    """A permutation; in a smaller sub-network the kept channels are gathered in its order."""
    out, groups = list(types.type(call.argument(0, "input"))), call.argument(1, "groups")
    rows = out[1].size // groups
    order = tuple(group * rows + row for row in range(rows) for group in range(groups))
    types.replace(call, torch.index_select, 1, Moved(out[1], order))
    out[1] = Perm(out[1], order)
    return out


@register_rule(F.pixel_shuffle)
def pixel_shuffle(types: AxisTypes, call: Call) -> Axes:
    """C*r*r channels become C."""
    inputs, r = types.type(call.argument(0, "input")), call.argument(1, "upscale_factor")
    channels, pixels = types.factor(inputs[-3], r * r)
    types.pin_axes(inputs[-2:], "pixels are shuffled along it")
    types.pin(pixels, "its entries become pixels")
    return [*inputs[:-3], channels, *(K(n) for n in types.output_shape(call)[-2:])]


@register_rule(F.pixel_unshuffle)
def pixel_unshuffle(types: AxisTypes, call: Call) -> Axes:
    """C channels become C*r*r."""
    inputs, r = types.type(call.argument(0, "input")), call.argument(1, "downscale_factor")
    types.pin_axes(inputs[-2:], "pixels are shuffled along it")
    return [*inputs[:-3], Prod((inputs[-3], K(r * r))), *(K(n) for n in types.output_shape(call)[-2:])]


@register_rule(F.fold)
def fold(types: AxisTypes, call: Call) -> Axes:
    """C*kernel channels become C; places and pixels are rigid."""
    inputs, shape = types.type(call.argument(0, "input")), types.output_shape(call)
    channels, patch = types.factor(inputs[1], inputs[1].size // shape[1])
    types.pin_axes([patch, inputs[2]], "patches are put together along it")
    return [inputs[0], channels, *(K(n) for n in shape[2:])]


@register_rule("unfold")
def windows(types: AxisTypes, call: Call) -> Axes:
    """The axis is pinned and becomes that of the windows; their entries are a last axis."""
    out, shape = list(types.type(call.args[0])), types.output_shape(call)
    dim = call.argument(1, "dimension") % len(out)
    types.pin(out[dim], "windows are taken along it")
    out[dim] = K(shape[dim])
    return [*out, K(shape[-1])]


@register_rule(torch.triu, torch.tril)
def triangle(types: AxisTypes, call: Call) -> Axes:
    """Which entries are left depends on both last axes: they are pinned."""
    inputs = types.type(call.argument(0, "input"))
    types.pin_axes(inputs[-2:], "a triangle of it is taken")
    return inputs


@register_rule(F.one_hot)
def one_hot(types: AxisTypes, call: Call) -> Axes:
    """A rigid axis of classes is added."""
    return [*types.type(call.args[0]), K(types.output_shape(call)[-1])]


@register_rule(F.unfold)
def unfold(types: AxisTypes, call: Call) -> Axes:
    """C channels become C*kernel; positions are rigid."""
    inputs, shape = types.type(call.argument(0, "input")), types.output_shape(call)
    types.pin_axes(inputs[2:], "patches are taken along it")
    return [inputs[0], Prod((inputs[1], K(shape[1] // inputs[1].size))), K(shape[2])]
