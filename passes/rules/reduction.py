"""Reductions and scans: what is compared along is pinned; sums and means may run over elastic axes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call
from bnas.passes.errors import RuleError
from bnas.passes.terms import K

MEANS = (torch.mean, torch.var, torch.std)
EXTREMES = (torch.amax, torch.amin, torch.prod, torch.logsumexp, torch.all, torch.any)
SELECTIONS = (torch.max, torch.min, torch.argmax, torch.argmin, torch.median, torch.aminmax)
SUMS = (torch.sum, torch.linalg.vector_norm, torch.norm)
SCANS = (F.softmax, F.log_softmax, F.softmin, torch.cumsum, torch.cumprod, torch.argsort)


@register_rule(*MEANS)
def mean(types: AxisTypes, call: Call) -> Axes:
    """Statistics over elastic axes are those of the kept entries, by decision, as those of `layer_norm` are."""
    inputs = types.type(call.argument(0, "input"))
    return _rest(call, inputs, _reduced(types, call, 1))


@register_rule(*EXTREMES, *SELECTIONS)
def extreme(types: AxisTypes, call: Call) -> Any:
    """The reduced axes are pinned, since the missing entries would change the result; the others pass."""
    other = call.argument(1, "other")
    if call.op in (torch.max, torch.min) and other is not None and types.is_tensor(other):
        return types.broadcast(types.type(call.argument(0, "input")), types.type(other))  # the greater of two
    reduced = _reduced(types, call, 1)
    inputs = types.type(call.argument(0, "input"))
    types.pin_axes([inputs[axis] for axis in sorted(reduced)], "it is searched, or multiplied, along")
    return _like(call, _rest(call, inputs, reduced))


@register_rule(*SUMS)
def total(types: AxisTypes, call: Call) -> Axes:
    """Missing entries add nothing, if they are zero; else the axis is pinned."""
    reduced = _reduced(types, call, 1 + (call.op not in SUMS[:1]))
    for axis in sorted(reduced):
        types.contract((call.argument(0, "input"), axis))
    return _rest(call, types.type(call.argument(0, "input")), reduced)


def _reduced(types: AxisTypes, call: Call, position: int) -> set[int]:
    """The axes that are reduced, by the argument ``dim``; all of them if it is not given."""
    axes = len(types.type(call.argument(0, "input")))
    dims = call.argument(position, "dim", call.kwargs.get("axis"))
    if dims is None:
        return set(range(axes))
    if isinstance(dims, bool) or not isinstance(dims, int | tuple | list):
        raise RuleError("a reduction without axes")
    return {dim % axes for dim in ([dims] if isinstance(dims, int) else dims)}


def _rest(call: Call, inputs: Axes, reduced: set[int]) -> Axes:
    value = call.node.meta["value"]
    kept = (value[0] if isinstance(value, tuple) else value).ndim == len(inputs)
    return [K(1) if axis in reduced else term for axis, term in enumerate(inputs) if kept or axis not in reduced]


def _like(call: Call, out: Axes) -> Any:
    """One type for each result: some reductions give values and places."""
    value = call.node.meta["value"]
    return (out,) * len(value) if isinstance(value, tuple) else out


@register_rule(*SCANS)
def scan(types: AxisTypes, call: Call) -> Axes:
    """The axis it runs along is pinned."""
    inputs, dim = types.type(call.argument(0, "input")), call.argument(1, "dim")
    if dim is None:
        raise RuleError("no axis is given")
    types.pin(inputs[dim], f"{call.op.__name__} runs along it")  # type: ignore[union-attr]
    return inputs


@register_rule(torch.sort, torch.topk)
def topk(types: AxisTypes, call: Call) -> tuple[Axes, Axes]:
    """The axis it runs along is pinned; values and places."""
    inputs = types.type(call.argument(0, "input"))
    dim = call.argument(1 if call.op is torch.sort else 2, "dim", -1) % len(inputs)
    types.pin(inputs[dim], "its entries are sorted")
    out = [K(call.node.meta["value"][0].shape[dim]) if axis == dim else term for axis, term in enumerate(inputs)]
    return out, out
