"""Convolutions and linear layers: new channels are made here."""

from __future__ import annotations

import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, Call
from bnas.passes.terms import K, Prod


@register_rule(*CONVOLUTIONS)
def convolution(types: AxisTypes, call: Call) -> Axes:
    """In = G*c, out = G*o, weight = (G*o, c, kernel), bias = out, groups = active(G); depthwise is c = 1."""
    inputs, weight = types.type(call.argument(0, "input")), types.type(call.argument(1, "weight"))
    groups, bias = call.argument(6, "groups", 1), call.argument(2, "bias")
    channel = len(inputs) - len(weight) + 1
    _tie_groups(types, call, inputs, channel, groups, weight)
    types.contract((call.argument(0, "input"), channel), (call.argument(1, "weight"), 1))
    if bias is not None:
        types.unify(types.type(bias)[0], weight[0])
    types.pin_axes(weight[2:], "the kernel of a convolution is rigid")
    types.pin_axes(inputs[channel + 1 :], "a convolution runs over it")
    out = [*inputs[:channel], weight[0], *(K(n) for n in types.output_shape(call)[channel + 1 :])]
    types.produces(call.argument(1, "weight"), 0)
    types.count_macs(call, [*out, *weight[1:]])
    return out


def _tie_groups(types: AxisTypes, call: Call, inputs: Axes, channel: int, groups: int, weight: Axes) -> None:
    if groups == 1:
        types.unify(inputs[channel], weight[1])
        return
    groups_in, per_group = types.factor(inputs[channel], weight[1].size)
    groups_out, _ = types.factor(weight[0], weight[0].size // groups)
    types.unify(groups_in, groups_out)
    types.unify(per_group, weight[1])
    types.rewrite(call, 6, "groups", groups_out)


@register_rule(F.linear)
def linear(types: AxisTypes, call: Call) -> Axes:
    """In = weight axis 1, out = weight axis 0 = bias; any number of leading axes."""
    inputs, weight = types.type(call.argument(0, "input")), types.type(call.argument(1, "weight"))
    bias = call.argument(2, "bias")
    types.unify(inputs[-1], weight[1])
    types.contract((call.argument(0, "input"), -1), (call.argument(1, "weight"), 1))
    if bias is not None:
        types.unify(types.type(bias)[0], weight[0])
    out = [*inputs[:-1], weight[0]]
    types.produces(call.argument(1, "weight"), 0)
    types.count_macs(call, [*out, weight[1]])
    return out


@register_rule(*TRANSPOSED_CONVOLUTIONS)
def transposed_convolution(types: AxisTypes, call: Call) -> Axes:
    """In = G*c = weight axis 0, out = G * weight axis 1."""
    inputs, weight = types.type(call.argument(0, "input")), types.type(call.argument(1, "weight"))
    groups, bias = call.argument(6, "groups", 1), call.argument(2, "bias")
    channel = len(inputs) - len(weight) + 1
    types.unify(inputs[channel], weight[0])
    types.contract((call.argument(0, "input"), channel), (call.argument(1, "weight"), 0))
    outer, _ = types.factor(weight[0], weight[0].size // groups)
    if groups > 1:
        types.rewrite(call, 6, "groups", outer)
    channels = Prod((outer, weight[1])) if groups > 1 else weight[1]
    if bias is not None:
        types.unify(types.type(bias)[0], channels)
    types.pin_axes(weight[2:], "the kernel of a convolution is rigid")
    types.pin_axes(inputs[channel + 1 :], "a convolution runs over it")
    types.produces(call.argument(1, "weight"), 1)
    types.count_macs(call, [*inputs[:channel], *inputs[channel + 1 :], *weight])
    return [*inputs[:channel], channels, *(K(n) for n in types.output_shape(call)[channel + 1 :])]


@register_rule(F.embedding)
def embedding(types: AxisTypes, call: Call) -> Axes:
    """The rows are read by numbers; the width is elastic."""
    index, weight = types.type(call.argument(0, "input")), types.type(call.argument(1, "weight"))
    types.pin_axes([weight[0], *index], "rows of it are read by numbers")
    types.produces(call.argument(1, "weight"), 1)
    return [*index, weight[1]]


@register_rule(F.embedding_bag)
def embedding_bag(types: AxisTypes, call: Call) -> Axes:
    """As `embedding`; rows are summed in bags."""
    weight = types.type(call.argument(1, "weight"))
    for tensor in call.tensors():
        types.pin_axes(types.type(tensor)[: 1 if types.type(tensor) is weight else None], "rows of it are read in bags")
    types.produces(call.argument(1, "weight"), 1)
    return [K(types.output_shape(call)[0]), weight[1]]
