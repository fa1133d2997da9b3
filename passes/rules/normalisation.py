"""Normalisations: their parameters follow the axis they belong to; the axes they mix are pinned."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call, Dynamic


def _follow_channels(types: AxisTypes, call: Call, inputs: Axes) -> None:
    """All tensors of a norm follow axis 1, in whatever order its spelling takes them."""
    for tensor in list(call.tensors())[1:]:
        types.unify(types.type(tensor)[0], inputs[1])


@register_rule(F.batch_norm, torch.batch_norm)
def batch_norm(types: AxisTypes, call: Call) -> Axes:
    """weight, bias and statistics = axis 1; every axis that is averaged over is pinned (also on weights)."""
    inputs = types.type(call.argument(0, "input"))
    _follow_channels(types, call, inputs)
    types.pin_axes([inputs[0], *inputs[2:]], "batch_norm averages over it")
    return inputs


@register_rule(F.instance_norm, torch.instance_norm)
def instance_norm(types: AxisTypes, call: Call) -> Axes:
    """As `batch_norm`, each sample by itself."""
    inputs = types.type(call.argument(0, "input"))
    _follow_channels(types, call, inputs)
    types.pin_axes(inputs[2:], "instance_norm averages over it")
    return inputs


@register_rule(F.layer_norm, F.rms_norm)
def layer_norm(types: AxisTypes, call: Call) -> Axes:
    """Parameters follow the trailing axes, whose sizes are written anew: statistics are those of the kept entries."""
    inputs, shape = types.type(call.argument(0, "input")), call.argument(1, "normalized_shape")
    trailing = inputs[len(inputs) - len(shape) :]
    for tensor in list(call.tensors())[1:]:
        for own, axis in zip(types.type(tensor), trailing, strict=True):
            types.unify(own, axis)
    written = [size if isinstance(size, Dynamic) else axis for size, axis in zip(shape, trailing, strict=True)]
    types.rewrite(call, 1, "normalized_shape", tuple(written))  # a size that follows the input does so still
    return inputs


@register_rule(F.group_norm, torch.group_norm)
def group_norm(types: AxisTypes, call: Call) -> Axes:
    """Channels are groups x width; statistics are those of the kept entries of each group."""
    inputs, groups = types.type(call.argument(0, "input")), call.argument(1, "num_groups")
    _follow_channels(types, call, inputs)
    types.pin_axes(inputs[2:], "group_norm averages over it")
    if groups > 1:
        outer, _ = types.factor(inputs[1], inputs[1].size // groups)
        types.rewrite(call, 1, "num_groups", outer)
    return inputs


@register_rule(F.local_response_norm)
def local_response_norm(types: AxisTypes, call: Call) -> Axes:
    """Neighbouring channels are mixed: they are pinned."""
    inputs = types.type(call.argument(0, "input"))
    types.pin(inputs[1], "neighbouring channels are mixed")
    return inputs


@register_rule(torch._weight_norm)
def weight_norm(types: AxisTypes, call: Call) -> Axes:
    """Rows of a direction have a length each; the axes that the length is taken over are pinned."""
    direction, length = types.type(call.argument(0, "v")), types.type(call.argument(1, "g"))
    dim = call.argument(2, "dim", 0)
    types.pin_axes([axis for place, axis in enumerate(direction) if place != dim], "the length of rows runs over it")
    if dim >= 0:
        types.unify(direction[dim], length[dim])
    return direction
